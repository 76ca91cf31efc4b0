"""Writes a plan to the ledger: its calls, what they wait for, its tasks, and which of them the sweep needs."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence

import sqlalchemy as sa

from creditgrid.core.plan import Fate, Known, Plan, PlannedCell, PlannedTask
from creditgrid.core.states import State
from creditgrid.service.ledger import transitions
from creditgrid.service.ledger.queries import stage_states, task_states
from creditgrid.service.ledger.tables import NEVER_RUN, chunks, new_task

CELLS_AT_ONCE = 1000
KEPT: Mapping[Fate, Container[str | None]] = {
    Fate.NEW: (),
    Fate.SHARED: (State.PENDING,),
    Fate.CACHED: (State.PENDING, State.SUCCEEDED, State.CACHED),
}
"""Stage states kept when a sweep requests the stage again."""


class PlanWriter:
    """Writes the plan of one sweep.

    Cells with an index in ``redo`` exist, and are planned again.
    """

    def __init__(self, connection: sa.Connection, sweep: str, *, redo: Container[int] = ()) -> None:
        self._connection, self._sweep, self._redo = connection, sweep, redo
        self._ids: dict[int, int] = {}  # the plan's number of a call → the ledger's

    def write(self, plan: Plan, cells: Iterable[PlannedCell]) -> int:
        """Write these cells of the plan and the stages below them; returns the number of cells."""
        total = 0
        for piece in chunks(cells, CELLS_AT_ONCE):
            total += len(piece)
            self._write_cells(piece)
        self._write_stages(plan.stages())
        transitions.size_calls(
            self._connection, {self._ids[call.number]: (call.size, sorted(call.waits_for)) for call in plan.calls}
        )
        return total

    def _write_cells(self, cells: Sequence[PlannedCell]) -> None:
        calls = self._write_tasks([cell.planned for cell in cells])
        rows = [{"idx": cell.index, **self._need(cell.planned, calls)} for cell in cells]
        again = [cell.index for cell in cells if cell.index in self._redo]
        transitions.create_cells(self._connection, self._sweep, rows, again)

    def _write_stages(self, planned: Sequence[PlannedTask]) -> None:
        needed = [item for item in planned if item.fate is not Fate.UNNEEDED]
        calls = self._write_tasks(needed, remembered=True)
        self._remember([item for item in planned if item.fate in (Fate.CACHED, Fate.UNNEEDED)])
        known = stage_states(self._connection, self._sweep)
        fresh = [item for item in needed if known.get(item.task.key) not in KEPT[item.fate]]
        again = {item.task.key for item in fresh} & known.keys()
        rows = [self._need(item, calls) for item in fresh]
        transitions.create_stages(self._connection, self._sweep, rows, again)

    def _need(self, item: PlannedTask, calls: Mapping[str, int]) -> dict[str, object]:
        return {
            "sweep": self._sweep,
            "key": item.task.key,
            "call": calls.get(item.task.key),
            "state": State.CACHED if item.fate is Fate.CACHED else State.PENDING,
        }

    def _write_tasks(self, planned: Sequence[PlannedTask], *, remembered: bool = False) -> Mapping[str, int]:
        """Write the new tasks; returns the call of each open task.

        Args:
            remembered: tasks that count as absent may have a row (see ``_remember``), which the new one replaces.
        """
        new = [item for item in planned if item.fate is Fate.NEW]
        calls = {item.task.key: self._call(item) for item in new}
        rows = [new_task(item.task, calls[item.task.key]) for item in new]
        again = [item.task.key for item in new if remembered or item.known is not Known.ABSENT]
        transitions.create_tasks(self._connection, rows, again)
        shared = [item.task.key for item in planned if item.fate is Fate.SHARED]
        return calls | {key: call for key, (_, call) in task_states(self._connection, shared).items()}

    def _remember(self, planned: Sequence[PlannedTask]) -> None:
        """Write the stages that no call of this ledger computes, so that a lost artifact can be computed again."""
        known = task_states(self._connection, [item.task.key for item in planned])
        rows = [
            {
                **new_task(item.task, NEVER_RUN),
                "state": State.SUCCEEDED if item.fate is Fate.CACHED else State.CANCELLED,
            }
            for item in planned
            if item.task.key not in known
        ]
        transitions.remember_tasks(self._connection, rows)

    def _call(self, item: PlannedTask) -> int:
        assert item.call is not None, "a new task has a call"
        if item.call not in self._ids:
            self._ids[item.call] = transitions.create_call(self._connection, self._sweep, item.task.kind)
        return self._ids[item.call]
