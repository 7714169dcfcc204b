"""Producers and consumers that know each other only by the names of two queues."""

import sys

from dask.distributed import Client, Queue


def produce(name, start, count):
    queue = Queue(name)
    for i in range(start, start + count):
        queue.put(i)
    return count


def consume(source, target):
    todo, done = Queue(source), Queue(target)
    count = 0
    while True:
        item = todo.get()
        if item is None:
            return count
        done.put([item, item * item])
        count += 1


def inc(x):
    return x + 1


def main():
    with Client(sys.argv[1]) as client:
        todo, done = Queue("program-todo"), Queue("program-done")
        producers = [client.submit(produce, "program-todo", start, 10) for start in (0, 10, 20)]
        consumers = [client.submit(consume, "program-todo", "program-done", pure=False) for _ in range(1)]
        print(client.gather(producers))
        results = sorted(tuple(done.get()) for _ in range(30))
        for _ in consumers:
            todo.put(None)
        print(sum(client.gather(consumers)), results[:3], results[-1], done.qsize())
        futures = Queue("program-futures")
        for i in range(3):
            futures.put(client.submit(inc, i))
        print(sorted(client.gather([futures.get() for _ in range(3)])))
        try:
            futures.get(timeout="100ms")
        except TimeoutError:
            print("nothing more")


if __name__ == "__main__":
    main()
