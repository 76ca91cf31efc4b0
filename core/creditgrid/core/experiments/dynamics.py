"""Dynamics: how the residual stream and its gradients grow in training. Protocols, section 8 (The experiments).

One row for each logged epoch and layer, measured on the first 1,024 test images: the norms of the hidden states and of
their gradients, the alignment of the training's own feedback with the gradient (dfa), accuracy and loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from creditgrid.core.costing import Given
from creditgrid.core.datasets import DatasetRef
from creditgrid.core.experiment import Axis, Chart, Column, Experiment, Params, Row, Summary
from creditgrid.core.experiments import costs
from creditgrid.core.experiments.parameters import TrainParams
from creditgrid.core.experiments.stage_costs import checkpoint_bytes
from creditgrid.core.experiments.stages import data_task
from creditgrid.core.experiments.summaries import added, grouped, over_seeds, varied
from creditgrid.core.science import counts
from creditgrid.core.task import Inputs, Output, Progress, Resources, Task, TaskKind
from creditgrid.core.units.brought import units_of
from creditgrid.core.units.network import network_of
from creditgrid.core.work import Cost, Work

if TYPE_CHECKING:
    import torch

    from creditgrid.core.science.credit_quality import Batch
    from creditgrid.core.science.network import ResidualNetwork

IMAGES = 1024
"""Everything is measured on the first images of the test set."""
MAX_LOGGED = 1000
"""Epochs that one cell may log: each is a checkpoint."""
GROUPED = ("train_rule", "epoch", "layer")
COLUMNS: Mapping[str, Column] = {
    "epoch": Column("int64", "Epoch of the checkpoint; 0 is the initialisation."),
    "layer": Column("int64", "Layer l of the hidden state, 0…L."),
    "h_norm": Column("float64", "Median over images of ‖h_l‖₂ (the mean of the two middle ones)."),
    "grad_norm": Column("float64", "Median over images of ‖∂CE/∂h_l‖₂, CE being the mean over the images."),
    "grad_frobenius": Column("float64", "Frobenius norm of that gradient over all images."),
    "gamma_dfa": Column("float64", "Mean over layers of the cosine of the training's DFA credit with the gradient."),
    "accuracy": Column("float64", "Fraction of the images that are classified correctly."),
    "loss": Column("float64", "Mean cross-entropy on the images, nats."),
}


class DynamicsParams(TrainParams):
    """Parameters of a measured training run; each may be fixed or an axis."""

    logs_every: int = Field(
        1,
        ge=1,
        le=100_000,
        description="Every how many epochs to log; the last is always logged. Each is kept as a checkpoint.",
    )

    def conflicts(self, dataset: DatasetRef | None) -> Iterable[tuple[str, str]]:
        yield from super().conflicts(dataset)
        if len(self.logged()) > MAX_LOGGED:
            logged = f"logs_every {self.logs_every} logs {len(self.logged()):,} of {self.train_epochs:,} epochs"
            yield "logs_every", f"{logged}, and a cell logs at most {MAX_LOGGED:,}"

    def logged(self) -> Sequence[int]:
        """The logged epochs, in order."""
        regular = range(0, self.train_epochs, self.logs_every)
        return [*regular, self.train_epochs]


def cell(params: DynamicsParams, dataset: DatasetRef) -> tuple[Task, Sequence[Task]]:
    """The measure task of one training run, and its ancestors; the logged checkpoints have the roles epoch_0, ….

    One call trains all of them, and other experiments share them.
    """
    parents = {f"epoch_{epoch}": params.trained(dataset, epoch) for epoch in params.logged()}
    parents |= {"data": data_task(dataset), **params.training_feedback(dataset), **params.measure_code()}
    task = MEASURE.task(params.identity(), parents, source={"dataset": dataset.name})
    return task, params.ancestors(dataset, parents)


def measure(tasks: Sequence[Task], inputs: Inputs, device: torch.device) -> Iterator[Progress | Output]:
    """Every logged epoch of each run, by one batched forward and backward pass each, in double precision."""
    from creditgrid.core.science.credit_quality import file_batches
    from creditgrid.core.science.from_artifacts import (
        checkpoint_network,
        feedback_stack,
        image_data,
    )
    from creditgrid.core.science.measuring import measured
    from creditgrid.core.science.task_units import measurements_of

    for task in tasks:
        data, chosen = image_data(inputs[task.parents["data"]], device), network_of(task.params, units_of(task, inputs))
        feedback, measurements = None, measurements_of(task, inputs)
        if "feedback" in task.parents:
            feedback = feedback_stack(inputs[task.parents["feedback"]], device).double()
        epochs = sorted(int(role.removeprefix("epoch_")) for role in task.parents if role.startswith("epoch_"))
        rows: list[dict[str, float | None]] = []
        for number, epoch in enumerate(epochs):
            arrays = inputs[task.parents[f"epoch_{epoch}"]]
            network = checkpoint_network(arrays, device, residual_add=task.params["residual_add"], network=chosen)
            batch = next(file_batches(network.double(), data, IMAGES))
            besides = measured(measurements, network, batch.x, batch.y)
            rows += ({"epoch": epoch, **row, **besides} for row in measure_checkpoint(network, batch, feedback))
            yield Progress(number + 1, len(epochs), f"epoch {epoch} of {epochs[-1]}")
        yield Output(task.key, rows=rows)


def measure_checkpoint(
    network: ResidualNetwork, batch: Batch, feedback: torch.Tensor | None
) -> list[dict[str, float | None]]:
    """The rows of one checkpoint on a batch, one for each layer 0…L; dfa trained it with ``feedback`` (L, d, C)."""
    import torch

    from creditgrid.core.science.credit import backprop, feedback_credits, output_error, terminal_gradient
    from creditgrid.core.science.per_sample import correct, cosine, cross_entropy

    hiddens, y = torch.stack(list(batch.hiddens)), batch.y
    # The gradient of the sum is that of each image; the gradient of the mean is 1/n of it.
    terminal = terminal_gradient(network, batch.hiddens[-1], y)
    below = backprop(network, batch.hiddens, terminal)
    gradients = torch.cat((below, terminal.unsqueeze(0)))
    h_norms = hiddens.norm(dim=-1)
    grad_norms = gradients.norm(dim=-1) / len(y)
    gamma = None
    if feedback is not None:
        own = feedback_credits(list(feedback), output_error(batch.logits, y))
        gamma = cosine(own, below).mean().item()
    whole = {
        "gamma_dfa": gamma,
        "accuracy": correct(batch.logits, y).double().mean().item(),
        "loss": cross_entropy(batch.logits, y).mean().item(),
    }
    columns = {
        "h_norm": h_norms.quantile(0.5, dim=-1).tolist(),
        "grad_norm": grad_norms.quantile(0.5, dim=-1).tolist(),
        "grad_frobenius": grad_norms.norm(dim=-1).tolist(),
    }
    return [
        {"layer": layer, **{name: values[layer] for name, values in columns.items()}, **whole}
        for layer in range(len(hiddens))
    ]


def cost(task: Task, given: Given) -> Cost | None:
    """A forward pass and a backward pass for each logged epoch, in double precision."""
    dataset = given.dataset
    shape = costs.shape_of(task.params, dataset)
    if shape is None or dataset is None:
        return None
    images = min(IMAGES, dataset.num_test)
    passed = counts.forward(shape, images).plus(counts.backprop(shape, images, shape.blocks))
    once = costs.double(passed).plus(Work(300.0, 0.0, checkpoint_bytes(shape) * 2.0))
    epochs = sum(role.startswith("epoch_") for role in task.parents)
    return Cost(once.times(epochs).plus(costs.LOADED))


def summarise(rows: Sequence[Row], params: type[Params] = DynamicsParams) -> Summary:
    """Each training run's first and last logged epoch, layer by layer, as means over seeds."""
    others = varied(params, rows, besides=GROUPED)
    measured = [*(name for name in COLUMNS if name not in GROUPED), *added(params)]
    table = over_seeds(rows, [*others, *GROUPED], measured)
    kept: list[Row] = []
    for lines in grouped(table, [*others, "train_rule"]).values():
        epochs = {line["epoch"] for line in lines}
        kept += [line for line in lines if line["epoch"] in (min(epochs), max(epochs))]
    return Summary("Residual stream, first and last epoch", [*others, *GROUPED, *measured, "n", "diverged"], kept, [])


CHARTS = (
    Chart(
        name="norms",
        title="Residual stream and gradient over training, by layer",
        mark="line",
        x=Axis(("epoch",), "epoch"),
        # No ‖·‖: fonts often have no such sign, and the whole title falls back to another typeface.
        measures=(
            Axis(("h_norm",), "median norm of h_l", "log"),
            Axis(("grad_norm",), "median norm of ∂CE/∂h_l (nats)", "log"),
        ),
        series=("layer",),
    ),
    Chart(
        name="training",
        title="Accuracy, loss, and DFA's agreement with the gradient over training",
        mark="line",
        x=Axis(("epoch",), "epoch"),
        measures=(
            Axis(("accuracy",), "accuracy (fraction)"),
            Axis(("loss",), "cross-entropy (nats)"),
            Axis(("gamma_dfa",), "gamma of the DFA credit"),
        ),
        series=("train_rule",),
    ),
)

MEASURE = TaskKind("dynamics", 1, measure, Resources(cpu=1, gpu=0.25), cost=cost)

EXPERIMENT = Experiment(
    name="dynamics",
    title="Residual-stream dynamics of training",
    params=DynamicsParams,
    columns=COLUMNS,
    measure=MEASURE,
    cell=cell,
    summarise=summarise,
    charts=CHARTS,
    measurable="checkpoint",
)
