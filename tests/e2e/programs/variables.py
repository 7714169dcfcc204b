"""Workers that follow a variable, until an event tells them to stop; a counter under a lock; leases."""

import sys

from dask.distributed import Client, Event, Lock, Semaphore, Variable


def follow(name, stop):
    variable, event = Variable(name), Event(stop)
    seen = []
    while not seen or not event.is_set():
        value = variable.get()
        if not seen or seen[-1] != value:
            seen.append(value)
    return seen[0], seen[-1] >= seen[0]


def count(name, times):
    variable = Variable(name)
    for _ in range(times):
        with Lock("program-lock"):
            variable.set(variable.get() + 1)
    return times


def limited(semaphore, x):
    with semaphore:
        return x * x


def inc(x):
    return x + 1


def main():
    with Client(sys.argv[1]) as client:
        variable, event = Variable("program-variable"), Event("program-stop")
        variable.set(1)
        follower = client.submit(follow, "program-variable", "program-stop")
        for value in range(2, 6):
            variable.set(value)
        event.set()
        first, grows = follower.result()
        print(1 <= first <= 5, grows, event.wait(timeout=10))
        event.clear()
        counter = Variable("program-counter")
        counter.set(0)
        client.gather([client.submit(count, "program-counter", n) for n in (3, 4, 5)])
        print(counter.get())
        semaphore = Semaphore(max_leases=2, name="program-semaphore")
        print(client.gather(client.map(limited, [semaphore] * 5, range(5))), semaphore.get_value())
        variable.set(client.submit(inc, 41))
        print(Variable("program-variable").get().result())
        lock = Lock("program-other")
        print(lock.acquire(timeout=10), Lock("program-other").acquire(timeout=0.1), lock.locked())
        lock.release()


if __name__ == "__main__":
    main()
