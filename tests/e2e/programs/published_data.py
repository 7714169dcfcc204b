"""Results that one client leaves for others, and what they know about them."""

import sys

from dask.distributed import Client


def load(part):
    return list(range(part * 10, part * 10 + 10))


def mean(parts):
    values = [x for part in parts for x in part]
    return sum(values) / len(values)


def main():
    with Client(sys.argv[1]) as client:
        client.publish_dataset(program_parts=client.map(load, range(4)))
        client.set_metadata(["program", "parts"], 4)
    with Client(sys.argv[1]) as client:
        print("program_parts" in client.list_datasets(), client.get_metadata(["program", "parts"]))
        parts = client.get_dataset("program_parts")
        print(len(parts), client.submit(mean, parts).result())
        try:
            client.publish_dataset(program_parts=1)
        except KeyError:
            print("there already")
        client.unpublish_dataset("program_parts")
        print("program_parts" in client.list_datasets(), client.get_metadata("nothing", default="none"))


if __name__ == "__main__":
    main()
