"""A search that submits more while results come in: the longest Collatz chains below a bound."""

import sys

from dask.distributed import Client, as_completed


def steps(start, stop):
    best = (0, 0)
    for n in range(start, stop):
        count, x = 0, n
        while x != 1:
            x = x // 2 if x % 2 == 0 else 3 * x + 1
            count += 1
        best = max(best, (count, n))
    return start, stop, best


def main():
    with Client(sys.argv[1]) as client:
        pool = as_completed([client.submit(steps, 1, 400)])
        best, blocks = (0, 0), 0
        for future in pool:
            _, stop, found = future.result()
            blocks += 1
            best = max(best, found)
            if stop < 3000:  # two more from each, until the bound is reached
                middle = min(3000, stop + 400)
                pool.add(client.submit(steps, stop, middle))
        print(best, blocks)
        squares = dict.fromkeys(range(5))
        futures = {client.submit(pow, i, 2): i for i in squares}
        for future, value in as_completed(futures, with_results=True):
            squares[futures[future]] = value
        print(squares)


if __name__ == "__main__":
    main()
