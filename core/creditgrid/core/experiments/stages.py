"""The shared stages below every experiment: data → train → fit, and the fixed inputs of a probe.

One function a stage names the task; one generator a stage computes it. Naming imports no torch, so plans are cheap;
the generators run on workers. Names are memoised: a grid of a million cells stands on a few dozen of these tasks.

=============  ======================================================================================================
``data``       a dataset's images as uint8 arrays, decoded once
``probe``      the fixed batches every measurement of one (dataset, batch size, seed) is made on
``feedback``   the fixed matrices B_l of feedback alignment
``train``      a checkpoint: a network's parameters after some epochs of one training run
``fit``        an estimator of the credit, fitted on a frozen checkpoint
``checkpoint`` a foreign network's parameters, imported instead of trained
=============  ======================================================================================================
"""

# ruff: noqa: ARG001
# Imports stand where they are used, because plans name these tasks without torch; every run has one signature.

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.errors import TaskError
from creditgrid.core.fingerprint import digest
from creditgrid.core.task import Arrays, Inputs, Output, Progress, Resources, Saved, Task, TaskKind

if TYPE_CHECKING:
    import torch

    from creditgrid.core.science.data import ImageData
    from creditgrid.core.science.fitting import FitEpoch
    from creditgrid.core.science.training import Epoch

EXTRA_BATCHES = 8
"""Batches of the probe beside the same and the held-out one."""
STEP_BATCHES = 8
"""Batches of a probe for rollouts, unless more are asked for."""

_NAMES = 4096  # memoised names a stage; a plan with more distinct checkpoints than this only pays hashing again


def run_data(tasks: Sequence[Task], inputs: Inputs, device: torch.device) -> Iterator[Progress | Output]:
    """Decode each dataset where its ``source`` says it lies."""
    from creditgrid.core.science.loading import load

    for task in tasks:
        yield Output(task.key, arrays=load(task.source))


def run_probe(tasks: Sequence[Task], inputs: Inputs, device: torch.device) -> Iterator[Progress | Output]:
    """Draw the fixed batches: ``x_same``, ``x_held``, ``x_extra`` of the training stream, ``x_test`` in file order.

    ``x_steps``, the batches that rollouts step on, come from a further pass of that stream.
    """

    from creditgrid.core.science.data import normalise

    for task in tasks:
        data = _data(task, inputs, device)
        size, seed = task.params["batch_size"], task.params["seed"]
        x, y = _full_batches(data, size, seed, 0, 2 + task.params["extra"])
        arrays = {
            "x_same": x[0],
            "y_same": y[0],
            "x_held": x[1],
            "y_held": y[1],
            "x_extra": x[2:],
            "y_extra": y[2:],
            "x_test": normalise(data.x_test[:size], data.mean, data.std),
            "y_test": data.y_test[:size],
        }
        if steps := task.params["steps"]:
            arrays["x_steps"], arrays["y_steps"] = _full_batches(data, task.params["step_images"], seed, 1, steps)
        yield Output(task.key, arrays=_arrays(arrays))


def _full_batches(data: ImageData, size: int, seed: int, epoch: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first batches of one pass over the probe's stream: x (count, size, D), y (count, size)."""
    import torch

    from creditgrid.core.science.data import full_batches

    batches = list(itertools.islice(full_batches(data, size, seed, epoch, stream="probe"), count))
    if len(batches) < count:  # the plan has refused what a well-described data set does not hold
        raise TaskError(
            f"the probe needs {count} full batches of {size} images and the training set of "
            f"{len(data.x_train):,} holds {len(batches)}: choose a smaller batch"
        )
    xs, ys = zip(*batches, strict=True)
    return torch.stack(xs), torch.stack(ys)


def run_feedback(tasks: Sequence[Task], inputs: Inputs, device: torch.device) -> Iterator[Progress | Output]:
    """Draw ``B.0`` … ``B.{L-1}``, each (d, C)."""
    import torch

    from creditgrid.core.science.credit import feedback_matrices

    for task in tasks:
        classes = _data(task, inputs, torch.device("cpu")).num_classes
        matrices = feedback_matrices(**task.params, num_classes=classes)
        yield Output(task.key, arrays=_arrays({f"B.{layer}": matrix for layer, matrix in enumerate(matrices)}))


def run_train(tasks: Sequence[Task], inputs: Inputs, device: torch.device) -> Iterator[Progress | Output | Saved]:
    """Train once for all checkpoints of one run, and keep the parameters at each asked epoch.

    An interrupted run goes on after the last epoch that it saved.
    """
    from creditgrid.core.science.from_artifacts import feedback_stack, tensors
    from creditgrid.core.science.network import ResidualMLP
    from creditgrid.core.science.streams import generator
    from creditgrid.core.science.training import accuracy_and_loss, resumable, train

    first = tasks[0]
    params = first.params
    data = _data(first, inputs, device)
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
    feedback = None
    if "feedback" in first.parents:
        feedback = feedback_stack(inputs[first.parents["feedback"]], device)
    saved = tensors(inputs[first.group]) if first.group in inputs else None
    if saved is not None and (not resumable(network, saved) or saved["epoch"] > min(wanted)):
        saved = None  # of another version, or gone past an epoch that is wanted
    run = train(
        network,
        data,
        rule=params["rule"],
        epochs=params["epochs"],
        batch_size=params["batch_size"],
        lr=params["lr"],
        weight_decay=params["weight_decay"],
        seed=params["seed"],
        feedback=feedback,
        random_targets=params["random_targets"],
        resume=saved,
    )
    for number, at in enumerate(run):
        if at.epoch in wanted:
            accuracy, loss = accuracy_and_loss(network, data)
            info = {"test_accuracy": accuracy, "test_loss": loss, "train_loss": at.train_loss}
            yield Output(wanted[at.epoch], arrays=_arrays(network.state_dict()), info=info)
        if at.epoch == last:
            return
        if number:
            yield _saved(at)
        yield Progress(at.epoch, last, _told(at.epoch, last, at.train_loss, resumed=saved is not None and not number))


def _saved(at: Epoch) -> Saved:
    return Saved(lambda: _arrays(at.state()))


def _told(epoch: int, last: int, loss: float | None, *, resumed: bool) -> str:
    note = f"resumed at epoch {epoch} of {last}" if resumed else f"epoch {epoch} of {last}"
    return note if loss is None else f"{note}, training loss {loss:.4g}"


def run_fit(tasks: Sequence[Task], inputs: Inputs, device: torch.device) -> Iterator[Progress | Output]:
    """Fit one estimator on a frozen checkpoint."""
    from creditgrid.core.science.estimators import EstimatorNet
    from creditgrid.core.science.fitting import fit_scalar_cb, fit_state_bridge, fit_vec
    from creditgrid.core.science.from_artifacts import restore_network
    from creditgrid.core.science.streams import generator

    for task in tasks:
        data = _data(task, inputs, device)
        network = restore_network(inputs[task.parents["checkpoint"]], device, residual_add=task.params["residual_add"])
        options = {name: value for name, value in task.params.items() if name not in ("estimator", "residual_add")}
        which, width = task.params["estimator"], network.d_hidden
        s_dim = width if options.get("s_source") == "delta_L" else data.num_classes
        estimator = EstimatorNet(
            width,
            s_dim,
            1 if which == "scalar_cb" else width,
            generator=generator(options["seed"], f"fit/{which}/init"),
        ).to(device)
        fits: dict[str, Callable[..., Iterator[FitEpoch]]] = {
            "vec": fit_vec,
            "scalar_cb": fit_scalar_cb,
            "state_bridge": fit_state_bridge,
        }
        loss = None
        for state in fits[which](estimator, network, data, **options):
            loss = state.loss
            note = _told(state.epoch, options["epochs"], None, resumed=False)
            yield Progress(state.epoch, options["epochs"], note if loss is None else f"{note}, fitting loss {loss:.4g}")
        yield Output(task.key, arrays=_arrays(estimator.state_dict()), info={"fit_loss": loss})


def _data(task: Task, inputs: Inputs, device: torch.device) -> ImageData:
    from creditgrid.core.science.from_artifacts import image_data

    return image_data(inputs[task.parents["dataset"]], device)


def _arrays(tensors: Mapping[str, torch.Tensor]) -> Arrays:
    # A copy: the caller goes on changing what it yielded (training goes on after a checkpoint).
    return {name: tensor.detach().cpu().contiguous().numpy().copy() for name, tensor in tensors.items()}


DATA = TaskKind("data", 1, run_data)
PROBE = TaskKind("probe", 1, run_probe)
FEEDBACK = TaskKind("feedback", 1, run_feedback)
TRAIN = TaskKind("train", 1, run_train, Resources(cpu=1, gpu=0.5), max_group=1000)
FIT = TaskKind("fit", 1, run_fit, Resources(cpu=1, gpu=0.5))
CHECKPOINT = TaskKind("checkpoint", 1, None)
STAGES = (DATA, PROBE, FEEDBACK, TRAIN, FIT, CHECKPOINT)


@lru_cache(_NAMES)
def data_task(dataset: DatasetRef) -> Task:
    """The decoded dataset."""
    return DATA.task({"fingerprint": dataset.fingerprint}, source=dict(dataset.source))


@lru_cache(_NAMES)
def probe_task(
    dataset: DatasetRef,
    *,
    batch_size: int,
    seed: int,
    extra: int = EXTRA_BATCHES,
    steps: int = 0,
    step_images: int = 0,
) -> Task:
    """The fixed batches; they depend on (dataset, batch size, probe seed) and on how many there are alone.

    ``extra`` batches of ``batch_size`` beside the same and the held-out one; ``steps`` batches of ``step_images``.
    """
    params = {"batch_size": batch_size, "seed": seed, "extra": extra, "steps": steps, "step_images": step_images}
    return PROBE.task(params, {"dataset": data_task(dataset)})


def step_batches(dataset: DatasetRef, steps: int, images: int) -> int:
    """How many step batches of so many images a probe holds for rollouts of so many steps.

    Rounded up as far as the data set reaches, so that rollouts of different lengths share probes.
    """
    rounded = max(STEP_BATCHES, 1 << (steps - 1).bit_length())
    return max(steps, min(rounded, dataset.num_train // images))


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
    rule: str,
    random_targets: bool,
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
    """The checkpoint at ``epoch`` of one training run; all checkpoints of a run are one group.

    A run by ``dfa`` stands on the feedback matrices of its seed.
    """
    run = {
        "rule": rule,
        "random_targets": random_targets,
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
    parents = {"dataset": data_task(dataset)}
    if rule == "dfa":
        parents["feedback"] = feedback_task(dataset, seed=seed, num_blocks=num_blocks, d_hidden=d_hidden)
    group = (digest(run), *(parent.key for parent in parents.values()))
    return TRAIN.task(run | {"epoch": epoch}, parents, group=group)


@lru_cache(_NAMES)
def checkpoint_task(name: str) -> Task:
    """An imported checkpoint; its name holds its shape and the SHA-256 of its content (see ``foreign``)."""
    return CHECKPOINT.task({"name": name})


@lru_cache(_NAMES)
def fit_task(
    dataset: DatasetRef, checkpoint: Task, estimator: str, options: tuple[tuple[str, Any], ...], *, residual_add: bool
) -> Task:
    """An estimator fitted on ``checkpoint``; ``options`` are the keyword arguments of its fit function."""
    return FIT.task(
        {"estimator": estimator, "residual_add": residual_add, **dict(options)},
        {"dataset": data_task(dataset), "checkpoint": checkpoint},
    )
