"""What a worker computes for each stage: generators that take the tasks of one group and yield their artifacts."""

# ruff: noqa: ARG001
# Functions import torch where they use it, because plans load this module; all have the signature of a run.

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from creditgrid.core.errors import TaskError
from creditgrid.core.task import Arrays, Inputs, Output, Progress, Saved, Task
from creditgrid.core.units.brought import units_of
from creditgrid.core.units.network import Size, network_of

if TYPE_CHECKING:
    import torch

    from creditgrid.core.science.data import ImageData
    from creditgrid.core.science.fitting import FitEpoch
    from creditgrid.core.science.training import Epoch
    from creditgrid.core.units.method import Method

METRICS = ("train_loss", "test_accuracy", "test_loss", "fit_loss", "step_size", "images_per_s", "seconds")
"""What the curves of trainings and fits measure. Losses are mean cross-entropies or fitting losses over the epoch."""


def run_data(tasks: Sequence[Task], inputs: Inputs, device: torch.device) -> Iterator[Progress | Output]:
    """Decode each dataset from its task's ``source``."""
    from creditgrid.core.science.loading import UNIT, load, load_unit

    for task in tasks:
        if task.source["package"] == UNIT:
            arrays = load_unit(units_of(task, inputs).dataset(task.source["name"]))
        else:
            arrays = load(task.source)
        yield Output(task.key, arrays=arrays)


def run_probe(tasks: Sequence[Task], inputs: Inputs, device: torch.device) -> Iterator[Progress | Output]:
    """Draw the fixed batches: ``x_same``, ``x_held``, ``x_extra`` of the training stream, ``x_test`` in file order.

    ``x_steps``, the batches of rollouts, come from a further pass of that stream. Protocols, section 2 (Data).
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
    if len(batches) < count:  # only if the dataset's description is wrong: the plan checks the number of images
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
    """Train once for all checkpoints of one run, and keep the parameters at each of their epochs.

    An interrupted run continues after the last epoch that it saved.
    """
    from creditgrid.core.science.from_artifacts import feedback_stack, tensors
    from creditgrid.core.science.random_streams import generator
    from creditgrid.core.science.training import accuracy_and_loss, resumable, train

    first = tasks[0]
    options = {name: value for name, value in first.params.items() if name not in ("epoch", "network")}
    sizes = {name: options.pop(name) for name in ("d_hidden", "num_blocks", "residual_add", "w2_std")}
    data = _data(first, inputs, device)
    channels, height, width = data.x_train.shape[1:]
    size = Size((channels, height, width), data.num_classes, **sizes)
    wanted = {task.params["epoch"]: task.key for task in tasks}
    last = max(wanted)
    chosen = network_of(first.params, units_of(first, inputs))
    network = chosen.build(size, generator(options["seed"], "init")).to(device)
    feedback = None
    if "feedback" in first.parents:
        feedback = feedback_stack(inputs[first.parents["feedback"]], device)
    saved = tensors(inputs[first.group]) if first.group in inputs else None
    if saved is not None and (not resumable(network, saved) or saved["epoch"] > min(wanted)):
        saved = None  # of another version, or past an epoch that is wanted
    run = train(network, data, **options, feedback=feedback, resume=saved)
    for number, at in enumerate(run):
        resumed = saved is not None and not number  # its point came before the interruption
        measured = {} if resumed else _metrics(at, at.train_loss, "train_loss", data)
        if at.epoch in wanted:
            accuracy, loss = accuracy_and_loss(network, data)
            if not resumed:
                measured |= {"test_accuracy": accuracy, "test_loss": loss}
        note = f"{'resumed at ' if resumed else ''}epoch {at.epoch} of {last}"
        if at.train_loss is not None:
            note += f", training loss {at.train_loss:.4g}"
        yield Progress(at.epoch, last, note, measured)
        if at.epoch in wanted:
            info = {"test_accuracy": accuracy, "test_loss": loss, "train_loss": at.train_loss}
            yield Output(wanted[at.epoch], arrays=_arrays(network.state_dict()), info=info)
        if at.epoch == last:
            return
        if number:
            yield _saved(at.state)


def _metrics(at: Epoch | FitEpoch, loss: float | None, name: str, data: ImageData) -> dict[str, float]:
    """What a finished epoch measures; nothing for the initialisation."""
    if loss is None or at.step_size is None or at.seconds is None:
        return {}
    rate = len(data.y_train) / at.seconds if at.seconds > 0 else math.inf
    return {name: loss, "step_size": at.step_size, "images_per_s": rate, "seconds": at.seconds}


def _saved(state: Callable[[], Mapping[str, torch.Tensor]]) -> Saved:
    return Saved(lambda: _arrays(state()))


def run_fit(tasks: Sequence[Task], inputs: Inputs, device: torch.device) -> Iterator[Progress | Output | Saved]:
    """Fit one method on a frozen checkpoint.

    An interrupted fit continues after the last epoch that it saved, if its epochs have a state.

    Raises:
        TaskError: a method's own fit yields or returns something else than it must.
    """
    from creditgrid.core.science.fitting import Fitting, fitted
    from creditgrid.core.science.from_artifacts import checkpoint_network, tensors
    from creditgrid.core.science.task_units import fit_method_of

    for task in tasks:
        data = _data(task, inputs, device)
        network = checkpoint_network(
            inputs[task.parents["checkpoint"]],
            device,
            residual_add=task.params["residual_add"],
            network=network_of(task.params, units_of(task, inputs)),
        )
        saved = tensors(inputs[task.group], device) if task.group in inputs else None
        fitting = Fitting(network, data, task.params["batch_size"], task.params["seed"], saved)
        method = fit_method_of(task, inputs)
        found: dict[str, torch.Tensor] = {}
        wanted, loss = task.params.get("epochs"), None
        last = wanted if isinstance(wanted, int) else 0  # a method may call something else so

        def epochs(
            method: Method = method, fitting: Fitting = fitting, found: dict[str, torch.Tensor] = found
        ) -> Iterator[FitEpoch]:
            found |= yield from fitted(method, fitting)

        for number, at in enumerate(epochs()):
            resumed = saved is not None and not number and at.epoch > 0 and at.seconds is None
            loss = at.loss
            note = f"{'resumed at ' if resumed else ''}epoch {at.epoch}{f' of {last}' if last else ''}"
            note = note if loss is None else f"{note}, fitting loss {loss:.4g}"
            yield Progress(at.epoch, max(last, at.epoch), note, _metrics(at, loss, "fit_loss", data))
            if at.state is not None and number and at.epoch != last:
                yield _saved(at.state)
        yield Output(task.key, arrays=_arrays(found), info={"fit_loss": loss})


def _data(task: Task, inputs: Inputs, device: torch.device) -> ImageData:
    from creditgrid.core.science.from_artifacts import image_data

    return image_data(inputs[task.parents["dataset"]], device)


def _arrays(tensors: Mapping[str, torch.Tensor]) -> Arrays:
    # A copy: training continues after a checkpoint, and changes its tensors.
    return {name: tensor.detach().cpu().contiguous().numpy().copy() for name, tensor in tensors.items()}
