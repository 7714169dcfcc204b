"""Tasks that submit tasks and wait for them, on a pool that is smaller than their depth."""

import sys

from dask.distributed import Client, get_client, rejoin, secede, worker_client


def fib(n):
    if n < 2:
        return n
    client = get_client()
    a, b = client.submit(fib, n - 1), client.submit(fib, n - 2)
    secede()
    a, b = client.gather([a, b])
    rejoin()
    return a + b


def quicksort(xs):
    if len(xs) < 8:
        return sorted(xs)
    pivot = xs[len(xs) // 2]
    parts = [x for x in xs if x < pivot], [x for x in xs if x > pivot]
    with worker_client() as client:
        low, high = client.gather(client.map(quicksort, parts))
    return low + [x for x in xs if x == pivot] + high


def main():
    with Client(sys.argv[1]) as client:
        print(client.submit(fib, 9).result())
        print(client.submit(quicksort, [(i * 7919) % 101 for i in range(60)]).result())


if __name__ == "__main__":
    main()
