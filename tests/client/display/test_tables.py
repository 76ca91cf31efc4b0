"""Tables for a person."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from rich.console import Console, RenderableType

from creditgrid.client.display import tables
from creditgrid.client.result import Result
from creditgrid.core.experiments.registry import registry
from creditgrid.core.states import State
from creditgrid.core.wire import ExperimentView, FailureView, PlanView, SummaryView, SweepView, TaskDocument


def shown(renderable: RenderableType) -> str:
    out = io.StringIO()
    Console(file=out, width=200, markup=False, highlight=False, emoji=False).print(renderable)
    return out.getvalue()


def line_of(text: str, start: str) -> list[str]:
    """The words of the line that starts with ``start``."""
    found = [line.replace("│", " ").split() for line in text.splitlines() if line.strip().startswith(start)]
    assert len(found) == 1, text
    return found[0]


KIND = {"total": 6, "cached": 1, "shared": 2, "new": 3, "unneeded": 0, "calls": 3}


def test_plan() -> None:
    plan = PlanView.model_validate(
        {
            "name": "grid",
            "experiment": "linesearch",
            "cells": KIND | {"total": 504, "cached": 0, "shared": 0, "new": 504, "calls": 3},
            "tasks": {"train": KIND | {"estimated_seconds": 65.0, "estimated_bytes": 3_000_000}, "fit": KIND},
            "groups": 3,
            "misses": [{"kind": "train", "reason": "never computed", "count": 3, "example": {}}],
            "estimated_seconds": 3700.0,
            "compute_seconds": 7300.0,
            "estimated_bytes": 258_000_000,
            "cpus": 2.0,
            "gpus": 0.0,
        }
    )
    text = shown(tables.plan_table(plan))
    assert line_of(text, "kind") == ["kind", "total", "cached", "shared", "new", "unneeded", "calls", "time", "size"]
    assert line_of(text, "train ") == ["train", "6", "1", "2", "3", "0", "3", "1", "min", "05", "s", "3", "MB"]
    assert line_of(text, "fit") == ["fit", "6", "1", "2", "3", "0", "3"]
    assert line_of(text, "cells") == ["cells", "504", "0", "0", "504", "0", "3"]
    assert "train: 3 × never computed" in text
    assert "504 cells, measured in 3 calls" in text
    assert "about 1 h 01 min on 2 CPUs (2 h 01 min of compute), 258 MB" in text
    unknown = {"estimated_seconds": None, "compute_seconds": None, "estimated_bytes": None, "gpus": 1.0}
    text = shown(tables.plan_table(plan.model_copy(update={**unknown, "notes": ["fit: its cost model failed\x1b[2J"]})))
    assert "time unknown on 2 CPUs and 1 GPU, size unknown" in text
    assert "note: fit: its cost model failed\\x1b[2J" in text


def test_summary_with_intervals() -> None:
    row = {"method": "vec", "best_eta": 0.003, "delta": -0.13512, "delta_ci95": 0.02345, "n": 3, "diverged": None}
    summary = SummaryView.model_validate(
        {
            "sweep": "s",
            "title": "Best [step]",
            "columns": ["method", "best_eta", "delta", "n", "diverged"],
            "rows": [row, {"method": "dfa"}],
            "verdicts": [{"name": "oracle", "text": "is [suspect]", "numbers": {}, "warning": True}],
            "complete": False,
        }
    )
    text = shown(tables.summary_table(summary))
    assert "Best [step] (incomplete: cells are missing)" in text
    assert line_of(text, "vec") == ["vec", "0.003", "-0.1351", "±", "0.023", "3", "–"]
    assert line_of(text, "dfa") == ["dfa", "–", "–", "–", "–"]
    assert "oracle: is [suspect]" in text


def view(**fields: Any) -> SweepView:
    return SweepView.model_validate(
        {
            "id": "s1",
            "name": "a [red]grid[/red]",
            "experiment": "linesearch",
            "state": "running",
            "priority": 0,
            "cells": 10,
            "counts": {"cached": 4, "running": 5, "failed": 1, "pending": 0},
            "tasks": {"train": {"succeeded": 2}},
            "created_at": datetime(2026, 1, 2, tzinfo=UTC),
            "remaining_s": 90.0,
            "conditions": [{"type": "degraded", "message": "Ray is restarting"}],
            "active": [{"call": 7, "kind": "fit", "tasks": 2, "done": 3, "total": 60, "note": "loss 0.5"}],
        }
        | fields
    )


def test_sweeps() -> None:
    finished = view(id="s2", state="failed", finished_at=datetime(2026, 1, 2, 0, 2, 5, tzinfo=UTC))
    text = shown(tables.sweeps_table([view(), finished]))
    assert line_of(text, "s1")[:8] == [
        "s1",
        "a",
        "[red]grid[/red]",
        "linesearch",
        "running",
        "5/10",
        "1",
        line_of(text, "s1")[7],
    ]
    assert line_of(text, "s2")[-4:] == ["2", "min", "05", "s"]


def test_one_sweep() -> None:
    text = shown(tables.sweep_view(view()))
    assert "a [red]grid[/red]" in text
    assert "10: cached 4 · running 5 · failed 1" in text
    assert "degraded: Ray is restarting" in text
    assert "about 1 min 30 s" in text
    assert "fit, call 7, 2 tasks 3/60 loss 0.5" in text
    assert "left" not in shown(tables.sweep_view(view(state="cached")))


def test_a_paused_sweep() -> None:
    condition = {"type": "paused", "message": "no more calls start"}
    text = shown(tables.sweep_view(view(paused=True, conditions=[condition])))
    assert "running (paused)" in text
    assert "paused: no more calls start" in text
    assert "left" not in text
    assert "running (paused)" in shown(tables.sweeps_table([view(paused=True)]))
    assert "(paused)" not in shown(tables.sweep_view(view(paused=True, state="cancelled")))


def test_rows_are_bounded() -> None:
    result = Result(pa.table({"name": [f"row {i}" for i in range(250)], "value": [i / 3 for i in range(250)]}))
    text = shown(tables.rows_table(result))
    assert "row 99 " in text
    assert "row 100" not in text
    assert "150 more rows" in text
    assert "more rows" not in shown(tables.rows_table(Result(result.table.slice(0, 100))))
    assert "name" in shown(tables.rows_table(Result(result.table.slice(0, 0))))


def test_failures() -> None:
    failure = FailureView(
        cause="MemoryError\x1b[2J",
        kind="fit",
        count=2,
        skipped=9,
        traceback="Traceback\n[x]\n",
        attempt=3,
        host="n1",
        key="k",
        command="creditgrid run-task k",
    )
    text = shown(tables.failures_text([failure], tracebacks=True))
    assert "fit: MemoryError\\x1b[2J (2 failed, 9 skipped because of it; attempt 3 on n1)" in text
    assert "Traceback\n[x]\n" in text
    text = shown(tables.failures_text([failure], tracebacks=False, option=" --url http://here"))
    assert "Traceback" not in text
    assert text.splitlines()[1] == "  run it here: creditgrid run-task k --url http://here"


def test_rows_of_a_task_without_what_is_known_of_it() -> None:
    document = TaskDocument(
        key="k", kind="noop", version=1, params={"eta": 0.1}, parents={}, group="g", source={"dataset": "/data"}
    )
    row = {"sweep": None, "cell": "k", "eta": 0.1, "dataset": "/data", "loss": 0.25, "host": "h", "diverged": False}
    text = shown(tables.task_rows_table(Result(pa.Table.from_pylist([row])), document))
    assert line_of(text, "loss") == ["loss", "diverged"]
    assert line_of(text, "0.25") == ["0.25", "false"]


def test_tensors() -> None:
    tensors = {"head.weight": {"shape": [10, 64], "dtype": "float32"}, "epoch": {"shape": [], "dtype": "int64"}}
    text = shown(tables.tensors_table(tensors))
    assert line_of(text, "head.weight") == ["head.weight", "float32", "10", "×", "64"]
    assert line_of(text, "epoch") == ["epoch", "int64", "scalar"]


def test_experiments_from_real_schemas() -> None:
    linesearch = ExperimentView(
        name="linesearch",
        title="Line search",
        parameters=registry().experiments["linesearch"].params.model_json_schema(),
        columns={"delta_loss_same": {"type": "float64", "description": "nats"}},  # type: ignore[dict-item]
        kinds=["train"],
    )
    broken = linesearch.model_copy(update={"name": "other", "problem": "ImportError: no module"})
    text = shown(tables.experiments_table([linesearch, broken]))
    assert "delta_loss_same" in line_of(text, "linesearch")
    assert "cannot be used: ImportError" in text
    text = shown(tables.experiment_view(linesearch))
    methods = ["dfa,", "oracle_bp,", "scalar_cb,", "state_bridge,", "vec"]
    assert line_of(text, "method ")[:7] == ["method", *methods, "required"]
    assert line_of(text, "num_blocks ")[:7] == ["num_blocks", "integer", "≥", "1", "≤", "256", "4"]
    assert line_of(text, "checkpoint_epoch ")[:7] == ["checkpoint_epoch", "integer", "≥", "0", "or", "null", "null"]
    assert line_of(text, "delta_loss_same") == ["delta_loss_same", "float64", "nats"]


def test_every_state_has_a_colour() -> None:
    assert set(tables.STYLES) == set(State)
