"""Which module may import, load, name and write what."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("core", "workers", "service", "client")
MAY_IMPORT = {
    "core": {"core"},
    "workers": {"core", "workers"},
    "service": {"core", "workers", "service"},
    "client": {"core", "client"},
}
SERVER_ONLY = {"fastapi", "starlette", "uvicorn", "sqlalchemy", "deltalake", "duckdb", "prometheus_client", "structlog"}
FORBIDDEN = {
    "core": {"ray", *SERVER_ONLY},
    "workers": {"ray", *SERVER_ONLY},
    "service": {"ray"},
    "client": {"ray", "torch", "torchvision", "scipy", "sklearn", *SERVER_ONLY},
}
RAY = {"workers/creditgrid/workers/ray/driver.py", "workers/creditgrid/workers/ray/worker.py"}
EXCEPTIONS = {(path, "ray") for path in RAY}
HEAVY = ("torch", "torchvision", "ray", "scipy", "sklearn", "fastapi", "sqlalchemy", "deltalake", "duckdb")


def files(layer: str) -> list[Path]:
    found = (ROOT / layer / "creditgrid" / layer).rglob("*.py")
    return sorted(path for path in found if path.parent.name != "skeletons")  # texts of new files, never imported


def imports(path: Path) -> Iterator[str]:
    """Every module that the file imports, wherever in it, and whether or not it is only for types."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where things come from"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = [(layer, path) for layer in LAYERS for path in files(layer)]


def test_every_layer_is_looked_at() -> None:
    assert {layer for layer, _ in FILES} == set(LAYERS)
    assert len(FILES) > 40
    assert not list(ROOT.glob("*/creditgrid/__init__.py"))  # one namespace of four roots


@pytest.mark.parametrize(("layer", "path"), FILES, ids=lambda value: str(getattr(value, "stem", value)))
def test_a_file_imports_its_own_layer_and_those_below(layer: str, path: Path) -> None:
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "creditgrid" and len(parts) > 1:
            assert parts[1] in MAY_IMPORT[layer], f"{path.relative_to(ROOT)} imports {name}"
        elif (str(path.relative_to(ROOT)), parts[0]) not in EXCEPTIONS:
            assert parts[0] not in FORBIDDEN[layer], f"{path.relative_to(ROOT)} imports {name}"


def test_only_the_driver_s_side_of_the_cluster_imports_ray() -> None:
    importing = {str(path.relative_to(ROOT)) for _, path in FILES if "ray" in {n.split(".")[0] for n in imports(path)}}
    assert importing == RAY


def loaded_by(code: str) -> set[str]:
    """The heavy libraries that a fresh process has loaded after this code."""
    probe = f"{code}\nimport sys\nprint('loaded', *(name for name in {HEAVY!r} if name in sys.modules))"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests" / "plugin")}
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split("loaded", 1)[1].split())


def importing(*modules: str) -> str:
    return "\n".join(f"import {module}" for module in modules)


CORE_LIGHT = [
    f"creditgrid.core.{name}"
    for name in (
        "datasets", "errors", "experiment", "experiments.credit_recovery", "experiments.dynamics",
        "experiments.exploitability", "experiments.linesearch", "experiments.parameters", "experiments.registry",
        "experiments.snapshot_time", "experiments.stage_runs", "experiments.stages", "experiments.summaries", "files",
        "fingerprint", "naming", "plan", "rows", "science.choices", "science.imported", "spec.axes", "spec.extension",
        "spec.faults", "spec.grid", "spec.model", "spec.rules", "spec.text", "spec.validation", "states", "statistics",
        "task", "wire",
    )
]  # fmt: skip


def test_planning_loads_nothing_heavy() -> None:
    plan = """
from creditgrid.core.datasets import resolve
from creditgrid.core.naming import name_cells, resolve_datasets
from creditgrid.core.plan import Plan
from creditgrid.core.experiments.registry import registry
from creditgrid.core.spec.model import parse
from creditgrid.core.spec.validation import validate
known = registry()
assert known.broken == {}
experiment = known.experiment("linesearch")
kinds = known.kinds_of(experiment)
fixed = {"dataset": "digits", "eta": 0.1}
document = {"name": "n", "experiment": "linesearch", "fixed": fixed, "axes": {"method": ["vec", "dfa"], "seed": [1, 2]}}
grid = validate(parse(document), experiment, kinds)
plan = Plan(kinds)
(chunk,) = name_cells(grid, kinds, resolve_datasets(grid, resolve))
step = plan.add(chunk, lambda tasks: {})
assert len(step.cells) == 4
assert step.stages
"""
    assert loaded_by(importing(*CORE_LIGHT) + plan) == set()


def test_the_client_and_its_command_load_nothing_heavy() -> None:
    modules = [
        ".".join(path.relative_to(ROOT / "client").with_suffix("").parts)
        for path in files("client")
        if "examples" not in path.parts and not path.stem.startswith("__")
    ]
    assert "creditgrid.client.cli.main" in modules
    assert loaded_by(importing(*modules)) == set()


def test_the_service_loads_neither_torch_nor_ray() -> None:
    """The cluster's driver is a process of its own, and what computes are its workers."""
    found = loaded_by(
        importing("creditgrid.service.services", "creditgrid.service.api.app", "creditgrid.workers.ray.runner")
    )
    assert found & {"torch", "torchvision", "ray"} == set()


def test_the_clusters_driver_loads_no_torch() -> None:
    assert loaded_by(importing("creditgrid.workers.ray.driver")) & {"torch", "torchvision"} == set()


PLUGINS = {"noop", "noop_base", "spectrum", "weight_spectrum"}


@pytest.mark.parametrize(
    "path", [*files("workers"), *files("service")], ids=lambda path: "/".join(path.relative_to(ROOT).parts[2:])
)
def test_no_worker_and_no_service_knows_an_experiment_by_name(path: Path) -> None:
    """Not even in a comment: what is said of one experiment there is wrong of somebody's plugin."""
    shipped = {found.stem for found in (ROOT / "core/creditgrid/core/experiments").glob("[a-z]*.py")}
    shipped -= {"code_registry", "costs", "parameters", "registry", "stage_costs", "stage_runs", "stages", "summaries"}
    assert shipped == {"credit_recovery", "dynamics", "exploitability", "linesearch", "snapshot_time"}
    assert (shipped | PLUGINS).isdisjoint(re.findall(r"\w+", path.read_text()))


LEDGER = ROOT / "service/creditgrid/service/ledger"
TABLES = "creditgrid.service.ledger.tables"


def writes(tree: ast.Module) -> Iterator[str]:
    """The expressions that write a table of the ledger."""
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == TABLES
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and re.match(r"\s*(INSERT INTO|UPDATE|DELETE FROM)\s", str(node.value)):
            yield str(node.value)
        elif isinstance(node, ast.Call):
            target, _, method = ast.unparse(node.func).rpartition(".")
            whole = target in {*imported, "table", "sa"} or re.search(r"\btables\.\w+$", target)
            if method == "insert_many" or (method in {"insert", "update", "delete"} and whole):
                yield ast.unparse(node)


def sets_state(tree: ast.Module) -> bool:
    """Whether a statement has ``.values(state=…)``."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute))
    return any(call.func.attr == "values" and any(word.arg == "state" for word in call.keywords) for call in calls)


def test_the_ledger_alone_writes_its_tables_and_transitions_alone_set_states() -> None:
    trees = {path: ast.parse(path.read_text()) for path in files("service")}
    writing = {path for path, tree in trees.items() if any(writes(tree)) and path.parent.name != "versions"}
    names = (
        "audit",
        "batches",
        "counts",
        "engine",
        "events",
        "ledger",
        "lock",
        "ownership",
        "past_calls",
        "tokens",
        "transitions",
    )
    assert writing == {LEDGER / f"{name}.py" for name in names}
    assert {path for path, tree in trees.items() if sets_state(tree)} == {LEDGER / "transitions.py"}


@pytest.mark.parametrize(
    "statement",
    [
        "cells.update().values(state=new)",
        "connection.execute(tables.calls.insert(), rows)",
        "ledger.tables.calls.delete()",
        "for table in (cells,): table.delete()",
        "sa.update(cells)",
        "insert_many(connection, cells, rows)",
        "tables.insert_many(connection, tables.cells, rows)",
        "connection.execute(sa.text('UPDATE cells SET state = 1'))",
    ],
)
def test_a_write_to_the_ledgers_tables_is_found(statement: str) -> None:
    assert list(writes(ast.parse(f"from {TABLES} import cells\n{statement}")))
    assert not list(writes(ast.parse("found.update(cells)\nsa.select(cells)\n'UPDATED'")))
