"""Counting words: scattered text, a map, and a tree of merges."""

import sys
from collections import Counter

from dask.distributed import Client

TEXT = """the quick brown fox jumps over the lazy dog while the dog sleeps and the fox runs home to the den
a dog and a fox met by the river and the river ran on to the sea where the ships of the quick merchants lay"""


def words(lines):
    return Counter(word for line in lines for word in line.split())


def merge(parts):
    total = Counter()
    for part in parts:
        total.update(part)
    return total


def main():
    with Client(sys.argv[1]) as client:
        lines = [f"{line} chapter{i % 7}" for i in range(60) for line in TEXT.splitlines()]
        chunks = client.scatter([lines[i : i + 10] for i in range(0, len(lines), 10)])
        counts = client.map(words, chunks)
        while len(counts) > 1:
            counts = [client.submit(merge, counts[i : i + 3]) for i in range(0, len(counts), 3)]
        result = counts[0].result()
        print(sorted(result.most_common(3)), result["chapter3"], sum(result.values()))


if __name__ == "__main__":
    main()
