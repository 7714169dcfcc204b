"""What is wrong with a peer path, told apart; and what came before it broke is reported."""

from __future__ import annotations

from data_world import World

from zdist.core.links import DEAF, SILENT, STRANGER, TOKEN, Link
from zdist.core.machine import Route
from zdist.core.probes import PROBES_AT_ONCE
from zdist.limits import MIB, PROBE_TIMEOUT
from zdist.protocol.messages import Probe, ProbeReply


def suspect(world: World, session: str) -> tuple[Link, int]:
    """Have a path probed; the link and the probe's number."""
    link = world.fetcher.links.peers[session]
    world.fetcher.probes.suspect(link, world.now)
    probe = world.log[-1][1]
    assert isinstance(probe, Probe)
    return link, probe.req


def test_a_probe_without_an_answer() -> None:
    world = World()
    world.add("w-1").peer = "blackhole"
    link, _ = suspect(world, "w-1")
    world.fetcher.tick(world.now + 2 * PROBE_TIMEOUT)
    assert (link.state, link.fault) == ("closed", SILENT) and "no answer" in link.text


def test_one_probe_at_a_time_is_under_way_to_an_address() -> None:
    world = World()
    world.add("w-1")
    link, req = suspect(world, "w-1")
    before = len(world.log)
    world.fetcher.probes.suspect(link, world.now)
    assert len(world.log) == before and list(world.fetcher.probes.out) == [req]


def test_a_probe_waits_while_many_are_under_way() -> None:
    world = World()
    names = [f"w-{n}" for n in range(PROBES_AT_ONCE + 1)]
    for name in names:
        world.add(name)
        world.fetcher.probes.suspect(world.fetcher.links.peers[name], world.now)
    out = world.fetcher.probes.out
    last = world.fetcher.links.peers[names[-1]]
    assert len(out) == PROBES_AT_ONCE and last.probe == -1
    first, _ = out[min(out)]
    world.fetcher.handle(first.route, ProbeReply(min(out), names[0]), world.now)
    world.fetcher.tick(world.now)
    assert len(out) == PROBES_AT_ONCE and last.probe == max(out)


def test_a_refused_token() -> None:
    world = World()
    world.add("w-1")
    link, req = suspect(world, "w-1")
    world.fetcher.handle(link.route, ProbeReply(req, ""), world.now)
    assert (link.state, link.fault) == ("closed", TOKEN) and "token" in link.text
    assert not world.fetcher.probes.out  # the verdict is in, nothing is waited for


def test_two_workers_that_advertise_one_address() -> None:
    world = World()
    world.fetcher.members([("w-1", "tcp://nat:1", "one", "a", "n-1"), ("w-2", "tcp://nat:1", "two", "b", "n-2")])
    links = world.fetcher.links.peers
    world.fetcher.probes.send = lambda route, message: None
    for session in ("w-1", "w-2"):
        world.fetcher.probes.suspect(links[session], world.now)
    for req in (1, 2):  # it is the first of them that is there
        world.fetcher.handle(Route("tcp://nat:1"), ProbeReply(req, "w-1"), world.now)
    assert (links["w-1"].state, links["w-1"].fault) == ("open", "")
    assert (links["w-2"].state, links["w-2"].fault) == ("closed", STRANGER)
    assert not world.fetcher.probes.out
    world.check()


def test_an_answer_from_elsewhere_says_nothing() -> None:
    world = World()
    world.add("w-1")
    link, req = suspect(world, "w-1")
    world.fetcher.handle(Route("tcp://elsewhere:1"), ProbeReply(req, "w-1"), world.now)
    world.fetcher.handle(Route("tcp://elsewhere:1"), ProbeReply(req, "w-9"), world.now)
    assert link.state == "unknown" and req in world.fetcher.probes.out


def test_a_late_answer_opens_the_path_after_all() -> None:
    world = World()
    world.add("w-1").peer = "blackhole"
    link, req = suspect(world, "w-1")
    world.fetcher.tick(world.now + 2 * PROBE_TIMEOUT)
    assert link.state == "closed"
    world.fetcher.handle(link.route, ProbeReply(req, "w-1"), world.now)
    assert (link.state, link.fault, link.text) == ("open", "", "")


def test_a_path_that_answers_probes_and_nothing_else() -> None:
    world = World()
    holder = world.add("w-1")
    holder.values["k"] = b"x" * 100
    holder.store.put_blob("k", 1, world.cut(holder.values["k"]), "bytes")
    serve = world.serve
    world.serve = lambda holder, route, get: None if route.channel == "data" else serve(holder, route, get)  # type: ignore[method-assign]
    link, _ = suspect(world, "w-1")
    world.run()
    assert link.state == "open"
    world.fetcher.fetch(1, [("k", 1, 100, ("w-1",))], direct=True, now=world.now)
    while link.state != "closed":
        assert world.step()
    assert link.fault == DEAF and "sends no data" in link.text
    world.run()
    assert world.arrived == {(1, "k"): holder.values["k"]}


def test_what_came_before_the_path_was_cut_is_in_the_report() -> None:
    world = World()
    holder = world.add("w-1")
    value = bytes(range(256)) * (4 * MIB // 256)
    holder.values["k"] = value
    holder.store.put_blob("k", 1, world.cut(value), "bytes")
    world.speed = {holder.address: 10e6}
    suspect(world, "w-1")
    world.run()
    assert world.fetcher.links.peers["w-1"].state == "open"
    world.fetcher.fetch(1, [("k", 1, len(value), ("w-1",))], now=world.now)
    link = world.fetcher.links.peers["w-1"]
    while not link.carried_bytes:
        assert world.step()
    carried = link.carried_bytes
    holder.peer = "blackhole"
    world.log.clear()
    world.run()
    assert world.arrived == {(1, "k"): value}
    rows = list(world.fetcher.report)
    (cut,) = [row for row in rows if row.path == "peer"]
    assert cut.bytes >= carried and cut.seconds < 60
    assert sum(row.bytes for row in rows) >= len(value)
    assert [row.reason for row in rows if row.path == "relay"][-1] == "peer path fell behind"
