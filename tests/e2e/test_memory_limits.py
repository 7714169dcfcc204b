"""Workers with little memory: values go to disk and come back, tasks wait, and what takes too much is killed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from zdist import Client, KilledWorker, LocalCluster, wait

PATIENCE = 60.0
MIB = 1 << 20
LIMIT = 256 * MIB


@pytest.fixture(scope="module")
def spill() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="zt-", dir="/var/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def client(spill: Path) -> Iterator[Client]:
    before = os.environ.get("ZDIST_SPILL_DIR")
    os.environ["ZDIST_SPILL_DIR"] = str(spill)
    try:
        with (
            LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=LIMIT) as cluster,
            Client(cluster, gather_paths=("peer", "relay")) as client,
        ):
            client.wait_for_workers(2, timeout=PATIENCE)
            yield client
    finally:
        if before is None:
            del os.environ["ZDIST_SPILL_DIR"]
        else:
            os.environ["ZDIST_SPILL_DIR"] = before
    assert list(spill.iterdir()) == []


def filled(number: int, mib: int) -> bytearray:
    return bytearray([number]) * (mib * MIB)


def on_disk(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*/*"))


def test_results_that_do_not_fit_are_all_there(client: Client, spill: Path) -> None:
    pids = client.run(os.getpid)
    futures = client.map(filled, range(20), [100] * 20, pure=False)  # 2,000 MiB on workers of 256
    wait(futures, timeout=PATIENCE)
    assert on_disk(spill) > 1200 * MIB
    for number, future in enumerate(futures):
        value = future.result(timeout=PATIENCE)
        assert len(value) == 100 * MIB and value[0] == value[-1] == number
        del value
    assert client.run(os.getpid) == pids  # none was killed
    assert client.submit(lambda a, b: a[0] + b[0], futures[3], futures[4]).result(timeout=PATIENCE) == 7


def test_what_is_kept_to_receive_into_is_an_eighth_of_the_limit(client: Client) -> None:
    def most() -> int:
        from zdist.serialize.regions import regions

        return regions.keep

    assert client.submit(most).result(timeout=PATIENCE) == LIMIT // 8


def test_many_small_values_go_to_disk_and_come_back(client: Client, spill: Path) -> None:
    futures = client.map(filled, range(100), [4] * 100, pure=False)
    wait(futures, timeout=PATIENCE)
    assert [value[0] for value in client.gather(futures)] == list(range(100))


def test_a_task_that_takes_too_much_is_killed_and_said_so(client: Client) -> None:
    def greedy() -> None:
        kept = []
        while True:
            kept.append(bytearray(16 * MIB))

    future = client.submit(greedy, pure=False)
    with pytest.raises(KilledWorker, match=r"used \d+ MiB of memory, and its limit is 256 MiB"):
        future.result(timeout=PATIENCE)
    assert client.submit(sum, [1, 2]).result(timeout=PATIENCE) == 3
