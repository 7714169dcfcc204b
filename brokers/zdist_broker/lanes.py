"""Lanes: lone tasks that their clients send to a worker themselves. PURE.

A lane is a block of attempts, set aside for one client and one worker. The broker hears of each task as of any other,
but a little later than the worker may have: it finds the task assigned. If the early copies got lost it orders and
tells as usual, one to two ``LANE_PAUSE`` later.

A lane is open, or closing until its client has acknowledged the end (submissions may be under way), and then gone.
What the worker says of a task before its submission has come is kept with the lane.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Final

from zdist.core.machine import require
from zdist.errors import ProtocolError
from zdist.limits import LANE_BITS, LANE_CREDIT, LANE_PAUSE, LANE_QUIET, MAX_KEY, STEAL_SAMPLE
from zdist.protocol import messages as m
from zdist.protocol.messages import Done, Erred, Members, Options, Output, Payload, Seceded, Submit, WhichFunction
from zdist_broker.intake import Intake
from zdist_broker.placement import Placement
from zdist_broker.state import ASSIGNED, EARLY, MEMORY, READY, Client, Function, Tables, Task, Trouble, Worker

_DEFAULTS: Final = Options()
_KEPT: Final = 4 * LANE_CREDIT  # messages that may wait for their submissions: a task has one to three


class Lane:
    """Attempts from ``first`` to before ``until`` are the client's to use at the worker."""

    __slots__ = ("ahead", "client", "died", "first", "last", "open", "until", "used", "worker")

    def __init__(self, client: Client, worker: Worker, first: int, now: float) -> None:
        self.client = client
        self.worker = worker
        self.first = first
        self.until = first + LANE_CREDIT
        self.last = first - 1  # attempt of the newest submission that has come
        self.open = True
        self.used = now
        self.ahead: list[tuple[str, Any]] = []  # key, message: of tasks whose submissions have not come yet
        self.died: tuple[tuple[str, int], ...] = ()  # what the worker was running when it died

    @property
    def end(self) -> int:
        return self.first + (1 << LANE_BITS)

    def __repr__(self) -> str:
        return f"<lane {self.first}: {self.client.name} to {self.worker.name}{'' if self.open else ', closing'}>"


class Lanes:
    """Handlers for lanes, and the tasks that are to be confirmed or told of if nothing is heard of them soon."""

    def __init__(self, tables: Tables, placement: Placement, intake: Intake) -> None:
        self.tables = tables
        self.placement = placement
        self.intake = intake
        self.lanes: dict[int, Lane] = {}
        self.young: dict[Task, None] = {}  # adopted since the last sweep
        self.old: dict[Task, None] = {}  # and before
        self.used: dict[Lane, None] = {}  # in this turn
        self.sweep_at: float | None = None
        self.adopted = 0
        self.plain: Mapping[type, Callable[..., None]] = {}  # what handles a worker's messages; set by the machine

    @property
    def keen(self) -> dict[type, Callable[..., None]]:
        """Handlers of a worker that a lane leads to."""
        return {
            **self.plain,
            Done: self._rows(Done),
            Erred: self._rows(Erred),
            Seceded: self._seceded,
            Output: self._output,
        }

    # --- lanes come and go --------------------------------------------------------------------------

    def lane(self, client: Client, message: m.Lane, now: float) -> None:
        """A client asks for a lane, or uses one no more."""
        lane = self.lanes.get(message.first >> LANE_BITS)
        if lane is not None and lane.client is client:
            self._end(lane)
        elif not message.first and client.lane is None and not self.placement.default.live:
            self._grant(client, now)

    def _grant(self, client: Client, now: float) -> None:
        tables = self.tables
        if not tables.inline_result:  # no result is small enough for an early copy
            return
        for worker in islice(self.placement.default.free, STEAL_SAMPLE):
            if worker.count >= worker.threads:
                continue
            if worker.lane is not None:
                if worker.lane.open and now > worker.lane.used + LANE_QUIET:
                    self._close(worker.lane)
                continue
            first = ((tables.attempt >> LANE_BITS) + 1) << LANE_BITS
            lane = client.lane = worker.lane = self.lanes[first >> LANE_BITS] = Lane(client, worker, first, now)
            tables.attempt = lane.end - 1
            worker.late = []
            worker.handlers = self.keen
            tables.tell(worker, m.Lane(client.session, first, lane.until))
            if worker.session not in client.known:
                client.known.add(worker.session)
                tables.post(client, Members, worker.row)
            return tables.tell(client, m.Lane(worker.session, first, lane.until))

    def _close(self, lane: Lane) -> None:
        """No more of this; the client acknowledges."""
        if lane.open:
            lane.open = False
            self.tables.tell(lane.client, m.Lane("", lane.first, 0))

    def _end(self, lane: Lane) -> None:
        """Nothing more will come by this lane."""
        tables, client, worker = self.tables, lane.client, lane.worker
        del self.lanes[lane.first >> LANE_BITS]
        client.lane = None
        if worker.lane is not lane:  # it died before
            return
        worker.lane = None
        worker.handlers = self.plain
        for _, message in lane.ahead:  # of tasks that are nobody's
            self.plain[type(message)](worker, message, lane.used)
        for task in (*self.old, *self.young):  # while the worker still knows what it got by the lane
            if task.flags & EARLY and task.worker is worker:
                self.placement.confirm(task)
        tables.tell(worker, m.Lane("", lane.first, lane.last + 1))
        worker.late = None  # telling has sent it
        # (nothing was pending: it went first; something was: then none waited)

    def left(self, client: Client) -> None:
        """A client is gone, and what it wanted has been forgotten."""
        if client.lane is not None:
            self._end(client.lane)

    def lost(self, worker: Worker) -> None:
        """A worker is gone, and its tasks have been given to others."""
        lane, worker.lane, worker.late = worker.lane, None, None
        if lane is not None:
            lane.ahead = []
            self._close(lane)

    def died(self, worker: Worker, running: tuple[tuple[str, int], ...]) -> None:
        """It was running these, of which some may not have been submitted yet."""
        if worker.lane is not None:
            worker.lane.died = tuple(row for row in running if worker.lane.last < row[1] < worker.lane.end)

    # --- submissions --------------------------------------------------------------------------------

    def submit(self, client: Client, message: m.SubmitEarly, now: float) -> None:
        """Tasks that are on their way to the lane's worker, or done already.

        Raises:
            ProtocolError: an attempt is not one that the client may use; its task is taken as usual.
        """
        digest, rows = message
        fn = self.tables.functions.get(digest)
        if fn is None and digest not in client.refused:
            client.parked = (digest, [message])
            return self.tables.tell(client, WhichFunction(digest))
        foreign, used = "", None
        for row in rows:
            _, attempt, key, _ = row
            lane = self._lane(client, attempt)
            if lane is None:
                self._as_usual(client, digest, row, now)
                foreign = foreign or f"attempt {attempt} for {key[:MAX_KEY]}"
                continue
            used = lane
            lane.last, lane.used = attempt, now
            ahead = [said for about, said in lane.ahead if about == key]
            if ahead:
                lane.ahead = [said for said in lane.ahead if said[0] != key]
            if fn is None or key in self.tables.tasks or not 0 < len(key) <= MAX_KEY or lane.worker.gone:
                self._as_usual(client, digest, row, now)
                if (key, attempt) in lane.died and (task := self.tables.tasks.get(key)) is not None:
                    task.trouble = task.trouble or Trouble()
                    task.trouble.deaths += 1
            else:
                self._adopt(lane, fn, row)
            for said in ahead:  # of another attempt than the task's it is stale, and answered so
                self.plain[type(said)](lane.worker, said, now)
        if used is not None and used.ahead:
            self._spared(used, now)
        if foreign:
            raise ProtocolError(f"{foreign} from {client.session}, which has no such lane")

    def _spared(self, lane: Lane, now: float) -> None:
        """What the worker has reported of tasks that no submission will come of: it is stale, and answered so."""
        stale = [said for _, said in lane.ahead if type(said) in (Done, Erred) and said.rows[0][1] <= lane.last]
        if stale:
            lane.ahead = [(key, said) for key, said in lane.ahead if said not in stale]
            for said in stale:
                self.plain[type(said)](lane.worker, said, now)

    def _lane(self, client: Client, attempt: int) -> Lane | None:
        """The lane by which this client may submit the attempt next."""
        lane = self.lanes.get(attempt >> LANE_BITS)
        return lane if lane is not None and lane.client is client and lane.last < attempt < lane.until else None

    def _as_usual(self, client: Client, fn: bytes, row: tuple[int, int, str, Payload], now: float) -> None:
        gen, _, key, args = row
        self.intake.submit(client, Submit(fn, True, gen, (), ((key, args, ()),)), now)

    def _adopt(self, lane: Lane, fn: Function, row: tuple[int, int, str, Payload]) -> None:
        gen, attempt, key, args = row
        tables, placement, client, worker = self.tables, self.placement, lane.client, lane.worker
        terms = placement.terms_for(_DEFAULTS)
        self.intake.recovery.take(key, None, worker)
        tables.order += 1
        tables.tasks[key] = task = Task(key, fn, args, (), terms, terms.root + tables.order, READY, client.alone)
        client.wants[key] = gen
        fn.uses += 1
        placement.adopt(task, worker, attempt, EARLY)
        self.adopted += 1
        self.young[task] = None
        if worker.session not in fn.workers:
            placement.confirm(task)  # it cannot have been started
        self.used[lane] = None
        if lane.open and attempt >= lane.until - LANE_CREDIT // 2 and lane.until < lane.end:
            lane.until = min(lane.until + LANE_CREDIT // 2, lane.end)
            tables.tell(client, m.Lane(worker.session, lane.first, lane.until))

    def _overdue(self, task: Task) -> None:
        """Order an adopted task that is not over yet; if others keep the worker busy, the lane has no use."""
        lane, worker = self.lanes.get(task.attempt >> LANE_BITS), task.worker
        assert worker is not None
        self.placement.confirm(task)
        if lane is not None and worker.count > worker.threads:
            others = [t for t in worker.assigned.values() if t.attempt >> LANE_BITS != task.attempt >> LANE_BITS]
            if len(others) >= worker.threads:
                self._close(lane)

    # --- what a worker says, maybe before the submission has come -----------------------------------------

    def _early(self, worker: Worker, attempt: int) -> Lane | None:
        """The lane that the attempt belongs to, if its submission is still to come."""
        lane = self.lanes.get(attempt >> LANE_BITS)
        return lane if lane is not None and lane.worker is worker and lane.last < attempt < lane.until else None

    @staticmethod
    def _keep(lane: Lane | None, key: str, message: Any, most: int) -> bool:
        if lane is None or len(lane.ahead) >= most:
            return False
        lane.ahead.append((key, message))
        return True

    def _rows(self, kind: type[Done] | type[Erred]) -> Callable[..., None]:
        """Done and Erred: the rows that are of use now, and those that must wait."""
        handle = self.plain[kind]

        def rows(worker: Worker, message: Done | Erred, now: float) -> None:
            keep, early = self._keep, self._early
            now_of_use = [row for row in message.rows if not keep(early(worker, row[1]), row[0], kind((row,)), _KEPT)]  # type: ignore[arg-type]
            handle(worker, kind(tuple(now_of_use)), now)  # type: ignore[arg-type]

        return rows

    def _seceded(self, worker: Worker, message: Seceded, now: float) -> None:
        if not self._keep(self._early(worker, message.attempt), message.key, message, _KEPT // 2):
            self.plain[Seceded](worker, message, now)

    def _output(self, worker: Worker, message: Output, now: float) -> None:
        lane = worker.lane if message.key and message.key not in self.tables.tasks else None
        if not self._keep(lane, message.key, message, _KEPT // 4):
            self.plain[Output](worker, message, now)

    # --- time -----------------------------------------------------------------------------------------

    def turn(self, now: float) -> None:
        """After the turn's assignments: something may have begun to wait."""
        if self.used:
            for lane in self.used:
                if self.placement.default.live or lane.worker.paused:
                    self._close(lane)
            self.used = {}
        if self.sweep_at is None and (self.young or self.tables.lates):
            self.sweep_at = now + LANE_PAUSE

    def sweep(self, now: float) -> None:
        """What was adopted a while ago is ordered if it is not over, and told of if its client still wants it."""
        old, self.old, self.young = self.old, self.young, {}
        for task in old:
            if task.flags & EARLY:
                self._overdue(task)
            elif task.state == MEMORY:
                for client in task.who:
                    self.tables.finished(client, task)
        self.tables.drop_late()
        self.sweep_at = now + LANE_PAUSE if self.old else None

    def check(self) -> None:
        """Raise InvariantError if lanes, clients, workers and tasks contradict each other."""
        tables = self.tables
        lanes = list(self.lanes.values())
        for number, lane in self.lanes.items():
            require(lane.first >> LANE_BITS == number, f"{lane} is listed as {number}")
            require(lane.client.lane is lane and not lane.client.gone, f"{lane}: its client knows of another")
            require(lane.worker.gone or lane.worker.lane is lane, f"{lane}: its worker knows of another")
            require(not (lane.worker.gone and (lane.open or lane.ahead)), f"{lane}: its worker is gone")
            require(lane.first <= lane.last + 1 <= lane.until <= lane.end <= tables.attempt + 1, f"{lane}: attempts")
        for worker in tables.workers.values():
            require(worker.lane is None or worker.lane in lanes, f"{worker}: {worker.lane} is over")
            require((worker.late is None) == (worker.lane is None), f"{worker}: late rows without a lane")
            require(not worker.late or worker in tables.lates, f"{worker}: late rows that nobody will send")
        for client in tables.clients.values():
            require(client.lane is None or client.lane in lanes, f"{client}: {client.lane} is over")
        for task in tables.tasks.values():
            early = task.state == ASSIGNED and (task in self.young or task in self.old)
            require(early or not task.flags & EARLY, f"{task}: nobody will confirm it")
        require(self.sweep_at is not None or not self.old, "adopted tasks are never looked at")
