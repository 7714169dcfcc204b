"""Lanes: a lone task goes straight from client to worker, and a copy of its result straight back. PURE.

What goes by a lane are early copies of what is said through the broker as well. Nothing is decided by them alone, so a
copy that is lost, late or refused costs time and nothing else. The broker sets a block of attempts aside for each lane;
an attempt of it is started once, whichever copy of its order comes first. The broker is spared what client and worker
are through with before it has heard of it.

Here are the two ends: `Lanes`, a layer of the client's ledger, and the worker's, `run_early` and `lane_told`. The
broker's part is `zdist_broker.lanes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from hmac import compare_digest
from typing import TYPE_CHECKING, Final

from zdist import limits
from zdist.core.entry import ERROR, PENDING, Entry, Work
from zdist.core.lineage import Lineage
from zdist.core.links import CLOSED, OPEN, PEER, Host, Link
from zdist.core.machine import CONTROL, Route
from zdist.protocol import messages as m
from zdist.protocol.messages import Attempt, Key

if TYPE_CHECKING:
    from zdist.core.worker import WorkerMachine

__all__ = ["Lane", "Lanes", "lane_told", "run_early"]

LAST: Final = 1 << 62  # priority of what comes early: after all that the broker has sent


class Lane:
    """A client's lane: the link to its worker, and the attempts that are left."""

    __slots__ = ("first", "link", "misses", "next", "until")

    def __init__(self, link: Link, first: Attempt, until: Attempt) -> None:
        self.link = link
        self.first = first
        self.next = first
        self.until = until
        self.misses = 0  # early copies in a row that did not come, or came too late

    @property
    def end(self) -> Attempt:
        """After the last attempt of the block."""
        return self.first + (1 << limits.LANE_BITS)


class Lanes(Lineage):
    """The client's end: notices lone tasks, asks for a lane, and uses it while the early copies come back."""

    def __init__(
        self, session: str, token: str, name: str, paths: Sequence[str], fallback: bool, host: Host | None
    ) -> None:
        super().__init__(session, token, name, paths, fallback, host)
        self.lane: Lane | None = None
        self.lone: Entry | None = None  # submitted last, on its own, under a key that nobody else can know
        self.early: tuple[Attempt, Entry, Route] | None = None  # the last to go by a lane, until its copy comes
        self.notes: list[m.SubmitEarly] = []  # what the broker is still to hear of tasks that went by the lane
        self.freed: list[tuple[Key, int]] = []  # and the rows of Release that follow it
        self.notes_at = float("inf")
        self.clock = self.told_at = 0.0  # this turn; when the broker was last told of lone tasks
        self.untold: set[Key] = set()  # of the notes those that only the worker and this client know of, and is done
        self.alone = 0  # lone tasks since the last lane, or since the broker was asked for one
        self.ask_after = limits.LANE_AFTER

    def _go_early(self, entry: Entry) -> bool:
        """Send a lone task by the lane, if there is one and it works; only called while the broker owes us nothing."""
        work, row = entry.work, entry.row
        assert work is not None and row is not None
        args = row[1]
        if row[2] or work.options or entry.told or entry.status != PENDING or type(args) is not bytes:
            return False
        if len(args) > limits.LANE_ARGS:
            return False
        lane = self.lane
        if lane is None:
            self._ask_for_lane()
            return False
        if not self._lane_works(lane):
            return False
        over = self._agreed(lane)
        attempt = lane.next
        lane.next += 1
        route = lane.link.route
        self.early = (attempt, entry, route)
        self.gen = gen = self.gen + 1
        entry.gen, entry.told = gen, self.epoch
        entry.load = 1 + len(args)
        self.flying += 1
        self.flying_bytes += entry.load
        self._define(work)
        self.notes.append(m.SubmitEarly(work.fn, ((gen, attempt, entry.key, args),)))
        self.send(route, m.RunEarly(self.store.token, work.fn, attempt, entry.key, args, over))
        return True

    def _agreed(self, lane: Lane) -> tuple[Key, ...]:
        """Keys that the worker and this client are through with: the broker is spared them, unless it is to extend the
        lane, which it does when it hears how far it is used, or has not heard of the lane for long."""
        if self.clock - self.told_at > limits.LANE_QUIET / 2:
            return ()
        if (
            not self.freed
            or not self.untold
            or lane.until - limits.LANE_CREDIT // 2 <= lane.next < lane.until < lane.end
        ):
            return ()
        over = {key: None for key, _ in self.freed if key in self.untold}
        self.untold.difference_update(over)
        self.notes = [note for note in self.notes if note.rows[0][2] not in over]
        self.freed = [row for row in self.freed if row[0] not in over]
        if not self.notes:
            self._tell_notes()
        return tuple(over)

    # --- what the broker is told of it: soon, and before anything else that it is told --------------------

    def send(self, dest: Route, message: m.Message) -> None:
        """Queue a message."""
        if self.notes and dest == CONTROL:
            self._tell_notes()
        super().send(dest, message)

    def _send_release(self, rows: list[tuple[Key, int]]) -> None:
        if self.notes and not self.unfenced:
            self.freed += rows
        else:
            super()._send_release(rows)

    def _tell_notes(self) -> None:
        notes, freed, self.notes, self.freed, self.notes_at = self.notes, self.freed, [], [], float("inf")
        self.untold.clear()
        if notes:
            self.told_at = self.clock
        start = 0
        for end in range(1, len(notes) + 1):
            if end == len(notes) or notes[end].fn != notes[start].fn:
                rows = tuple([note.rows[0] for note in notes[start:end]])
                super().send(CONTROL, m.SubmitEarly(notes[start].fn, rows))
                start = end
        if freed:
            super().send(CONTROL, m.Release(tuple(freed)))

    def _mind_notes(self, now: float) -> None:
        """End of a turn: the broker is told when it is time."""
        if self.notes_at == float("inf"):
            self.notes_at = now + limits.LANE_NOTES
        elif now >= self.notes_at:
            self._tell_notes()

    # --- lanes come and go -----------------------------------------------------------------------------

    def lone_task_is_out(self) -> bool:
        """Is the early copy of a result on its way?"""
        return self.early is not None

    def _ask_for_lane(self) -> None:
        self.alone += 1
        if self.alone >= self.ask_after and PEER in self.fetcher.paths:
            self.alone = 0
            self.ask_after = min(2 * self.ask_after, limits.LANE_AFTER_MAX)
            self.send(CONTROL, m.Lane("", 0, 0))

    def _lane_works(self, lane: Lane) -> bool:
        """May the next task go by the lane? One that has no more attempts, or does not work well, is given up."""
        if self.early is not None:
            entry = self.early[1]
            self.early = None
            outcome = entry.outcome
            if type(outcome) is not tuple:  # let go of while the worker had it: it may run on for long
                self._leave_lane(lane)
                return False
            if entry.status != ERROR and outcome[3] is not None:
                lane.misses += 1
        if lane.misses >= limits.LANE_MISSES or lane.next >= lane.end or lane.link.state == CLOSED:
            self._leave_lane(lane)
            return False
        return lane.link.state == OPEN and lane.next < lane.until

    def _leave_lane(self, lane: Lane) -> None:
        """No more submissions by this lane; also the acknowledgement that it is over."""
        self.lane = None
        self.send(CONTROL, m.Lane("", lane.first, lane.next))
        if lane.next - lane.first >= limits.LANE_PROVEN:
            self.ask_after = limits.LANE_AFTER

    def _lane_told(self, message: m.Lane, now: float) -> None:
        """The broker grants a lane, extends it, or takes it away."""
        session, first, until = message
        lane = self.lane
        if lane is not None and lane.first == first:
            if session:
                lane.until = until
            else:
                self._leave_lane(lane)
        elif session:
            link = self.fetcher.links.peer(session)
            if link is None or lane is not None or PEER not in self.fetcher.paths:
                self.send(CONTROL, m.Lane("", first, first))
                return
            self.lane = Lane(link, first, until)
            self.fetcher.probes.consider(link, now)

    def _done_early(self, route: Route, message: m.DoneEarly, now: float) -> None:
        """The worker's own word that the task is done; what the broker says of it later changes nothing."""
        early = self.early
        if early is None or message.attempt != early[0] or message.key != early[1].key or route != early[2]:
            return
        self.early = None
        if self.lane is not None:
            self.lane.misses = 0
        if message.untold and self.notes and self.notes[-1].rows[0][2] == message.key:
            self.untold.add(message.key)
        if self.entries.get(message.key) is early[1]:
            row = (message.key, message.attempt, message.nbytes, message.value, (), message.type)
            self._finished(m.Finished((row,)), now)

    def _forget_lane(self) -> None:
        """Another broker, or one that knows nothing of this session."""
        self.lane = self.early = None
        self.notes, self.freed, self.notes_at = [], [], float("inf")
        self.untold.clear()
        self.alone, self.ask_after = 0, limits.LANE_AFTER

    def _define(self, work: Work) -> None:
        raise NotImplementedError

    def _finished(self, message: m.Finished, now: float) -> None:
        raise NotImplementedError


# --- the worker's end ----------------------------------------------------------------------------------


def run_early(machine: WorkerMachine, route: Route, message: m.RunEarly, now: float) -> None:
    """A client's own copy of an order of the broker's. Where it is of no use it is ignored: the order follows."""
    token, fn, attempt, key, args, over = message
    if not compare_digest(token.encode(), machine.token.encode()):
        machine.store.refuse(route)
        return
    lane = attempt >> limits.LANE_BITS
    for settled in over:
        entry = machine.store.get(settled)
        if entry is not None and entry.attempt >> limits.LANE_BITS == lane:
            machine.reports.drop(settled)
            machine.store.drop(settled, now)
    function = machine.functions.get(fn)
    seen = machine.lanes.get(lane)
    if seen is None or attempt in seen or function is None or not function.known:
        return
    if key in machine.tasks or key in machine.inputs.table or machine.store.get(key) is not None:
        return
    machine.run(m.Run(fn, ((key, attempt, LAST, 2, args, ()),)), now)  # a large result may go by shared memory
    machine.tasks[key].early = route


def lane_told(machine: WorkerMachine, message: m.Lane, now: float) -> None:
    """A lane begins, or is over: what was begun by it and is nobody's is not to be."""
    session, first, until = message
    lane = first >> limits.LANE_BITS
    if session:
        machine.lanes[lane] = set()
    elif machine.lanes.pop(lane, None) is not None:
        for task in list(machine.tasks.values()):
            if task.attempt >> limits.LANE_BITS == lane and task.attempt >= until:
                machine.remove(task, now)
