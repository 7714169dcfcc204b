"""Tasks that need several tries, workers that are restarted, what is left of state afterwards."""

import os
import sys

from dask.distributed import Client, get_worker, wait


def flaky(x):
    worker = get_worker()
    tries = worker.tries = getattr(worker, "tries", 0) + 1
    if tries % 3:
        raise OSError(f"try {tries}")
    return x


def pid():
    return os.getpid()


def remember(dask_worker=None):
    dask_worker.note = "here"


def recall(dask_worker=None):
    return getattr(dask_worker, "note", None)


def main():
    with Client(sys.argv[1]) as client:
        count = len(client.scheduler_info()["workers"])
        print(client.submit(flaky, 7, retries=20).result())
        client.run(remember)
        print(set(client.run(recall).values()), len(client.nthreads()) == count)
        before = set(client.run(pid).values())
        old = client.submit(sum, [1, 2, 3])
        wait(old)
        client.restart()
        client.wait_for_workers(count)
        print(old.status, before.isdisjoint(client.run(pid).values()), set(client.run(recall).values()))
        print(client.submit(sum, [1, 2, 3]).result())


if __name__ == "__main__":
    main()
