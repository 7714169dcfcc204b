"""What clients ask for: functions, tasks, wants and their end. PURE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zdist.limits import MAX_KEY, MAX_REASON
from zdist.protocol.fields import DATA
from zdist.protocol.messages import (
    ANY,
    Cancel,
    Cancelled,
    Claim,
    Interrupt,
    Lost,
    Payload,
    Rejected,
    Release,
    Retry,
    Submit,
    Want,
    WhichFunction,
)
from zdist_broker.functions import DIGEST, Functions, same_bytes
from zdist_broker.heirs import Heirs
from zdist_broker.lifecycle import Lifecycle
from zdist_broker.parse import fit_key
from zdist_broker.parse import options as parse_options
from zdist_broker.placement import Placement
from zdist_broker.recovery import LAZILY, NOTHING, Recovery, is_gone, is_stub
from zdist_broker.seeking import Lacking, Sought
from zdist_broker.state import (
    ASSIGNED,
    LAZY,
    MEMORY,
    PINNED,
    PINS,
    READY,
    RELEASED,
    WAITING,
    Claimed,
    Client,
    Function,
    Tables,
    Task,
    Terms,
)
from zdist_broker.untaken import made_of, note, settle

if TYPE_CHECKING:
    from zdist_broker.sharing import State

UNKNOWN = "nobody in the cluster knows this key any more"


class Intake:
    """Handlers for the messages by which clients create, join and leave tasks."""

    def __init__(self, tables: Tables, placement: Placement, lifecycle: Lifecycle, recovery: Recovery) -> None:
        self.tables = tables
        self.recovery = recovery
        self.placement = placement
        self.lifecycle = lifecycle
        self.heirs = Heirs(tables)
        self.functions = Functions(tables)
        self.sought = Sought(tables, recovery, lifecycle)
        self.shared: State  # what clients share, which sets it

    # --- submissions --------------------------------------------------------------------------------

    def submit(self, client: Client, message: Submit, now: float) -> None:
        digest, rows = message.fn, message.rows
        fn = self.tables.functions.get(digest)
        try:
            terms = self.placement.terms_for(parse_options(message.options))
        except (ValueError, TypeError) as error:
            return self._decline(client, message, Cancelled, f"bad options: {error}")
        if fn is None:
            reason = client.refused.get(digest, "" if len(digest) == DIGEST else "no digest names its function")
            if reason:
                return self._decline(client, message, Rejected, reason)
            client.parked = (digest, [message])
            return self.tables.tell(client, WhichFunction(digest))
        if self.sought.keys:
            for row in rows:
                self.sought.drop(client, row[0])  # an earlier want of its own
        claims, untaken = client.claims, client.untaken
        lacked = [row[0] for row in rows if row[0] in untaken or row[0] in claims] if untaken or claims else ()
        if claims or self.recovery.copies or self.recovery.going:
            self._again(client, fn, message, terms)
        else:
            self._anew(client, fn, message, terms)
        for key in lacked:
            if key in client.wants:
                self._known(client, self.tables.tasks[key])

    def _anew(self, client: Client, fn: Function, message: Submit, terms: Terms) -> None:
        """A submission when all that there is is in the tables."""
        _, named, gen, _, rows = message
        tables = self.tables
        tasks, wants, alone, forget = tables.tasks, client.wants, client.alone, terms.forget
        settle(client, [row[0] for row in rows] if client.untaken else ())
        root, push, order, before = terms.root, terms.pool.push, tables.order, tables.order
        longest = MAX_KEY
        for key, args, needs in rows:
            task = tasks.get(key)
            if task is not None:
                tables.order = order  # what is explained comes next in order
                self._join(client, task, fn, named, gen, args, needs, terms)
                order = tables.order
                continue
            if not key or len(key) > longest:
                self.reject(client, key, fit_key(key))
                continue
            order += 1
            if needs:
                tables.order = order
                self._create(client, fn, key, args, needs, terms, gen)
                continue
            tasks[key] = task = Task(key, fn, args, (), terms, root + order, READY, alone)
            if forget:
                task.flags = PINNED
            wants[key] = gen
            fn.uses += 1
            push(task)
        tables.order = order
        if order != before:
            self.placement.dirty[terms.pool] = None

    def claim(self, client: Client, message: Claim, now: float) -> None:
        """What the next Submit or Want of this client speaks of."""
        client.claims = self.recovery.claims(message)

    def _again(self, client: Client, fn: Function, message: Submit, terms: Terms) -> None:
        """A submission when there may be results from the time of an earlier broker."""
        tables, recovery = self.tables, self.recovery
        claims, client.claims = client.claims, {}
        settle(client, [row[0] for row in message.rows])
        for key, args, needs in message.rows:
            task, claim = tables.tasks.get(key), claims.get(key, NOTHING)
            attempt = claim.attempt
            stub = task is not None and (is_stub(task) or (attempt is not None and is_gone(task)))
            if task is not None and not stub:
                if not self._rejoin(client, task, fn, claim, message.gen):
                    self._join(client, task, fn, message.named, message.gen, args, needs, terms, attempt is not None)
                continue
            if reason := fit_key(key):
                self.reject(client, key, reason)
                continue
            known = attempt in LAZILY or recovery.holds(key, claim) or recovery.outlived(terms, attempt)
            deps = self._deps(client, key, needs, message.gen, stubs=known)
            if deps is None:  # it may be submitted once more when they are there: what is known of it stays
                continue
            if (stub or key in needs) and recovery.leads_to(deps, key):
                self.reject(client, key, "it depends on itself")
                self.lifecycle.tidy(deps)
            elif known or stub:
                task = recovery.spec(client, fn, key, args, deps, terms, message.gen)
                if recovery.finish(task, claim):
                    self.lifecycle.announce(client, task)
                elif attempt not in LAZILY and claim.value is None:
                    task.flags |= PINNED if terms.forget else 0
                    self.lifecycle.revive(task, "its inputs were released")
            else:
                recovery.take(key, None)
                tables.order += 1
                self._create(client, fn, key, args, needs, terms, message.gen)
            if recovery.runs and (task := tables.tasks.get(key)) is not None:
                recovery.submitted(task, attempt)
        recovery.adopt(self.placement)

    def _rejoin(self, client: Client, task: Task, fn: Function, claim: Claimed, gen: int) -> bool:
        """A claim for a key that another client has submitted again, as what others were made of."""
        if task.fn is not fn or task.state != RELEASED or claim is NOTHING:
            return False
        if not self.recovery.finish(task, claim):
            if claim.attempt not in LAZILY and claim.value is None:
                return False
            task.flags |= LAZY
        self._add_want(client, task, gen)
        self.lifecycle.announce(client, task)
        return True

    def _deps(
        self, client: Client, key: str, needs: tuple[str, ...], gen: int, *, stubs: bool = False
    ) -> tuple[Task, ...] | None:
        """The tasks that this one depends on; None if one of them is gone for good, which the client is told.

        ``stubs``: it is finished, and what it was made of may be gone, or be submitted again later.
        """
        deps: list[Task] = []
        tasks = self.tables.tasks
        if client.untaken and not stubs and self._refused(client, key, needs, gen):
            return None
        for name in needs if len(needs) == 1 else dict.fromkeys(needs):
            dep = tasks.get(name)
            if dep is None and stubs and not fit_key(name):
                dep = tasks[name] = self.recovery.stub(name)
            if dep is None or (is_gone(dep) and not stubs):
                self._lacks(client, key, name, gen)
                self.lifecycle.tidy(deps)  # stubs that were made for it
                return None
            deps.append(dep)
        return tuple(deps)

    def _lacks(self, client: Client, key: str, name: str, gen: int) -> None:
        """A key that cannot be taken, for want of another."""
        note(client, key, False)
        self.tables.post(client, Cancelled, (key, f"depends on {name[:80]}, which nobody holds", gen))

    def _refused(self, client: Client, key: str, needs: tuple[str, ...], gen: int) -> bool:
        """Whether this is made of something that was not taken, and so is not taken either."""
        name = made_of(client, needs)
        if name and client.untaken[name]:
            self.reject(client, key, f"it depends on {name[:80]}, a key that is in use for another call")
        elif name:
            self._lacks(client, key, name, gen)
        return bool(name)

    def _decline(self, client: Client, message: Submit, kind: type, reason: str) -> None:
        """Take nothing of a submission."""
        client.claims = {}
        for row in message.rows:
            told = (row[0][:MAX_KEY], reason)
            self.tables.post(client, kind, (*told, message.gen) if kind is Cancelled else told)

    def reject(self, client: Client, key: str, reason: str) -> None:
        """A key that cannot be taken; of one that is no key the beginning is named."""
        note(client, key[:MAX_KEY], True)
        self.tables.post(client, Rejected, (key[:MAX_KEY], reason))

    def _create(
        self, client: Client, fn: Function, key: str, args: Payload, needs: tuple[str, ...], terms: Terms, gen: int
    ) -> None:
        """A new task, mostly one with dependencies."""
        tables = self.tables
        deps = self._deps(client, key, needs, gen)
        if deps is None:
            return
        priority = (terms.inner if deps else terms.root) + tables.order
        task = Task(key, fn, args, deps, terms, priority, WAITING, client.alone)
        if terms.forget:
            task.flags = PINNED
        tables.tasks[key] = task
        client.wants[key] = gen
        fn.uses += 1
        waiting, sound = 0, True
        for dep in deps:
            if dep.dependents is None:
                dep.dependents = {task: None}
            else:
                dep.dependents[task] = None
            if dep.state != MEMORY:
                waiting += 1
                sound = sound and dep.state < MEMORY
        if not sound:  # some input has failed, or must be computed again first
            task.state = RELEASED
            return self.lifecycle.revive(task, "its inputs were released")
        for dep in deps:
            dep.users += 1
        task.waiting = waiting
        if not waiting:
            self.placement.enqueue(task)
            return
        for dep in deps:
            if dep.state == ASSIGNED:
                self.placement.leading[dep] = None

    def _join(
        self,
        client: Client,
        task: Task,
        fn: Function,
        named: bool,
        gen: int,
        args: Payload,
        needs: tuple[str, ...],
        terms: Terms,
        known: bool = False,
    ) -> None:
        """A submission of a key that exists. ``known``: it was made under an earlier broker; one who has it from others
        may have claimed it before, and of a key that says what it is any result will do."""
        if client.untaken and not known and self._refused(client, task.key, needs, gen):
            return None
        known = (known or (named and task.attempt > 0)) and task.attempt < DATA
        if is_stub(task) or (known and (is_gone(task) or (task.fn is None and task.state == MEMORY))):
            deps = self._deps(client, task.key, needs, gen, stubs=known)
            if deps is not None and self.recovery.leads_to(deps, task.key):
                self.lifecycle.tidy(deps)
                self.reject(client, task.key, "it depends on itself")
            elif deps is not None and is_gone(task):
                self.recovery.spec(client, fn, task.key, args, deps, terms, gen)
                task.flags |= PINNED if terms.forget else 0
                self.lifecycle.revive(task, "its inputs were released")
            elif deps is not None:
                self.recovery.explain(task, fn, args, deps, terms)
                for other in task.who:  # who asked before that was known
                    if other is not client and other.session != PINS:
                        self.tables.blind.setdefault(task, {})[other] = None
                self.want_known(client, task, gen)
            return None
        if task.fn is None:
            reason = "is the key of data that is held already; use another key"
            return self.reject(client, task.key, reason)
        if not named and not (
            task.fn is fn
            and same_bytes(task.args, args)
            and [dep.key for dep in task.deps] == list(dict.fromkeys(needs))
        ):
            reason = (
                f"the key is in use for another call, of {task.fn.name}, than this one, of {fn.name}; "
                "give it another key or release the futures of the first"
            )
            return self.reject(client, task.key, reason)
        if terms.forget and (task.state < MEMORY or task.state == RELEASED):
            task.flags |= PINNED
        self.want_known(client, task, gen)

    # --- wants --------------------------------------------------------------------------------------

    def want(self, client: Client, message: Want, now: float) -> None:
        claims, client.claims = client.claims, {}
        lacking = Lacking(self.recovery)
        settle(client, message.keys)
        for key in message.keys:
            task = self.tables.tasks.get(key)
            if key in claims and (task is None or is_stub(task)):
                task = self.recovery.data(key, claims[key])
            elif (task is None or is_stub(task)) and key in self.recovery.copies and self.recovery.late(now):
                task = self.recovery.data(key, Claimed(ANY))  # nobody else has claimed it
            seeks = key not in client.wants and lacking(key, task)  # who has submitted it does that again
            if seeks and self.sought.keep(client, key, message.gen, claims.get(key), now):
                if task is not None:
                    self.heirs.asked(client, task)
                continue
            if task is None or is_gone(task):
                self.unknown(client, key, message.gen)
            else:
                self.want_known(client, task, message.gen, blind=True)
            self.sought.drop(client, key)  # under an earlier generation

    def unknown(self, client: Client, key: str, gen: int) -> None:
        """The client wants a key that is in no table."""
        reason = fit_key(key)
        if reason:
            self.reject(client, key, reason)
        else:
            self.tables.post(client, Cancelled, (key, UNKNOWN, gen))

    def _add_want(self, client: Client, task: Task, gen: int, blind: bool = False) -> None:
        if task.key not in client.wants:
            task.who = (*task.who, client) if task.who else client.alone
            if blind:  # who submits it knows how it is computed
                self.heirs.asked(client, task)
        client.wants[task.key] = gen

    def want_known(self, client: Client, task: Task, gen: int, blind: bool = False) -> None:
        """The client wants a task that exists. ``blind``: it may not know how it is computed."""
        self._add_want(client, task, gen, blind)
        if task.state == RELEASED:
            self.lifecycle.revive(task, "its inputs were released")
        else:
            self.lifecycle.announce(client, task)
        if blind:
            self._known(client, task)

    def _known(self, client: Client, task: Task) -> None:
        """Who has been told that a successor lacked something need not seek it any more."""
        if task.state <= ASSIGNED and self.recovery.began is not None:
            self.tables.post(client, Lost, task.key)

    def release(self, client: Client, message: Release, now: float) -> None:
        tasks, wants, alone, lifecycle = self.tables.tasks, client.wants, client.alone, self.lifecycle
        for key, gen in message.rows:
            if self.sought.keys:
                self.sought.settle(self, key)
            if self.shared.loose and client is not self.shared.pinner:
                self.shared.settle(key)
            if wants.get(key) != gen:
                self.tables.ignored += 1
                self.sought.drop(client, key, gen)
                continue
            del wants[key]
            task = tasks[key]
            if task.who is alone:
                task.who = ()
                if task.state == MEMORY and not task.dependents and not task.deps:
                    lifecycle.forget(task)  # what tidy would do
                    continue
                if self.tables.blind:
                    self.heirs.left(task)
            else:
                self.heirs.unwant(client, task)
            if not task.who and not task.users:
                lifecycle.tidy((task,))

    def cancel(self, client: Client, message: Cancel, now: float) -> None:
        """Drop the client's want, or with ``force`` everybody's, of the keys and of what depends on them.

        With ``force`` what runs is ended, and the process that runs it replaced.

        Dependents of a key that others want too keep it (as in dask.distributed ``cancel``).
        """
        reason = message.reason[:MAX_REASON] or f"cancelled by client {client.name}"
        seen: dict[Task, None] = {}
        stack = [(t, reason) for t in map(self.tables.tasks.get, message.keys) if t is not None]
        for key in message.keys:
            self.sought.drop(client, key)
            self.sought.settle(self, key)
            self.shared.settle(key)
        while stack:
            task, why = stack.pop()
            if task in seen:
                continue
            seen[task] = None
            if message.force:
                self.sought.end(task.key, why)
            if message.force or not task.who or task.who == client.alone:
                stack += [(dependent, f"depends on {task.key}: {reason}") for dependent in task.dependents or ()]
                task.flags &= ~PINNED
            for who in task.who if message.force else client.alone:
                gen = who.wants.pop(task.key, None)
                if gen is not None:
                    self.heirs.unwant(who, task)
                    self.tables.post(who, Cancelled, (task.key, why, gen))
        running = [(t, t.worker, t.attempt) for t in seen if t.worker is not None] if message.force else []
        self.lifecycle.tidy(seen)
        for task, worker, attempt in running:
            node = self.tables.nodes.get(worker.node)
            if node is not None and task.worker is None:
                self.tables.tell(node, Interrupt(worker.session, ((task.key, attempt),)))

    def retry(self, client: Client, message: Retry, now: float) -> None:
        self.lifecycle.retry([t for t in map(self.tables.tasks.get, message.keys) if t is not None])

    def leave(self, client: Client) -> None:
        """A client is gone: nothing is wanted for it."""
        self.heirs.gone(client)
        self.sought.gone(client)
        for key in [key for key in self.sought.keys if key in client.wants]:
            self.sought.settle(self, key)
        for key in [key for key in self.shared.loose if key in client.wants]:
            self.shared.settle(key)
        wants, client.wants = client.wants, {}
        loose = [self.tables.tasks[key] for key in wants]
        for task in loose:
            self.heirs.unwant(client, task)
        self.lifecycle.tidy(loose)
        self.functions.disown(client)
