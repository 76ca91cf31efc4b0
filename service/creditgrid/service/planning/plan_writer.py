"""Writes a plan to the ledger, a chunk in each transaction, so that nobody waits for a long one.

Until the last transaction nothing of the plan can be seen: its sweep is hidden, and its calls do not run. The last one
shows it whole. What was written of a plan that does not come to its end (the spec is refused, the client has gone, the
service died) is undone by ``discard``.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeAlias, TypeVar

import sqlalchemy as sa

from creditgrid.core.experiments.registry import registry
from creditgrid.core.naming import Chunk, NamedTask
from creditgrid.core.plan import Fate, Found, Known, Lookup, Plan, Planned, PlannedCall, Step
from creditgrid.core.states import State
from creditgrid.service.ledger import transitions
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.queries import call_states, task_states
from creditgrid.service.ledger.tables import CELLS
from creditgrid.service.planning.read_ahead import ReadAhead

Published = TypeVar("Published")
Item = TypeVar("Item")
LONGEST_TRANSACTION_S = 0.05
"""A transaction takes no further chunk after so long."""
LookUp: TypeAlias = Callable[[sa.Connection, Sequence[NamedTask]], Mapping[str, Found]]


class PlanWriter:
    """Writes one plan under the id of a hidden sweep.

    Args:
        ledger: where to.
        planning: a lock that each transaction holds.
        look_up: what is known of tasks.
        sweep: the id.
        check: called before each transaction; what it raises ends the plan.
    """

    def __init__(
        self, ledger: Ledger, planning: threading.Lock, look_up: LookUp, sweep: str, check: Callable[[], None]
    ) -> None:
        self._ledger, self._planning, self._look_up = ledger, planning, look_up
        self._sweep, self._check = sweep, check
        self._plan = Plan(registry().kinds)
        self._replaced: set[str] = set()  # keys of tasks that the ledger had before
        self._started = False
        self.cells = 0
        """Cells written so far."""

    def write(
        self,
        chunks: ReadAhead[Chunk],
        create: Callable[[sa.Connection], None],
        publish: Callable[[sa.Connection, int], Published],
    ) -> Published | None:
        """Write all chunks; returns what ``publish`` returns, or None if there is no chunk.

        Args:
            chunks: of the naming.
            create: writes the hidden sweep, in the first transaction.
            publish: shows the plan, in the last transaction; takes the number of cells.

        Raises:
            SpecError: the spec is refused.
        """
        left: deque[Sequence[int]] | None = None
        rest = _with_last(chunks)
        for chunk, last in rest:
            with self._transaction(create, durable=last) as (connection, lookup):
                self._add(connection, self._plan.add(chunk, lookup))
                if last:
                    left = deque(self._plan.left())
                    if left:
                        self._add(connection, self._plan.add_left(left.popleft(), lookup))
                    if not left:
                        return publish(connection, self.cells)
                for more in self._while_nobody_waits(rest, chunks):
                    self._add(connection, self._plan.add(more, lookup))
        if not self._started:
            return None
        if left is None:
            left = deque(self._plan.left())
        while True:
            with self._transaction(create, durable=len(left) <= 1) as (connection, lookup):
                if left:
                    self._add(connection, self._plan.add_left(left.popleft(), lookup))
                if not left:
                    return publish(connection, self.cells)

    def _while_nobody_waits(self, rest: Iterator[tuple[Chunk, bool]], chunks: ReadAhead[Chunk]) -> Iterator[Chunk]:
        """Further chunks for the same transaction, which writes the pages that they share once."""
        end = time.monotonic() + LONGEST_TRANSACTION_S
        while chunks.ready and not self._ledger.awaited and time.monotonic() < end:
            for chunk, _ in itertools.islice(rest, 1):
                yield chunk

    def discard(self) -> None:
        """Undo what was written of a plan that does not come to its end."""
        if self._started:
            discard(self._ledger, self._sweep, self._replaced)

    @contextmanager
    def _transaction(
        self, create: Callable[[sa.Connection], None], *, durable: bool
    ) -> Iterator[tuple[sa.Connection, Lookup]]:
        self._check()
        with self._planning, self._ledger.write(durable=durable) as connection:
            if not self._started:
                create(connection)
            yield connection, lambda tasks: self._look_up(connection, tasks)
        self._started = True

    def _add(self, connection: sa.Connection, step: Step) -> None:
        if self._plan.refused:  # the rest is placed only to find all faults
            return
        new = [call for call in step.calls if call.id is None]
        grown = {_id(call): (call.size, call.work()) for call in step.calls if call.id is not None}
        planned = [(call.kind, call.size, call.level, call.work()) for call in new]
        made = transitions.create_calls(connection, self._sweep, planned)
        for call, number in zip(new, made, strict=True):
            call.id = number
        transitions.grow_calls(connection, grown)
        placed = [*(planned for _, planned in step.cells), *step.stages]
        self._create_tasks(connection, placed, {item.task.key for item in step.stages})
        transitions.add_waits(connection, {_id(call): _new_waits(call) for call in step.calls})
        self._create_rows(connection, step, placed)
        self.cells += len(step.cells)

    def _create_tasks(self, connection: sa.Connection, placed: Sequence[Planned], stages: Container[str]) -> None:
        new = [item for item in placed if item.fate is Fate.NEW]
        created = [
            (item.task.key, item.task.kind, _ledger_call(item), item.task.params, item.task.shared) for item in new
        ]
        # A stage that counts as absent may have a row as well: it was remembered.
        again = [item.task.key for item in new if item.task.key in stages or item.known is not Known.ABSENT]
        self._replaced |= transitions.create_tasks(connection, created, again)
        # Remember the stages that no call of this ledger computes: when an artifact is lost, it can be computed again.
        kept = {item.task.key: item for item in placed if item.fate in (Fate.CACHED, Fate.UNNEEDED)}
        kept = {key: item for key, item in kept.items() if key in stages}
        known = task_states(connection, list(kept))
        ended = {Fate.CACHED: State.SUCCEEDED, Fate.UNNEEDED: State.CANCELLED}
        rest = [item for key, item in kept.items() if key not in known]
        transitions.remember_tasks(
            connection,
            [(i.task.key, i.task.kind, i.task.params, i.task.shared, ended[i.fate]) for i in rest],
        )

    def _create_rows(self, connection: sa.Connection, step: Step, placed: Sequence[Planned]) -> None:
        """The cells and stages of the sweep, and how many there are."""
        states = call_states(connection, {item.call for item in placed if isinstance(item.call, int)})
        shown, opened = Counter[tuple[str, str]](), Counter[tuple[str, int]]()

        def row(item: Planned, kind: str) -> tuple[str, int | None, State]:
            if item.fate is Fate.CACHED:
                shown[kind, State.CACHED] += 1
                return item.task.key, None, State.CACHED
            call = _ledger_call(item)
            shown[kind, states.get(call, State.PENDING)] += 1
            opened[kind, call] += 1
            return item.task.key, call, State.PENDING

        cells = [(index, *row(planned, CELLS)) for index, planned in step.cells]
        stages = [row(item, item.task.kind) for item in step.stages if item.fate is not Fate.UNNEEDED]
        transitions.create_cells(connection, self._sweep, cells)
        transitions.create_stages(connection, self._sweep, stages)
        transitions.count_rows(connection, self._sweep, shown, opened)


def discard(ledger: Ledger, sweep: str, kept: Container[str]) -> None:
    """Undo what was written of a hidden plan, in short transactions.

    Args:
        kept: keys of its tasks that the ledger had before.
    """
    done = False
    while not done:
        with ledger.write(durable=False) as connection:
            done = transitions.discard_plan(connection, sweep, kept)


def _ledger_call(item: Planned) -> int:
    """The call that computes an open task."""
    if isinstance(item.call, PlannedCall):
        return _id(item.call)
    assert item.call is not None, "an open task has a call"
    return item.call


def _id(call: PlannedCall) -> int:
    assert call.id is not None, "a call is created before its tasks"
    return call.id


def _new_waits(call: PlannedCall) -> list[str]:
    """The keys that the call waits for, without those that are written."""
    start, call.written = call.written, len(call.waits_for)
    return list(itertools.islice(call.waits_for, start, None))


def _with_last(items: Iterable[Item]) -> Iterator[tuple[Item, bool]]:
    """Each item, and whether it is the last."""
    rest = iter(items)
    for item in rest:
        before = item
        for after in rest:
            yield before, False
            before = after
        yield before, True
