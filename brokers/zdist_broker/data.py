"""Where data lies: what clients hold, copies on workers, scatter, and what happens when copies are gone. PURE."""

from __future__ import annotations

from zdist.errors import ProtocolError
from zdist.limits import AHEAD_MICROS, HEARTBEAT, MAX_KEY, MAX_NAMES, MAX_REASON, MAX_TEXT, PLACE_FAN_OUT, PLACE_SILENT
from zdist.protocol.fields import DATA
from zdist.protocol.messages import (
    Cancelled,
    Done,
    Drop,
    Held,
    Hold,
    Locate,
    Lost,
    Missing,
    NoCopy,
    Place,
    Rejected,
    Replicate,
    Returned,
    Seceded,
    Subscribe,
    WorkerDied,
)
from zdist_broker.intake import UNKNOWN
from zdist_broker.lifecycle import Lifecycle
from zdist_broker.parse import fit_key, subscription
from zdist_broker.placement import Placement
from zdist_broker.recovery import Recovery, is_stub
from zdist_broker.state import (
    FAILED,
    MEMORY,
    RELEASED,
    Client,
    Node,
    Placing,
    Tables,
    Task,
    Trouble,
    Worker,
)
from zdist_broker.untaken import note, settle
from zdist_broker.withdrawing import unplace


def _other(task: Task, attempt: int, nbytes: int) -> bool:
    """Whether a key of data is known for other data. Equal content may have other bytes, which replace those that are
    gone."""
    if is_stub(task):
        return False
    return task.attempt != attempt or (task.nbytes != nbytes and (task.state == MEMORY or not attempt))


class Data:
    """Handlers for copies of data and for workers' comings and goings."""

    def __init__(self, tables: Tables, placement: Placement, lifecycle: Lifecycle, recovery: Recovery) -> None:
        self.tables = tables
        self.recovery = recovery
        self.placement = placement
        self.lifecycle = lifecycle
        self.next = 0  # first worker that the next placing begins with
        self.look_at = 0.0  # when copies that were asked for are looked at

    # --- held by clients, copied to workers ------------------------------------------------------------

    def hold(self, client: Client, message: Hold, now: float) -> None:
        tables = self.tables
        for key, attempt, nbytes, kind in message.rows:
            attempt = attempt if attempt >= DATA else 0
            task = tables.tasks.get(key)
            settle(client, (key,))
            self.recovery.take(key, None)
            if task is None:
                unfit = fit_key(key) or ("" if nbytes >= 0 else f"its data cannot have {nbytes} bytes")
                if unfit:
                    tables.post(client, Rejected, (key[:MAX_KEY], unfit))
                    continue
                task = tables.tasks[key] = Task(key, None, b"", (), None, 0, MEMORY, ())
                task.attempt, task.nbytes, task.type = attempt, nbytes, kind[:MAX_KEY]
            elif task.fn is not None or _other(task, attempt, nbytes):
                reason = "the key is in use for " + ("a task" if task.fn is not None else "other data")
                note(client, key, True)
                tables.post(client, Rejected, (key, reason))
                if key not in client.held:  # if its future is gone by then, it is kept there for others
                    tables.post(client, Drop, key)
                continue
            else:
                task.state = MEMORY  # also data that had been released, of which others were made
                task.attempt, task.nbytes, task.type = attempt, max(nbytes, 0), kind[:MAX_KEY]
            if key not in client.held:
                tables.add_holder(task, client)
            if key not in client.wants:
                task.who = (*task.who, client) if task.who else client.alone
            client.wants[key] = message.gen

    def place(self, client: Client, message: Place, now: float) -> None:
        workers = frozenset(message.workers[:MAX_NAMES])
        for key in message.keys:
            task = self.tables.tasks.get(key)
            if task is None or task.state == RELEASED:
                self.tables.post(client, Cancelled, (key[:MAX_KEY], UNKNOWN, 0))
                continue
            if task.state != MEMORY or not task.holders or task.lives:
                self.tables.ignored += 1
                continue
            self.copy(task, workers, max(message.copies, 0), handed=client in task.holders)

    def copy(self, task: Task, workers: frozenset[str], copies: int, *, handed: bool = False) -> None:
        """Have data in memory copied to so many of these workers (0: all); none are named: to any."""
        placing = self.tables.placing.get(task.key)
        if placing is None:
            placing = self.tables.placing[task.key] = Placing(task, workers, copies)
        else:  # it is being copied for another reason: the wider wish covers both
            both = placing.allowed | workers
            placing.allowed = both if placing.allowed and workers and len(both) <= MAX_NAMES else frozenset()
            placing.copies = copies and placing.copies and max(copies, placing.copies)
        placing.handed |= handed
        self.advance(placing)

    def advance(self, placing: Placing) -> None:
        """Ask for the copies that are missing, a few from each holder at a time, or finish."""
        task, allowed, targets = placing.task, placing.allowed, placing.targets
        holders = sum(isinstance(h, Worker) for h in task.holders)
        there = [
            w
            for w in self.tables.workers.values()
            if w.subscribed and not w.leaving and (not allowed or w.name in allowed or w.address in allowed)
        ]
        if not there or not task.holders:
            return
        wanted = min(placing.copies or len(there), len(there))
        have = sum(task.key in w.held for w in there)
        if have >= wanted:
            return self._placed(placing)
        more = min(wanted - have, PLACE_FAN_OUT * max(holders, 1)) - max(0, len(targets) - placing.silent)
        if more <= 0:
            return
        start = self.next % len(there)
        for worker in there[start:] + there[:start]:
            if task.key not in worker.held and worker not in targets:
                self.lifecycle.replicate(placing, worker)
                self.next += 1
                more -= 1
                if not more:
                    break

    def _placed(self, placing: Placing) -> None:
        tables, task = self.tables, placing.task
        del tables.placing[task.key]
        clients = [h for h in task.holders if isinstance(h, Client)] if placing.handed else []
        task.holders = tuple(h for h in task.holders if h not in clients)
        for client in task.who:
            tables.finished(client, task)
        for holder in clients:  # after Finished, by which it knows that the data is elsewhere
            del holder.held[task.key]
            tables.post(holder, Drop, task.key)

    def tick(self, now: float) -> None:
        """Who was asked for a copy may be silent for long (a task holds its interpreter): then others are asked too."""
        if not self.tables.placing or now < self.look_at:
            return
        self.look_at = now + HEARTBEAT
        for placing in list(self.tables.placing.values()):
            placing.silent = sum(now - worker.seen > PLACE_SILENT for worker in placing.targets)
            if placing.silent:
                self.advance(placing)

    def deadline(self) -> float | None:
        """When `tick` is needed."""
        return self.look_at if self.tables.placing else None

    def advance_all(self) -> None:
        """Workers have come or gone that could take copies."""
        for placing in list(self.tables.placing.values()):
            self.advance(placing)

    # --- copies on workers ----------------------------------------------------------------------------

    def held(self, peer: Worker | Client, message: Held, now: float) -> None:
        for key, attempt, nbytes, kind in message.rows:
            task = self.tables.tasks.get(key)
            if key in peer.held or (isinstance(peer, Worker) and key in peer.withdrawn):
                continue
            if isinstance(peer, Worker) and task is not None and task.worker is peer and task.attempt == attempt:
                done = Done(((key, attempt, task.cost, nbytes, None, kind),))  # before it was told of Adopt
                self.lifecycle.done(peer, done, now)
                continue
            if (task is None or is_stub(task)) and self.recovery.keep(peer, (key, attempt, nbytes, kind), now):
                continue
            if (
                task is None
                or task.state != MEMORY
                or task.attempt != attempt
                or task.lives  # what others fetched is a handle; the actor is where it was made
                or not (task.who or task.users)
                or not (task.holders or task.value is not None)
                or (not attempt and nbytes != task.nbytes)  # other data has had this name
            ):
                self.lifecycle.stale(peer, key, task)
                continue
            self.tables.add_holder(task, peer)
            placing = self.tables.placing.get(key)
            if placing is not None and isinstance(peer, Worker):
                placing.targets.pop(peer, None)
                placing.silent = 0  # it may have been one of these
                self.advance(placing)

    def missing(self, peer: Worker | Client, message: Missing, now: float) -> None:
        """A peer could not have keys from holders that it was told of: those hold them no longer."""
        tables = self.tables
        for key, sessions in message.rows:
            task = tables.tasks.get(key)
            if task is None:
                if isinstance(peer, Client):
                    tables.post(peer, Cancelled, (key[:MAX_KEY], UNKNOWN, 0))
                continue
            placing = tables.placing.get(key)
            fetching = isinstance(peer, Worker) and placing is not None and peer in placing.targets
            once = task.fn is None or task.lives  # nobody can make it again
            itself = once and peer in task.holders and peer.session in sessions
            if not fetching and not itself and not self._concerns(peer, task):
                tables.ignored += 1
                continue
            if placing is not None and isinstance(peer, Worker):
                placing.targets.pop(peer, None)
            gone = [h for h in task.holders if h.session in sessions] if task.state == MEMORY else []
            if once and len(gone) == len(task.holders) and task.value is None:  # that may be old news of the last copy
                for asked in [h for h in gone if isinstance(h, Worker) and h is not peer]:
                    gone.remove(asked)
                    tables.post(asked, Replicate, (key, task.attempt, task.nbytes, asked.sessions))
            for holder in gone:
                tables.remove_holder(task, holder, tell=False)
            if gone and not task.holders and task.value is None:
                names = ", ".join(h.name for h in gone)
                self.lifecycle.lost([task], f"it could not be had from {names} any more")
            for holder in gone:
                if task.state == MEMORY and isinstance(holder, Client) and key in holder.wants:
                    tables.finished(holder, task)  # it is elsewhere now
                tables.post(holder, Drop, key)
            if fetching:
                if key in tables.placing and placing is not None:
                    self.advance(placing)
                if placing is None or peer not in placing.targets:
                    tables.post(peer, Drop, key)
            if isinstance(peer, Worker):  # one that was asked for a copy may need it for a task as well
                if self._concerns(peer, task):
                    row = self.placement.located(task, peer) if task.state == MEMORY else (key, task.nbytes, (), None)
                    tables.post(peer, Locate, row)
            elif task.state == MEMORY or task.state == FAILED:
                self.lifecycle.announce(peer, task)
            elif key in peer.wants and not gone:  # else it has been told by now
                tables.post(peer, Lost, key)

    def no_copy(self, worker: Worker, message: NoCopy, now: float) -> None:
        """Copies that were ordered, of results that their holders cannot pickle: nobody will have them."""
        for key, text in message.rows:
            task, placing = self.tables.tasks.get(key), self.tables.placing.get(key)
            if task is None or placing is None or worker not in placing.targets:
                self.tables.ignored += 1
                continue
            task.trouble = task.trouble or Trouble()
            task.trouble.stuck = (task.attempt, text[:MAX_REASON])
            del placing.targets[worker]
            unplace(self.tables, key)

    def _concerns(self, peer: Worker | Client, task: Task) -> bool:
        if isinstance(peer, Client):
            return task.key in peer.wants
        return any(d.worker is peer for d in task.dependents or ())

    # --- workers --------------------------------------------------------------------------------------

    def subscribe(self, worker: Worker, message: Subscribe, now: float) -> None:
        try:
            message = subscription(message)
        except ValueError as error:
            raise ProtocolError(f"a subscription that cannot be taken: {error}") from None
        used = {name: worker.resources[name] - worker.free.get(name, 0.0) for name in worker.resources}
        worker.threads = message.threads
        worker.tags = message.tags
        worker.resources = message.resources
        worker.free = {name: amount - used.get(name, 0.0) for name, amount in message.resources.items()}
        worker.full = message.paused
        worker.paused = message.paused or worker.leaving or not worker.threads
        if message.paused and worker.subscribed:
            self.placement.take_all_back(worker)
        worker.subscribed = True
        worker.budget = AHEAD_MICROS * worker.threads
        self.placement.fit(worker)
        self.advance_all()

    def returned(self, worker: Worker, message: Returned, now: float) -> None:
        if message.rows:
            worker.asked_back = None
        for key, attempt in message.rows:
            task = worker.assigned.get(key)
            if task is not None and task.attempt == attempt:
                self.placement.requeue(task)
            else:
                self.tables.ignored += 1

    def seceded(self, worker: Worker, message: Seceded, now: float) -> None:
        task = worker.assigned.get(message.key)
        if task is not None and task.attempt == message.attempt:
            self.placement.secede(task, worker, message.back)
        else:
            self.tables.ignored += 1

    def worker_died(self, node: Node, message: WorkerDied, now: float) -> Worker | None:
        """The worker to be taken out of the tables, after its running tasks have been charged with its death."""
        worker = self.tables.workers.get(message.worker)
        if worker is None or worker.node != node.session:
            self.tables.ignored += 1
            return None
        worker.gone = True
        text = message.text[:MAX_TEXT]
        if not message.ordered:
            where = f"worker {worker.name} on {worker.host or 'an unnamed host'}"
            how = f"exit code {message.code}" if message.code >= 0 else f"signal {-message.code}"
            for key, attempt in message.running:
                task = worker.assigned.get(key)
                if task is not None and task.attempt == attempt:
                    self.lifecycle.died(task, f"{where} ({how}){': ' if text else ''}{text}")
        return worker

    def remove(self, workers: list[Worker], reason: str) -> None:
        """These workers are gone: start what they were given elsewhere, compute again what only they held."""
        tables, reason = self.tables, reason[:MAX_REASON]
        for worker in workers:
            worker.gone = True
            del tables.workers[worker.session]
        for worker in workers:
            self.recovery.gone(worker)
            for task in list(worker.assigned.values()):
                self.placement.requeue(task)
            self.placement.fit(worker)
            for placing in tables.placing.values():
                placing.targets.pop(worker, None)
        lost: dict[Task, None] = {}
        for worker in workers:
            for task in list(worker.held.values()):
                tables.remove_holder(task, worker, tell=False)
                if not task.holders and task.value is None:
                    lost[task] = None
        if lost:
            self.lifecycle.lost(list(lost), reason)
        for fn in tables.functions.values():
            fn.workers.difference_update(w.session for w in workers)
        for peer in (*tables.clients.values(), *tables.workers.values()):
            peer.known.difference_update(w.session for w in workers)
        self.advance_all()

    def leave(self, client: Client) -> None:
        """A client is gone, and with it what it held itself; its wants have been taken off before."""
        self.recovery.gone(client)
        lost = []
        for task in list(client.held.values()):
            self.tables.remove_holder(task, client, tell=False)
            if not task.holders and task.value is None and task.state == MEMORY:
                lost.append(task)
        if lost:
            self.lifecycle.lost(lost, f"client {client.name} held it and is gone")
