"""A linear model whose weights live in an actor, which tasks read and push gradients to."""

import sys

from dask.distributed import Client


class Weights:
    pushes = 0

    def __init__(self, size):
        self.values = [0.0] * size
        self.pushes = 0

    def push(self, gradient, rate):
        self.values = [w - rate * g for w, g in zip(self.values, gradient, strict=True)]
        self.pushes += 1
        return self.pushes

    def pull(self):
        return list(self.values)


def points(start, stop):
    return [(x / 50, 3.0 * (x / 50) + 1.0) for x in range(start, stop)]


def step(server, shard):
    a, b = server.pull().result()
    errors = [(a * x + b - y, x) for x, y in shard]
    gradient = [2 * sum(e * x for e, x in errors) / len(shard), 2 * sum(e for e, _ in errors) / len(shard)]
    return server.push(gradient, 0.1).result()


def loss(server, shards):
    a, b = server.pull().result()
    return sum((a * x + b - y) ** 2 for shard in shards for x, y in shard)


def main():
    with Client(sys.argv[1]) as client:
        shards = client.map(points, range(0, 100, 25), range(25, 125, 25))
        server = client.submit(Weights, 2, actor=True).result()
        before = client.submit(loss, server, shards, pure=False).result()
        for _ in range(60):
            client.gather([client.submit(step, server, shard, pure=False) for shard in shards])
        after = client.submit(loss, server, shards, pure=False).result()
        print(server.pushes, after < before / 1000)
        print([round(value) for value in server.pull().result()])


if __name__ == "__main__":
    main()
