"""scatter: kinds, names, places, life."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import cluster_functions as functions
import pytest
from cluster_checks import eventually

from zdist import Client, Future
from zdist.client import scattering


@pytest.mark.parametrize(
    "data",
    [
        [1, "two", [3]],
        (1, "two"),
        {1, 2},
        frozenset([1, 2]),
        {"x": 1, "y": [2]},
        [],
        {},
        42,
        "a text",
        None,
    ],
)
def test_kinds(client: Client, data: Any) -> None:
    futures = client.scatter(data)
    if isinstance(data, list | tuple | set | frozenset | dict):
        assert type(futures) is type(data) and len(futures) == len(data)
    else:
        assert isinstance(futures, Future)
    assert client.gather(futures) == data


def test_a_dicts_names_are_the_keys(client: Client) -> None:
    futures = client.scatter({"alpha": 1, "beta": 2})
    assert {name: future.key for name, future in futures.items()} == {"alpha": "alpha", "beta": "beta"}
    assert client.submit(functions.add, futures["alpha"], futures["beta"]).result(timeout=20) == 3


def test_a_dicts_other_names_are_only_the_dicts(client: Client) -> None:
    data = {0: 1, ("x", 1): 2, "gamma": 3}
    futures = client.scatter(data)
    assert client.gather(futures) == data and futures["gamma"].key == "gamma"
    assert client.scatter({7: 1})[7].key == futures[0].key  # by content


def test_equal_data_has_one_name(client: Client, second: Client) -> None:
    assert client.scatter([1, 2])[0].key == second.scatter(1).key
    assert client.scatter(5, hash=False).key != client.scatter(5, hash=False).key


def test_scattered_data_is_spread_over_the_workers(client: Client) -> None:
    futures = client.scatter(list(range(10)), hash=False)
    assert sorted(len(keys) for keys in client.has_what().values()) == [5, 5]
    assert all(future.status == "finished" for future in futures)


def test_broadcast(client: Client) -> None:
    future = client.scatter(b"x" * 300_000, broadcast=True)
    assert len(client.who_has([future])[future.key]) == 2


def test_to_named_workers(client: Client) -> None:
    address, info = next(iter(client.scheduler_info()["workers"].items()))
    futures = client.scatter([1, 2, 3], workers=[address], hash=False)
    assert {w for f in futures for w in client.who_has([f])[f.key]} == {address}
    by_name = client.scatter(4, workers=info["name"], hash=False)
    assert client.who_has([by_name])[by_name.key] in ([address], (address,))


@pytest.mark.parametrize("direct", [None, True, False])
def test_arrays(client: Client, direct: bool | None) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(3 << 18)
    future = client.scatter(array, direct=direct, hash=False)
    total = int(array.sum())
    array[:] = 0  # what was scattered was taken as it was
    assert int(client.submit(numpy.sum, future).result(timeout=20)) == total
    back = client.gather(future)
    back[0] = 1
    assert int(back.sum()) == total + 1


def test_scattered_data_goes_with_its_last_future(client: Client) -> None:
    future = client.scatter(b"y" * 300_000, hash=False, broadcast=True)
    below = client.submit(len, future)
    assert below.result(timeout=20) == 300_000
    del future
    eventually(
        lambda: [k for keys in client.has_what().values() for k in keys] in ([], [below.key]), "the data is dropped"
    )


def test_an_unpicklable_object_is_named(client: Client) -> None:
    import threading

    from zdist import SerializationError

    with pytest.raises(SerializationError, match=r"lock"):
        client.scatter([1, threading.Lock()])


def test_who_waits_for_a_worker_is_told(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def warning(event: str, reason: str) -> None:
        raise InterruptedError(f"{event}: {reason}")  # else it would wait for ever

    monkeypatch.setattr(scattering, "SCATTER_NOTICE", 0.02)
    monkeypatch.setattr(client._driver, "log", SimpleNamespace(warning=warning))
    with pytest.raises(InterruptedError, match=r"scatter\.waiting: no worker has taken 2 of 2.*tcp://nowhere:1"):
        client.scatter([1, 2], workers="tcp://nowhere:1")


def test_a_place_that_is_not_there(client: Client) -> None:
    with pytest.raises((TimeoutError, ValueError), match=r"nobody|no worker"):
        client.scatter(1, workers=["nobody"], timeout=0.5, hash=False)
