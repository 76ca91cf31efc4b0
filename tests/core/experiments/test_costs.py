"""The costs that kinds declare, against what their runs do: operations of torch, and files as they are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from creditgrid.core.costing import Costing
from creditgrid.core.datasets import DatasetRef
from creditgrid.core.experiments import costs, stage_costs
from creditgrid.core.experiments.registry import registry
from creditgrid.core.networks import residual_mlp as units
from creditgrid.core.plan import PlannedCall
from creditgrid.core.science import counts
from creditgrid.core.science.data import ImageData
from creditgrid.core.science.random_streams import generator
from creditgrid.core.task import Arrays, Output, Task
from creditgrid.core.units.network import Size
from creditgrid.core.work import Cost, Work
from creditgrid.workers.artifacts import ArtifactStore

CPU = torch.device("cpu")
TRAIN, TEST, CLASSES, IMAGE = 96, 40, 5, (3, 4, 4)
DATASET = DatasetRef("images", "0" * 64, TRAIN, TEST, CLASSES, IMAGE, {"package": "none"})
NETWORK: dict[str, Any] = {"num_blocks": 3, "d_hidden": 24, "batch_size": 8, "train_epochs": 2, "fit_epochs": 1}


class Counting(TorchDispatchMode):
    """Counts the operations that torch starts, and those of its matrix products, in double precision twice."""

    def __init__(self) -> None:
        super().__init__()
        self.launches, self.flops = 0, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.launches += 1
        if func._overloadpacket in flop_registry:
            (first, *_) = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
            twice = 2 if first.dtype == torch.float64 else 1
            self.flops += twice * flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


@pytest.fixture(scope="module")
def images() -> ImageData:
    draws = generator(0, "images")
    pixels = torch.randint(256, (TRAIN + TEST, *IMAGE), generator=draws, dtype=torch.uint8)
    labels = torch.randint(CLASSES, (TRAIN + TEST,), generator=draws)
    statistic = torch.full((3,), 0.5)
    return ImageData(pixels[:TRAIN], labels[:TRAIN], pixels[TRAIN:], labels[TRAIN:], statistic, statistic, CLASSES)


def planned(experiment: str, cells: Sequence[Mapping[str, Any]]) -> tuple[list[Task], dict[str, Task]]:
    """The measure tasks of the cells, and all tasks below them by key, parents first."""
    found = registry().experiment(experiment)
    named = [
        found.cell(
            found.params(dataset="images", **{k: v for k, v in cell.items() if k in found.params.model_fields}), DATASET
        )
        for cell in cells
    ]
    return [task for task, _ in named], {task.key: task for _, ancestors in named for task in ancestors}


def cost_of(task: Task, below: Mapping[str, Task]) -> Cost:
    found = Costing(registry().kinds).of(task, list(below.values()), DATASET)
    assert found is not None
    return found


def work_of(tasks: Sequence[Task], below: Mapping[str, Task]) -> Work:
    """Of one call with these tasks."""
    call = PlannedCall(tasks[0].kind)
    for task in tasks:
        call.add(cost_of(task, below))
    work = call.work()
    assert work is not None
    return work


def counted(tasks: Sequence[Task], made: Mapping[str, Arrays]) -> tuple[Counting, list[Output]]:
    run = registry().kinds[tasks[0].kind].run
    assert run is not None
    with Counting() as counting:
        outputs = [item for item in run(tasks, made, CPU) if isinstance(item, Output)]
    return counting, outputs


def computed(below: Mapping[str, Task], images: ImageData) -> dict[str, Arrays]:
    """The artifacts of these tasks."""
    made: dict[str, Arrays] = {}
    for key, task in below.items():
        made[key] = images.to_arrays() if task.kind == "data" else counted([task], made)[1][0].arrays or {}
    return made


@pytest.mark.parametrize("rule", ["bp", "dfa"])
def test_training_costs_its_epochs_once_and_each_checkpoint_its_evaluation(images: ImageData, rule: str) -> None:
    cells = [
        {**NETWORK, "method": "oracle_bp", "eta": 1.0, "train_rule": rule, "checkpoint_epoch": e} for e in (0, 1, 2)
    ]
    _, below = planned("linesearch", cells)
    trained = [task for task in below.values() if task.kind == "train"]
    assert len(trained) == 3
    made = computed({key: task for key, task in below.items() if task.kind in ("data", "feedback")}, images)
    counting, _ = counted(trained, made)
    work = work_of(trained, below)
    assert work.flops == pytest.approx(counting.flops, rel=0.01)
    assert work.launches - 3 * stage_costs.SAVED.launches == pytest.approx(counting.launches, rel=0.15)
    # By hand: forward, gradients of all weights, and of all inputs but the images.
    dim, d, blocks = 48, 24, 3
    forward = 2 * (dim * d + blocks * 2 * d * d + d * CLASSES)
    credits = 2 * d * CLASSES * blocks if rule == "dfa" else 0
    assert work.flops == 2 * TRAIN * (3 * forward - 2 * dim * d + credits) + 3 * TEST * forward


@pytest.mark.parametrize(
    "network",
    [
        {"network": "conv", "grid": 4, "d_hidden": 8},
        {"network": "transformer", "grid": 2, "heads": 2, "head_width": 4, "d_hidden": 8},
        {"activation": "relu", "expansion": 3, "bias": False},
    ],
    ids=lambda network: network.get("network", "variant"),
)
@pytest.mark.parametrize("rule", ["bp", "dfa"])
def test_other_networks(images: ImageData, network: dict[str, Any], rule: str, tmp_path: Path) -> None:
    cells = [
        {**NETWORK, **network, "method": method, "eta": 1.0, "train_rule": rule} for method in ("vec", "oracle_bp")
    ]
    measured, below = planned("linesearch", cells)
    made = computed(below, images)
    for tasks in [[task for task in below.values() if task.kind == kind] for kind in ("train", "fit")] + [measured]:
        counting, _ = counted(tasks, made)
        assert work_of(tasks, below).flops == pytest.approx(counting.flops, rel=0.1)
    for key, task in below.items():
        if task.kind in ("train", "fit", "feedback"):
            stored = ArtifactStore(tmp_path).save(key, {}, made[key], {})
            # The names in the file are assumed to be as many and as long as those of a residual MLP.
            assert stored == pytest.approx(cost_of(task, below).bytes, abs=2500)


@pytest.mark.parametrize("method", ["vec", "scalar_cb", "state_bridge"])
def test_fits(images: ImageData, method: str) -> None:
    _, below = planned("credit_recovery", [{**NETWORK, "method": method, "train_epochs": 0, "fit_epochs": 3}])
    (fit,) = (task for task in below.values() if task.kind == "fit")
    made = computed({key: task for key, task in below.items() if task.kind != "fit"}, images)
    counting, _ = counted([fit], made)
    work = work_of([fit], below)
    # The layer of each batch of vec is drawn.
    assert work.flops == pytest.approx(counting.flops, rel=0.1 if method == "vec" else 0.01)
    assert work.launches - stage_costs.SAVED.launches == pytest.approx(counting.launches, rel=0.15)


GRIDS: dict[str, tuple[list[dict[str, Any]], float]] = {
    "linesearch": (
        [
            {"method": method, "eta": eta, "update_range": which, "norm_mode": mode}
            for method in ("dfa", "vec", "oracle_bp")
            for eta in (1e-3, 1e-2)
            for which in ("last1", "all")
            for mode in ("raw", "norm")
        ],
        0.05,
    ),
    "exploitability": (
        [
            {"method": method, "rule": rule, "k": 3}
            for method in ("dfa", "vec", "scalar_cb")
            for rule in ("inner_product", "cosine")
        ],
        0.1,
    ),
    "snapshot_time": ([{"method": method} for method in ("dfa", "vec", "scalar_cb")], 0.15),
    "credit_recovery": ([{"method": method} for method in ("dfa", "vec", "state_bridge", "oracle_bp")], 0.1),
    "dynamics": ([{}], 0.05),
}


@pytest.mark.parametrize("experiment", GRIDS)
def test_measurements(images: ImageData, experiment: str) -> None:
    cells, tolerance = GRIDS[experiment]
    tasks, below = planned(experiment, [{**NETWORK, **cell, "train_epochs": 1} for cell in cells])
    counting, _ = counted(tasks, computed(below, images))
    work = work_of(tasks, below)
    assert work.flops == pytest.approx(counting.flops, rel=tolerance)
    assert counting.launches / 2 < work.launches < 2 * counting.launches + costs.LOADED.launches


def test_artifacts_have_the_size_that_their_shapes_say(images: ImageData, tmp_path: Path) -> None:
    cells = [{**NETWORK, "method": method, "k": 2} for method in ("dfa", "vec", "scalar_cb", "state_bridge")]
    _, below = planned("exploitability", cells)
    store = ArtifactStore(tmp_path)
    kinds = set()
    for key, arrays in computed(below, images).items():
        cost = cost_of(below[key], below)
        assert store.save(key, {}, arrays, {}) == pytest.approx(cost.bytes, rel=1e-3, abs=16)
        kinds.add(below[key].kind)
    assert kinds == {"data", "probe", "feedback", "train", "fit"}


def test_what_needs_the_images_size_is_unknown_without_it() -> None:
    unknown = DatasetRef("images", "0" * 64, TRAIN, TEST, CLASSES, None, {"package": "none"})
    measured, below = planned("linesearch", [{**NETWORK, "method": "vec", "eta": 1.0}])
    costing = Costing(registry().kinds)
    found = {task.kind: costing.of(task, list(below.values()), unknown) for task in [*below.values(), *measured]}
    assert not any(found.values())
    assert costing.faults == {}


def test_an_imported_checkpoint_says_its_shape() -> None:
    name = f"L3-d24-D48-C5-{'0' * 64}"
    _, below = planned("linesearch", [{**NETWORK, "method": "vec", "eta": 1.0, "checkpoint": name}])
    (fit,) = (task for task in below.values() if task.kind == "fit")
    _, trained = planned("linesearch", [{**NETWORK, "method": "vec", "eta": 1.0}])
    (other,) = (task for task in trained.values() if task.kind == "fit")
    assert cost_of(fit, below) == cost_of(other, trained)


def test_a_network_s_parameters_are_counted() -> None:
    from creditgrid.core.science.estimators import EstimatorNet
    from creditgrid.core.science.network import ResidualMLP

    network = ResidualMLP(48, 24, 5, 3)
    shape = units.ResidualMLP().shape(Size((3, 4, 4), 5, 3, 24, True, 0.01))
    assert shape.parameters == sum(p.numel() for p in network.parameters())
    net = counts.Net(24, 5, 24)
    estimator = EstimatorNet(24, 5, 24, generator=generator(0, "e"))
    assert net.parameters == sum(p.numel() for p in estimator.parameters())
    assert (estimator.net[0].out_features, 32) == (counts.WIDTH, counts.TIME_DIMS)
