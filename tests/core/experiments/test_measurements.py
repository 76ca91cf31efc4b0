"""Measurements that a sweep asks for: their columns in the rows of each experiment, recomputed here by plain loops."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from creditgrid.core.datasets import resolve
from creditgrid.core.errors import PluginError, SpecError
from creditgrid.core.experiment import Experiment
from creditgrid.core.experiments.registry import Registry, registry_with
from creditgrid.core.experiments.stages import code_task
from creditgrid.core.rows import columns, schema, table
from creditgrid.core.science.network import ResidualMLP
from creditgrid.core.spec.model import parse
from creditgrid.core.spec.validation import validate
from creditgrid.core.task import Arrays, Output, Task
from creditgrid.core.units.brought import load
from creditgrid.core.units.code import sha256_of, to_arrays
from creditgrid.core.units.known import installed

FILES = {
    "mine.py": b"""
from creditgrid.core.experiment import Column
from creditgrid.core.units.decorators import measurement

@measurement(columns={"update_size": "Length of the update."}, after_step=True)
def update_size(measured):
    "The length of an update."
    return {"update_size": sum(part.double().square().sum() for part in measured.update.values()) ** 0.5}

@measurement(columns={"images": Column("int64", "Images in the batch."), "weight": "Largest weight."})
def seen(measured):
    "What is seen at a checkpoint."
    return {"images": len(measured.y), "weight": measured.network.embed.weight.abs().max()}
"""
}
SHA = sha256_of(FILES)
FIXED = {
    "dataset": "digits",
    "num_blocks": 2,
    "d_hidden": 8,
    "batch_size": 32,
    "train_epochs": 1,
    "w2_std": 0.1,
}
ALL = {
    "linesearch": {"method": ["oracle_bp", "dfa"], "eta": [0.0, 0.1, 0.3], "update_range": ["last1", "all"]},
    "snapshot_time": {"method": ["oracle_bp"]},
    "exploitability": {"method": ["oracle_bp"], "k": [1, 3], "eval": ["held", "same"]},
    "credit_recovery": {"method": ["oracle_bp", "dfa"]},
    "dynamics": {"seed": [1]},
}
WITH_STEPS = ("linesearch", "snapshot_time", "exploitability")


@pytest.fixture(scope="module")
def known() -> Registry:
    return registry_with(installed().with_brought(load(FILES), SHA))


def computed(known: Registry, name: str, measurements: list[str]) -> tuple[Experiment, list[dict[str, Any]], Any]:
    """The experiment, its rows with the task of each, and the artifacts."""
    spec = {"name": "n", "experiment": name, "fixed": FIXED, "axes": ALL[name], "measurements": measurements}
    grid = validate(parse(spec), known.experiment(name), known.kinds)
    kinds, digits = known.kinds_of(grid.experiment), resolve("digits")
    artifacts: dict[str, Arrays] = {code_task(SHA).key: to_arrays(FILES)}
    groups: dict[str, list[Task]] = {}
    for params in grid.cells({"digits": digits}):
        task, ancestors = grid.experiment.cell(params, digits)
        for stage in ancestors:
            if stage.key not in artifacts:
                artifacts[stage.key] = outputs(kinds, [stage], artifacts)[0].arrays or {}
        groups.setdefault(task.group, []).append(task)
    rows = []
    for tasks in groups.values():
        for task, output in zip(tasks, outputs(kinds, tasks, artifacts), strict=True):
            rows += [{"task": task, **row} for row in output.rows or ()]
    return grid.experiment, rows, artifacts


def outputs(kinds: Mapping[str, Any], tasks: list[Task], artifacts: Mapping[str, Arrays]) -> list[Output]:
    inputs = {key: artifacts[key] for task in tasks for key in task.parents.values()}
    items = kinds[tasks[0].kind].run(tasks, inputs, torch.device("cpu"))
    return [item for item in items if isinstance(item, Output)]


@pytest.mark.parametrize("name", ALL)
def test_every_experiment_measures(known: Registry, name: str) -> None:
    asked = ["seen", "effective_rank", "update_size"] if name in WITH_STEPS else ["seen"]
    experiment, rows, _ = computed(known, name, asked)
    versions = dict.fromkeys(sorted(asked), 1)
    assert all(row["task"].params["measurements"] == versions for row in rows)
    assert all(row["task"].parents["code"] == code_task(SHA).key for row in rows)
    shaped = table(experiment, [{name: value for name, value in row.items() if name != "task"} for row in rows])
    assert not any(shaped["diverged"].to_pylist())
    assert schema(experiment).field("images").type == "int64"
    assert {"images", "weight"} <= columns(experiment).keys()
    assert set(shaped["images"].to_pylist()) == {360 if name == "dynamics" else 32}
    names = [*experiment.params.model_fields, *experiment.columns]
    made = [{**dict.fromkeys(names), **row["task"].params, **row} for row in rows]
    summary = experiment.summarise([{**row, "diverged": False} for row in made])
    for column in ("images", "weight", *(["effective_rank"] if name in WITH_STEPS else [])):
        assert column in summary.columns
        assert summary.rows[0][column] is not None


def test_without_measurements_nothing_changes(known: Registry) -> None:
    experiment, rows, _ = computed(known, "linesearch", [])
    assert "images" not in columns(experiment)
    plain = registry_with(installed())
    same, again, _ = computed(plain, "linesearch", [])
    assert [row["task"].key for row in rows] == [row["task"].key for row in again]
    assert columns(same) == columns(experiment)
    measured = computed(plain, "linesearch", ["effective_rank"])[1]
    assert "code" not in measured[0]["task"].parents
    assert {row["task"].key for row in measured}.isdisjoint(row["task"].key for row in again)
    losses = [[row["delta_loss_same"] for row in some] for some in (rows, again, measured)]
    assert losses[0] == losses[1] == losses[2]


def test_the_effective_rank_and_the_length_of_a_line_search_are_those_of_a_plain_step(known: Registry) -> None:
    _, rows, artifacts = computed(known, "linesearch", ["effective_rank", "update_size"])
    for row in rows:
        task = row["task"]
        if task.params["method"] != "oracle_bp":
            continue
        moved = plain_step(artifacts[task.parents["checkpoint"]], artifacts[task.parents["probe"]], task.params)
        length = math.sqrt(sum(float((part**2).sum()) for part in moved.values()))
        assert row["update_size"] == pytest.approx(length, rel=1e-4, abs=1e-12)
        if task.params["eta"] == 0:
            assert row["effective_rank"] is None
            continue
        ranks = []
        for name, part in moved.items():
            if name.startswith("blocks.") and part.ndim == 2:
                values = np.linalg.svd(part, compute_uv=False)
                p = values / values.sum()
                ranks.append(math.exp(-sum(x * math.log(x) for x in p if x > 0)))
        assert row["effective_rank"] == pytest.approx(np.mean(ranks), rel=1e-4)


def plain_step(checkpoint: Arrays, probe: Arrays, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """-η ∇ of the loss at each block's output along backprop's credit, by autograd and a loop over blocks."""
    network = ResidualMLP(64, 8, 10, 2)
    network.load_state_dict({name: torch.tensor(array) for name, array in checkpoint.items()})
    network.double()
    x, y = torch.tensor(probe["x_same"]).double(), torch.tensor(probe["y_same"])
    hiddens = [network.embed(x)]
    for block in network.blocks:
        hiddens.append(hiddens[-1] + block(hiddens[-1]))
    loss = torch.nn.functional.cross_entropy(network.out_head(network.out_ln(hiddens[-1])), y)
    credits = torch.autograd.grad(loss, hiddens[:-1])
    moved = {}
    for layer in (1,) if params["update_range"] == "last1" else (0, 1):
        block, h = network.blocks[layer], hiddens[layer].detach()
        local = (block(h) * credits[layer]).sum(-1).mean()
        for name, gradient in zip(
            dict(block.named_parameters()), torch.autograd.grad(local, list(block.parameters())), strict=True
        ):
            moved[f"blocks.{layer}.{name}"] = -params["eta"] * gradient.numpy()
    if params["update_range"] == "all":
        head = {"out_ln": network.out_ln, "out_head": network.out_head}
        loss = torch.nn.functional.cross_entropy(network.out_head(network.out_ln(hiddens[-1].detach())), y)
        for part, module in head.items():
            for name, parameter in module.named_parameters():
                (gradient,) = torch.autograd.grad(loss, parameter, retain_graph=True)
                moved[f"{part}.{name}"] = -params["eta"] * gradient.numpy()
    return moved


@pytest.mark.parametrize(
    ("name", "measurements", "where", "said"),
    [
        ("linesearch", ["effective_rnk"], "/measurements/0", r"did you mean 'effective_rank'\?"),
        ("dynamics", ["seen", "effective_rank"], "/measurements/1", "dynamics takes none"),
        ("credit_recovery", ["update_size"], "/measurements/0", "credit_recovery takes none"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    known: Registry, name: str, measurements: list[str], where: str, said: str
) -> None:
    spec = {"name": "n", "experiment": name, "fixed": FIXED, "axes": ALL[name], "measurements": measurements}
    with pytest.raises(SpecError, match=said) as caught:
        validate(parse(spec), known.experiment(name), known.kinds)
    assert [fault.pointer for fault in caught.value.faults] == [where]


@pytest.mark.parametrize(
    ("column", "said"),
    [("eta", "adds eta, which linesearch has already"), ("credit_rms", "adds credit_rms, which linesearch")],
)
def test_a_column_of_the_experiment_is_not_measured_again(column: str, said: str) -> None:
    text = FILES["mine.py"].replace(b'"update_size"', f'"{column}"'.encode())
    found = registry_with(installed().with_brought(load({"mine.py": text}), SHA))
    spec = {"name": "n", "experiment": "linesearch", "fixed": FIXED, "axes": ALL["linesearch"]}
    with pytest.raises(SpecError, match=said):
        validate(parse({**spec, "measurements": ["update_size"]}), found.experiment("linesearch"), found.kinds)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b'"images"', b'"update_size"', "is one of update_size as well"),
        (b'"images"', b'"seconds"', "is one of every row"),
        (b'"images"', b'"Images"', "lower_case_with_underscores"),
        (b'"Largest weight."', b'""', "needs a description"),
    ],
)
def test_columns_that_cannot_be_used_are_refused(old: bytes, new: bytes, said: str) -> None:
    with pytest.raises(PluginError, match=said):
        installed().with_brought(load({"mine.py": FILES["mine.py"].replace(old, new)}), SHA)
