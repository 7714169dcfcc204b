"""Objects that live on a worker: state, order, exceptions, handles in tasks."""

import sys

from dask.distributed import Client


class Counter:
    n = 0
    log = ()

    def __init__(self, start=0):
        self.n = start
        self.log = []

    def add(self, x):
        self.n += x
        self.log.append(x)
        return self.n

    def fail(self):
        raise ValueError("an actor's own")


def use(counter, times):
    for _ in range(times):
        counter.add(1).result()
    return times


def main():
    with Client(sys.argv[1]) as client:
        counter = client.submit(Counter, 10, actor=True).result()
        print(type(counter).__name__, counter.n)
        print(max(future.result() for future in [counter.add(i) for i in range(5)]))
        print(sorted(counter.log))
        try:
            counter.fail().result()
        except ValueError as error:
            print("raised:", error)
        print(sorted(client.gather([client.submit(use, counter, n) for n in (2, 3)])), counter.n)
        other = client.submit(Counter, actor=True).result()
        print(other.add(1).result(), counter.add(0).result())


if __name__ == "__main__":
    main()
