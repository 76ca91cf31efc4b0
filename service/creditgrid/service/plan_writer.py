"""From a plan to the ledger: its calls, what they wait for, its tasks, and which of them the sweep needs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from creditgrid.core.plan import Fate, Known, Plan, PlannedTask
from creditgrid.core.spec import SweepSpec
from creditgrid.core.states import State
from creditgrid.core.task import Task
from creditgrid.service import ledger as db


class PlanWriter:
    """Writes a plan: calls, what they wait for, tasks, and what the sweep needs of them."""

    def __init__(
        self,
        connection: sa.Connection,
        sweep: str,
        seq: int,
        spec: SweepSpec,
        *,
        redo: set[int] | None = None,
    ) -> None:
        self._connection, self._sweep, self._seq, self._spec = connection, sweep, seq, spec
        self._redo = redo
        self._ids: dict[int, int] = {}  # the plan's number of a call → the ledger's

    def write(self, plan: Plan) -> int:
        """Returns the number of cells written. With ``redo`` only those are, and they exist already."""
        total = 0
        pending: list[tuple[int, PlannedTask]] = []
        for cell in plan.cells(self._redo):
            total += 1
            pending.append((cell.index, cell.planned))
            if len(pending) >= 1000:
                self._write_cells(pending)
                pending = []
        self._write_cells(pending)
        self._write_stages(plan.stages())
        rows = [{"call": self._ids[call.number], "key": key} for call in plan.calls for key in sorted(call.waits_for)]
        db.insert_many(self._connection, db.waits, rows)
        for call in plan.calls:
            self._connection.execute(
                db.calls.update().where(db.calls.c.id == self._ids[call.number]).values(size=call.size)
            )
        return total

    def _write_cells(self, pending: Sequence[tuple[int, PlannedTask]]) -> None:
        if not pending:
            return
        calls = self._tasks([planned for _, planned in pending])
        rows = [
            {
                "sweep": self._sweep,
                "idx": index,
                "key": planned.task.key,
                "call": calls.get(planned.task.key),
                "state": State.CACHED if planned.fate is Fate.CACHED else State.PENDING,
            }
            for index, planned in pending
        ]
        if self._redo is not None:
            query = db.cells.delete().where(db.cells.c.sweep == self._sweep, db.cells.c.idx == sa.bindparam("redone"))
            self._connection.execute(query, [{"redone": index} for index, _ in pending])
        db.insert_many(self._connection, db.cells, rows)

    def _write_stages(self, stages: Sequence[PlannedTask]) -> None:
        needed = [planned for planned in stages if planned.fate is not Fate.UNNEEDED]
        if not needed:
            return
        calls = self._tasks(needed)
        self._remember([planned.task for planned in needed if planned.fate is Fate.CACHED])
        if self._redo is not None:
            for piece in db.chunks(planned.task.key for planned in needed):
                again = db.stages.delete().where(db.stages.c.sweep == self._sweep, db.stages.c.key.in_(piece))
                self._connection.execute(again)
        rows = [
            {
                "sweep": self._sweep,
                "key": planned.task.key,
                "call": calls.get(planned.task.key),
                "state": State.CACHED if planned.fate is Fate.CACHED else State.PENDING,
            }
            for planned in needed
        ]
        db.insert_many(self._connection, db.stages, rows)

    def _tasks(self, planned: Sequence[PlannedTask]) -> Mapping[str, int]:
        """Write the new tasks and return the call that each open task is part of."""
        new = [item for item in planned if item.fate is Fate.NEW]
        calls = {item.task.key: self._call(item) for item in new}
        for piece in db.chunks(item.task.key for item in new if item.known is not Known.ABSENT):
            self._connection.execute(db.tasks.delete().where(db.tasks.c.key.in_(piece)))
        rows = [db.task_row(item.task.key, item.task.kind, calls[item.task.key], dump_task(item.task)) for item in new]
        db.insert_many(self._connection, db.tasks, rows)
        for piece in db.chunks(item.task.key for item in planned if item.fate is Fate.SHARED):
            found = self._connection.execute(
                sa.select(db.tasks.c.key, db.tasks.c.call).where(db.tasks.c.key.in_(piece))
            )
            calls.update((row.key, row.call) for row in found)
        if shared := {calls[item.task.key] for item in planned if item.fate is Fate.SHARED}:
            # The more urgent of the sweeps that need a call decides when it runs.
            urgent = db.calls.update().where(db.calls.c.id == sa.bindparam("shared"))
            urgent = urgent.where(db.calls.c.priority < self._spec.priority).values(priority=self._spec.priority)
            self._connection.execute(urgent, [{"shared": call} for call in shared])
        return calls

    def _remember(self, cached: Sequence[Task]) -> None:
        """Note artifacts that are in the store and that this ledger has not seen made."""
        for piece in db.chunks(task.key for task in cached):
            known = set(self._connection.scalars(sa.select(db.tasks.c.key).where(db.tasks.c.key.in_(piece))))
            unseen = [task for task in cached if task.key in set(piece) - known]
            rows = [
                {**db.task_row(task.key, task.kind, 0, dump_task(task)), "state": State.SUCCEEDED} for task in unseen
            ]
            db.insert_many(self._connection, db.tasks, rows)

    def _call(self, item: PlannedTask) -> int:
        assert item.call is not None
        if item.call not in self._ids:
            row = self._connection.execute(
                db.calls.insert().values(
                    sweep=self._sweep,
                    seq=self._seq,
                    kind=item.task.kind,
                    state=State.PENDING,
                    priority=self._spec.priority,
                    size=0,
                    attempt=1,
                    not_before=0.0,
                )
            )
            self._ids[item.call] = int(row.inserted_primary_key[0])  # type: ignore[index]
        return self._ids[item.call]


def dump_task(task: Task) -> str:
    """A task as the ledger keeps it."""
    return json.dumps(
        {
            "version": task.version,
            "params": task.params,
            "parents": task.parents,
            "group": task.group,
            "source": task.source,
        }
    )


def load_task(key: str, kind: str, payload: str) -> Task:
    """The task of a ledger row."""
    return Task(kind=kind, key=key, **json.loads(payload))
