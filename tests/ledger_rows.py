"""Rows written directly into a ledger, to test one transition at a time."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from creditgrid.core.packed_tasks import params_text, shared_text
from creditgrid.core.states import State
from creditgrid.core.task import Task
from creditgrid.service.ledger import tables
from creditgrid.service.ledger.task_states import STATE


def add_sweep(connection: sa.Connection, sweep: str, state: State = State.PENDING, **values: Any) -> None:
    row = {"id": sweep, "name": "n", "experiment": "e", "state": state, "priority": 0, "spec": "{}", "cells": 0}
    connection.execute(tables.sweeps.insert().values(**{**row, **values}, created_at=0.0))


def add_call(connection: sa.Connection, state: State = State.PENDING, **values: Any) -> int:
    row = {"sweep": "s", "kind": "k", "state": state, "size": 1}
    made = connection.execute(tables.calls.insert().values(**{**row, **values}))
    assert made.inserted_primary_key is not None
    return int(made.inserted_primary_key[0])


def plain_task(key: str, **params: Any) -> Task:
    return Task("k", 1, params, {}, key, "group")


def new_task(task: Task, call: int) -> dict[str, Any]:
    """The row of a new pending task."""
    texts = {"params": params_text(task), "shared": shared_text(task)}
    return {"key": task.key, "kind": task.kind, "state": State.PENDING, "call": call, **texts, "diverged": False}


def add_task(connection: sa.Connection, key: str, call: int, state: State = State.PENDING) -> None:
    connection.execute(tables.tasks.insert().values(**{**new_task(plain_task(key), call), "state": state}))


def add_cell(
    connection: sa.Connection, sweep: str, idx: int, key: str, call: int | None, state: State = State.PENDING
) -> None:
    connection.execute(tables.cells.insert().values(sweep=sweep, idx=idx, key=key, call=call, state=state))


def add_stage(connection: sa.Connection, sweep: str, key: str, call: int | None, state: State = State.PENDING) -> None:
    connection.execute(tables.stages.insert().values(sweep=sweep, key=key, call=call, state=state))


def states(connection: sa.Connection, table: sa.Table) -> dict[str, str]:
    """The state of each row by key; that of a task is pending until it has ended."""
    state = STATE if table is tables.tasks else table.c.state
    return {row.key: row.state for row in connection.execute(sa.select(table.c.key, state.label("state")))}
