"""Futures as arguments, nested gathers, errors, retries."""

import sys
from itertools import pairwise

from dask.distributed import Client, wait


def inc(x):
    return x + 1


def add(x, y):
    return x + y


def divide(x, y):
    return x / y


def total(xs):
    return sum(xs)


def main():
    with Client(sys.argv[1]) as client:
        numbers = client.map(inc, range(10))
        pairs = [client.submit(add, a, b) for a, b in pairwise(numbers)]
        result = client.submit(total, pairs)
        print(result.result())
        print(client.gather({"first": numbers[0], "rest": [numbers[1], (numbers[2],)]}))
        bad = client.submit(divide, 1, 0)
        after = client.submit(inc, bad)
        wait([bad, after])
        print(bad.status, after.status, type(after.exception()).__name__)
        try:
            bad.result()
        except ZeroDivisionError as error:
            print("raised:", error)
        print(client.gather([numbers[0], bad, numbers[1]], errors="skip"))
        data = client.scatter(list(range(100)))
        print(client.submit(total, data).result(), client.submit(total, data, pure=False).result())


if __name__ == "__main__":
    main()
