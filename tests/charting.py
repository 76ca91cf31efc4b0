"""Charts for the tests: rows, a declared experiment, a service that has them, and what is in a drawn chart."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pyarrow as pa

from creditgrid.core.experiment import Chart
from creditgrid.core.wire import ExperimentView, SweepView

PARAMETERS: dict[str, Any] = {
    "seed": {"type": "integer"},
    "probe_seed": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    "method": {"enum": ["oracle", "vec", "dfa"]},
    "source": {"enum": ["e", "delta"]},
    "mode": {"enum": ["raw", "norm"]},
    "eta": {"type": "number"},
    "kappa": {},
}
ETAS = (1e-4, 1e-3, 1e-2)
SEEDS = (1, 2, 5)


def chart(mark: str = "line", x: Sequence[str] = ("eta",), series: Sequence[str] = ("method",), **fields: Any) -> Chart:
    """A chart of the change of the loss."""
    values: dict[str, Any] = {
        "name": "change",
        "title": "Change",
        "mark": mark,
        "x": {"columns": x, "title": "step size", "scale": "log" if mark == "line" else "linear"},
        "measures": [{"columns": ["change"], "title": "change / nats"}],
        "series": series,
    }
    return Chart(**values | fields)


def view(*declared: Chart) -> ExperimentView:
    return ExperimentView(
        name="steps",
        title="Steps",
        parameters={"properties": PARAMETERS},
        columns={},
        kinds=[],
        charts=list(declared),
    )


def value(method: str, eta: float, seed: int) -> float:
    """A number that differs for every row."""
    return -{"oracle": 3.0, "vec": 2.0, "dfa": 1.0}[method] * math.log10(eta) * (1 + 0.01 * seed**2)


def grid(
    methods: Sequence[str] = ("dfa", "oracle"), seeds: Sequence[int] = SEEDS, **fixed: Any
) -> list[dict[str, Any]]:
    """Rows of a sweep over methods, step sizes and seeds."""
    defaults = {"probe_seed": None, "source": "e", "mode": "raw", "kappa": None, "diverged": False}
    return [
        defaults | {"seed": s, "method": m, "eta": e, "change": value(m, e, s), "other": -value(m, e, s)} | fixed
        for m in methods
        for e in ETAS
        for s in seeds
    ]


def spec(drawn: Any) -> dict[str, Any]:
    found: dict[str, Any] = drawn.to_dict()
    return found


def panels(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The panels of a page, in order."""
    return [panel for run in found["vconcat"] for panel in run["concat"]]


def heading(panel: dict[str, Any]) -> list[str]:
    return panel["title"]["text"] if isinstance(panel["title"], dict) else []


def encodings(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if "encoding" in node:
            yield node["encoding"]
        for child in node.values():
            yield from encodings(child)
    elif isinstance(node, list):
        for child in node:
            yield from encodings(child)


MAGIC = {"png": b"\x89PNG\r\n\x1a\n", "pdf": b"%PDF-", "svg": b"<svg", "html": b"<!DOCTYPE html>"}


def epochs(
    seeds: Sequence[int] = SEEDS,
    kind: str = "train",
    last: int = 4,
    metrics: Sequence[str] = ("train_loss",),
    **same: Any,
) -> list[dict[str, Any]]:
    """Rows of the table of curves: a run for each seed."""
    return [
        {"run": f"{kind}-{seed}-{same}", "kind": kind, "epoch": epoch, "seed": seed, "seconds": 0.1 * epoch, **same}
        | dict.fromkeys(metrics, 1.0 / (epoch + seed))
        for seed in seeds
        for epoch in range(1, last + 1)
    ]


def serve(
    rows: list[dict[str, Any]], experiment: ExperimentView, curves: Sequence[dict[str, Any]] = ()
) -> httpx.MockTransport:
    """A service that has one sweep."""
    sweep = SweepView.model_validate(
        {
            "id": "s1",
            "name": "one",
            "experiment": "steps",
            "state": "succeeded",
            "priority": 0,
            "cells": 18,
            "counts": {},
            "created_at": "2026-01-02T03:04:05Z",
        }
    )
    answers = {
        "/v1/sweeps/s1": httpx.Response(200, json=json.loads(sweep.model_dump_json())),
        "/v1/sweeps/s1/results": httpx.Response(200, content=_stream(rows)),
        "/v1/sweeps/s1/curves": httpx.Response(200, content=_stream(curves)),
        "/v1/experiments/steps": httpx.Response(200, json=json.loads(experiment.model_dump_json())),
    }
    missing = httpx.Response(404, json={"title": "Not Found", "status": 404, "detail": "there is no such sweep"})
    return httpx.MockTransport(lambda request: answers.get(request.url.path, missing))


def _stream(rows: Sequence[dict[str, Any]]) -> bytes:
    table = pa.Table.from_pylist(list(rows)) if rows else pa.table({"seed": pa.array([], pa.int64())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    found: bytes = sink.getvalue().to_pybytes()
    return found
