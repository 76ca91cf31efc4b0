"""The shared stages below every experiment: data → train → fit, and the fixed inputs of a probe.

One function a stage names the task; one generator a stage computes it. Naming imports no torch, so plans are cheap;
the generators run on workers. Names are memoised: a grid of a million cells stands on a few dozen of these tasks.

=============  ======================================================================================================
``data``       a dataset's images as uint8 arrays, decoded once
``probe``      the fixed batches every measurement of one (dataset, batch size, seed) is made on
``feedback``   the fixed matrices B_l of feedback alignment
``train``      a checkpoint: a network's parameters after some epochs of one training run
``fit``        an estimator of the credit, fitted on a frozen checkpoint
=============  ======================================================================================================
"""

# ruff: noqa: ARG001
# Imports stand where they are used, because plans name these tasks without torch; every run has one signature.

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.errors import TaskError
from creditgrid.core.fingerprint import digest
from creditgrid.core.task import Arrays, Inputs, Output, Progress, Resources, Task, TaskKind

if TYPE_CHECKING:
    import torch

    from creditgrid.core.data import ImageData
    from creditgrid.core.estimators import EstimatorNet
    from creditgrid.core.fitting import FitEpoch
    from creditgrid.core.network import ResidualMLP

EXTRA_BATCHES = 8
"""Batches of the probe beside the same and the held-out one."""

_NAMES = 4096  # memoised names a stage; a plan with more distinct checkpoints than this only pays hashing again


def run_data(tasks: Sequence[Task], inputs: Inputs, device: torch.device) -> Iterator[Progress | Output]:
    """Decode each dataset where its ``source`` says it lies."""
    from creditgrid.core.loading import load

    for task in tasks:
        yield Output(task.key, arrays=load(task.source))


def run_probe(tasks: Sequence[Task], inputs: Inputs, device: torch.device) -> Iterator[Progress | Output]:
    """Draw the fixed batches: ``x_same``, ``x_held``, ``x_extra`` of the training stream, ``x_test`` in file order."""
    import torch

    from creditgrid.core.data import full_batches, normalise

    for task in tasks:
        data = _data(task, inputs, device)
        size, seed = task.params["batch_size"], task.params["seed"]
        batches = list(_first(full_batches(data, size, seed, epoch=0, stream="probe"), 2 + EXTRA_BATCHES))
        if len(batches) < 2 + EXTRA_BATCHES:
            raise TaskError(
                f"the probe needs {2 + EXTRA_BATCHES} full batches of {size} images and the training set of "
                f"{len(data.x_train):,} holds {len(batches)}: choose a smaller batch_size"
            )
        (x_same, y_same), (x_held, y_held), *extra = batches
        yield Output(
            task.key,
            arrays=_arrays(
                {
                    "x_same": x_same,
                    "y_same": y_same,
                    "x_held": x_held,
                    "y_held": y_held,
                    "x_extra": torch.stack([x for x, _ in extra]),
                    "y_extra": torch.stack([y for _, y in extra]),
                    "x_test": normalise(data.x_test[:size], data.mean, data.std),
                    "y_test": data.y_test[:size],
                }
            ),
        )


def run_feedback(tasks: Sequence[Task], inputs: Inputs, device: torch.device) -> Iterator[Progress | Output]:
    """Draw ``B.0`` … ``B.{L-1}``, each (d, C)."""
    import torch

    from creditgrid.core.credit import feedback_matrices

    for task in tasks:
        classes = _data(task, inputs, torch.device("cpu")).num_classes
        matrices = feedback_matrices(**task.params, num_classes=classes)
        yield Output(task.key, arrays=_arrays({f"B.{layer}": matrix for layer, matrix in enumerate(matrices)}))


def run_train(tasks: Sequence[Task], inputs: Inputs, device: torch.device) -> Iterator[Progress | Output]:
    """Train once for all checkpoints of one run, and keep the parameters at each asked epoch."""
    from creditgrid.core.network import ResidualMLP
    from creditgrid.core.streams import generator
    from creditgrid.core.training import accuracy_and_loss, train_bp

    params = tasks[0].params
    data = _data(tasks[0], inputs, device)
    wanted = {task.params["epoch"]: task.key for task in tasks}
    last = max(wanted)
    network = ResidualMLP(
        data.input_dim,
        params["d_hidden"],
        data.num_classes,
        params["num_blocks"],
        residual_add=params["residual_add"],
        w2_std=params["w2_std"],
        generator=generator(params["seed"], "init"),
    ).to(device)
    run = train_bp(
        network,
        data,
        epochs=params["epochs"],
        batch_size=params["batch_size"],
        lr=params["lr"],
        weight_decay=params["weight_decay"],
        seed=params["seed"],
    )
    for state in run:
        if state.epoch in wanted:
            accuracy, loss = accuracy_and_loss(network, data)
            info = {"test_accuracy": accuracy, "test_loss": loss, "train_loss": state.train_loss}
            yield Output(wanted[state.epoch], arrays=_arrays(network.state_dict()), info=info)
        if state.epoch == last:
            return
        yield Progress(state.epoch, last, f"epoch {state.epoch} of {last}")


def run_fit(tasks: Sequence[Task], inputs: Inputs, device: torch.device) -> Iterator[Progress | Output]:
    """Fit one estimator on a frozen checkpoint."""
    from creditgrid.core.estimators import EstimatorNet
    from creditgrid.core.fitting import fit_scalar_cb, fit_vec
    from creditgrid.core.streams import generator

    for task in tasks:
        data = _data(task, inputs, device)
        network = restore_network(inputs[task.parents["checkpoint"]], device, residual_add=task.params["residual_add"])
        options = {name: value for name, value in task.params.items() if name not in ("estimator", "residual_add")}
        which, width = task.params["estimator"], network.d_hidden
        s_dim = width if options.get("s_source") == "delta_L" else data.num_classes
        estimator = EstimatorNet(
            width, s_dim, width if which == "vec" else 1, generator=generator(options["seed"], f"fit/{which}/init")
        ).to(device)
        fits: dict[str, Callable[..., Iterator[FitEpoch]]] = {"vec": fit_vec, "scalar_cb": fit_scalar_cb}
        loss = None
        for state in fits[which](estimator, network, data, **options):
            loss = state.loss
            yield Progress(state.epoch, options["epochs"], f"epoch {state.epoch} of {options['epochs']}")
        yield Output(task.key, arrays=_arrays(estimator.state_dict()), info={"fit_loss": loss})


def restore_network(arrays: Arrays, device: torch.device, *, residual_add: bool) -> ResidualMLP:
    """The frozen network of a checkpoint, in eval mode; its shape is read off its tensors.

    Raises:
        TaskError: when the tensors are not those of a residual MLP.
    """
    import torch

    from creditgrid.core.network import ResidualMLP

    d_hidden, input_dim = arrays["embed.weight"].shape
    blocks = {name.split(".")[1] for name in arrays if name.startswith("blocks.")}
    with torch.device("meta"):  # the parameters are assigned below: none is drawn
        network = ResidualMLP(input_dim, d_hidden, len(arrays["out_head.bias"]), len(blocks), residual_add=residual_add)
    try:
        network.load_state_dict(tensors(arrays), assign=True)
    except RuntimeError as error:
        raise TaskError(f"the checkpoint's tensors do not fit a residual MLP: {error}") from error
    return network.to(device).eval().requires_grad_(False)


def restore_estimator(arrays: Arrays, device: torch.device) -> EstimatorNet:
    """The frozen estimator of a fit; its shape is read off its tensors."""
    import torch

    from creditgrid.core.estimators import TIME_DIMS, EstimatorNet

    d_hidden, out_dim = len(arrays["ln.weight"]), len(arrays["net.6.bias"])
    s_dim = arrays["net.0.weight"].shape[1] - d_hidden - TIME_DIMS
    estimator = EstimatorNet(d_hidden, s_dim, out_dim, generator=torch.Generator())
    estimator.load_state_dict(tensors(arrays))
    return estimator.to(device).eval().requires_grad_(False)


def tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    """Wrap arrays as tensors without copying, or copy where the memory is shared and read-only."""
    import torch

    return {name: torch.from_numpy(a if a.flags.writeable else a.copy()) for name, a in arrays.items()}


def _data(task: Task, inputs: Inputs, device: torch.device) -> ImageData:
    from creditgrid.core.data import ImageData

    return ImageData.from_arrays(inputs[task.parents["dataset"]]).to(device)


def _arrays(tensors: Mapping[str, torch.Tensor]) -> Arrays:
    # A copy: the caller goes on changing what it yielded (training goes on after a checkpoint).
    return {name: tensor.detach().cpu().contiguous().numpy().copy() for name, tensor in tensors.items()}


def _first(batches: Iterator[Any], count: int) -> Iterator[Any]:
    for _, batch in zip(range(count), batches, strict=False):
        yield batch


DATA = TaskKind("data", 1, run_data)
PROBE = TaskKind("probe", 1, run_probe)
FEEDBACK = TaskKind("feedback", 1, run_feedback)
TRAIN = TaskKind("train", 1, run_train, Resources(cpu=1, gpu=0.5), max_group=1000)
FIT = TaskKind("fit", 1, run_fit, Resources(cpu=1, gpu=0.5))
STAGES = (DATA, PROBE, FEEDBACK, TRAIN, FIT)


@lru_cache(_NAMES)
def data_task(dataset: DatasetRef) -> Task:
    """The decoded dataset."""
    return DATA.task({"fingerprint": dataset.fingerprint}, source=dict(dataset.source))


@lru_cache(_NAMES)
def probe_task(dataset: DatasetRef, *, batch_size: int, seed: int) -> Task:
    """The fixed batches; they depend on (dataset, batch size, probe seed) alone."""
    return PROBE.task({"batch_size": batch_size, "seed": seed}, {"dataset": data_task(dataset)})


@lru_cache(_NAMES)
def feedback_task(dataset: DatasetRef, *, seed: int, num_blocks: int, d_hidden: int) -> Task:
    """The feedback matrices of one seed and network shape; the dataset gives the number of classes."""
    return FEEDBACK.task(
        {"seed": seed, "num_blocks": num_blocks, "d_hidden": d_hidden}, {"dataset": data_task(dataset)}
    )


@lru_cache(_NAMES)
def train_task(
    dataset: DatasetRef,
    *,
    seed: int,
    epoch: int,
    epochs: int,
    num_blocks: int,
    d_hidden: int,
    residual_add: bool,
    w2_std: float,
    batch_size: int,
    lr: float,
    weight_decay: float,
) -> Task:
    """The checkpoint at ``epoch`` of one training run; all checkpoints of a run are one group."""
    run = {
        "rule": "bp",
        "seed": seed,
        "epochs": epochs,
        "num_blocks": num_blocks,
        "d_hidden": d_hidden,
        "residual_add": residual_add,
        "w2_std": w2_std,
        "batch_size": batch_size,
        "lr": lr,
        "weight_decay": weight_decay,
    }
    parent = data_task(dataset)
    return TRAIN.task(run | {"epoch": epoch}, {"dataset": parent}, group=(digest(run), parent.key))


@lru_cache(_NAMES)
def fit_task(
    dataset: DatasetRef, checkpoint: Task, estimator: str, options: tuple[tuple[str, Any], ...], *, residual_add: bool
) -> Task:
    """An estimator fitted on ``checkpoint``; ``options`` are the keyword arguments of its fit function."""
    return FIT.task(
        {"estimator": estimator, "residual_add": residual_add, **dict(options)},
        {"dataset": data_task(dataset), "checkpoint": checkpoint},
    )
