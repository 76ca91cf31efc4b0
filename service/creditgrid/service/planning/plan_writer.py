"""From a plan to the ledger: its calls, what they wait for, its tasks, and which of them the sweep needs."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Mapping, Sequence

import sqlalchemy as sa

from creditgrid.core.plan import Fate, Known, Plan, PlannedCell, PlannedTask
from creditgrid.core.states import State
from creditgrid.service.ledger import tables
from creditgrid.service.ledger.tables import dump_task

CELLS_AT_ONCE = 1000
STAND: Mapping[Fate, Container[str | None]] = {
    Fate.NEW: (),
    Fate.SHARED: (State.PENDING,),
    Fate.CACHED: (State.PENDING, State.SUCCEEDED, State.CACHED),
}
"""What is told of a stage stands, where its sweep asks for it again and it is not to be computed anew."""
NEVER_RUN = 0
"""The call of a task that this ledger knows of and has never run."""


class PlanWriter:
    """Writes a plan: calls, what they wait for, tasks, and what the sweep needs of them.

    Cells with an index in ``redo`` exist, and begin anew.
    """

    def __init__(self, connection: sa.Connection, sweep: str, *, redo: Container[int] = ()) -> None:
        self._connection, self._sweep, self._redo = connection, sweep, redo
        self._ids: dict[int, int] = {}  # the plan's number of a call → the ledger's

    def write(self, plan: Plan, cells: Iterable[PlannedCell]) -> int:
        """Write these cells of the plan, and what they stand on; returns how many there were."""
        total, rest = 0, iter(cells)
        while piece := list(itertools.islice(rest, CELLS_AT_ONCE)):
            total += len(piece)
            self._write_cells(piece)
        self._write_stages(plan.stages())
        rows = [{"call": self._ids[call.number], "key": key} for call in plan.calls for key in sorted(call.waits_for)]
        tables.insert_many(self._connection, tables.waits, rows)
        if plan.calls:
            size = tables.calls.update().where(tables.calls.c.id == sa.bindparam("made"))
            self._connection.execute(
                size.values(size=sa.bindparam("tasks"), waiting=sa.bindparam("keys")),
                [
                    {"made": self._ids[call.number], "tasks": call.size, "keys": len(call.waits_for)}
                    for call in plan.calls
                ],
            )
        return total

    def _write_cells(self, cells: Sequence[PlannedCell]) -> None:
        calls = self._tasks([cell.planned for cell in cells])
        rows = [{"idx": cell.index, **self._needed(cell.planned, calls)} for cell in cells]
        if again := [{"redone": cell.index} for cell in cells if cell.index in self._redo]:
            query = tables.cells.delete().where(
                tables.cells.c.sweep == self._sweep, tables.cells.c.idx == sa.bindparam("redone")
            )
            self._connection.execute(query, again)
        tables.insert_many(self._connection, tables.cells, rows)

    def _write_stages(self, planned: Sequence[PlannedTask]) -> None:
        needed = [item for item in planned if item.fate is not Fate.UNNEEDED]
        # What was heard of and never run stands in the way of the task that will be.
        self._forget(item.task.key for item in needed if item.fate is Fate.NEW and item.known is Known.ABSENT)
        calls = self._tasks(needed)
        self._remember([item for item in planned if item.fate in (Fate.CACHED, Fate.UNNEEDED)])
        # What this sweep has made or seen already stays as it is told; what it begins anew is told anew.
        known = dict(
            self._connection.execute(
                sa.select(tables.stages.c.key, tables.stages.c.state).where(tables.stages.c.sweep == self._sweep)
            ).all()
        )
        fresh = [item for item in needed if known.get(item.task.key) not in STAND[item.fate]]
        for piece in tables.chunks(item.task.key for item in fresh if item.task.key in known):
            again = tables.stages.delete().where(tables.stages.c.sweep == self._sweep, tables.stages.c.key.in_(piece))
            self._connection.execute(again)
        tables.insert_many(self._connection, tables.stages, [self._needed(item, calls) for item in fresh])

    def _needed(self, item: PlannedTask, calls: Mapping[str, int]) -> dict[str, object]:
        return {
            "sweep": self._sweep,
            "key": item.task.key,
            "call": calls.get(item.task.key),
            "state": State.CACHED if item.fate is Fate.CACHED else State.PENDING,
        }

    def _tasks(self, planned: Sequence[PlannedTask]) -> Mapping[str, int]:
        """Write the new tasks and return the call that each open task is part of."""
        new = [item for item in planned if item.fate is Fate.NEW]
        calls = {item.task.key: self._call(item) for item in new}
        again = [item.task.key for item in new if item.known is not Known.ABSENT]
        self._forget(again)
        rows = [
            tables.task_row(item.task.key, item.task.kind, calls[item.task.key], dump_task(item.task)) for item in new
        ]
        tables.insert_many(self._connection, tables.tasks, rows)
        for piece in tables.chunks(again):  # calls that saw it fail, and have not begun, wait for it once more
            tables.recount(self._connection, piece)
        for piece in tables.chunks(item.task.key for item in planned if item.fate is Fate.SHARED):
            found = self._connection.execute(
                sa.select(tables.tasks.c.key, tables.tasks.c.call).where(tables.tasks.c.key.in_(piece))
            )
            calls.update((row.key, row.call) for row in found)
        return calls

    def _forget(self, keys: Iterable[str]) -> None:
        for piece in tables.chunks(keys):
            self._connection.execute(tables.tasks.delete().where(tables.tasks.c.key.in_(piece)))

    def _remember(self, planned: Sequence[PlannedTask]) -> None:
        """Note stages that this ledger has not seen made: those in the store, and those that nothing needs by now.

        Should an artifact be lost later, it can be made again from what is noted here.
        """
        for piece in tables.chunks(item.task.key for item in planned):
            known = set(self._connection.scalars(sa.select(tables.tasks.c.key).where(tables.tasks.c.key.in_(piece))))
            unseen = [item for item in planned if item.task.key in set(piece) - known]
            rows = [
                {
                    **tables.task_row(item.task.key, item.task.kind, NEVER_RUN, dump_task(item.task)),
                    "state": State.SUCCEEDED if item.fate is Fate.CACHED else State.CANCELLED,
                }
                for item in unseen
            ]
            tables.insert_many(self._connection, tables.tasks, rows)

    def _call(self, item: PlannedTask) -> int:
        assert item.call is not None
        if item.call not in self._ids:
            row = self._connection.execute(
                tables.calls.insert().values(sweep=self._sweep, kind=item.task.kind, state=State.PENDING, size=0)
            )
            self._ids[item.call] = int(row.inserted_primary_key[0])  # type: ignore[index]
        return self._ids[item.call]
