"""Same-batch line search: does a step along a method's credit lower the loss on the batch that gave the credit?

For each (method, update range, norm mode) one local direction is computed on the probe's *same* batch, from hidden
states before any step. Each step size moves the parameters along it (plain SGD), and the change of the loss is measured
on that batch and on the *held* batch. The direction does not depend on the step size, so all cells of one checkpoint
are one call: each direction once, and all step sizes in one batched pass. Protocols, section 8 (The experiments).
"""

# Functions import torch where they use it: plans are made on machines that have none.

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from creditgrid.core.costing import Given
from creditgrid.core.datasets import DatasetRef
from creditgrid.core.experiment import Axis, Chart, Column, Experiment, Params, Row, Summary, Verdict
from creditgrid.core.experiments import costs
from creditgrid.core.experiments.parameters import StepParams, enough_blocks, enough_images, streams_seed
from creditgrid.core.experiments.stages import EXTRA_BATCHES
from creditgrid.core.experiments.summaries import Line, added, grouped, methods_of, statistics, varied
from creditgrid.core.science import counts
from creditgrid.core.science.choices import NormMode, UpdateRange
from creditgrid.core.task import Inputs, Output, Progress, Resources, Task, TaskKind
from creditgrid.core.units.known import Units
from creditgrid.core.work import Cost, Work

if TYPE_CHECKING:
    import torch

ORACLE_DESCENDS = -1e-6
"""If the best raw delta_loss_same of an exact method is not below this, the implementation is suspect."""
GROUPED = ("method", "update_range", "norm_mode")
"""The summary has a line for each combination of these, at its best step size."""


class LinesearchParams(StepParams):
    """Parameters of a line-search cell; each may be fixed or an axis."""

    update_range: UpdateRange = Field("all", description="Blocks that take the step.")
    norm_mode: NormMode = Field("raw", description="norm: a_l divided by its RMS, per sample.")
    update_head: Literal["auto", "always", "never"] = Field(
        "auto", description="Whether the head takes the step; auto: not for last1."
    )
    eta: float = Field(description="Step size η of the local update.", ge=0)

    def conflicts(self, dataset: DatasetRef | None) -> Iterable[tuple[str, str]]:
        yield from super().conflicts(dataset)
        yield from enough_blocks(self.update_range, self.num_blocks)
        blamed = "batch_size" if self.step_batch_size is None else "step_batch_size"
        yield from enough_images(dataset, (blamed, 2 + EXTRA_BATCHES, self.step_images))


COLUMNS: Mapping[str, Column] = {
    "loss_before_same": Column("float64", "Cross-entropy on the same batch before the step, nats."),
    "loss_after_same": Column("float64", "Cross-entropy on the same batch after the step, nats."),
    "delta_loss_same": Column("float64", "Change of the loss on the same batch, nats; negative is descent."),
    "delta_loss_held": Column("float64", "Change of the loss on the held-out batch, nats."),
    "delta_acc_same": Column("float64", "Change of the accuracy on the same batch, fraction."),
    "credit_rms": Column(
        "float64", "RMS of the raw credit over the width, mean over the batch and the updated blocks."
    ),
}


def cell(params: LinesearchParams, dataset: DatasetRef) -> tuple[Task, Sequence[Task]]:
    """The measure task of one cell, and its ancestors."""
    # The step is taken on the same batch, so the probe's batches have the size of the step's.
    return params.measured(MEASURE, dataset, data=False, batch_size=params.step_images)


def measure(tasks: Sequence[Task], inputs: Inputs, device: torch.device) -> Iterator[Progress | Output]:
    """All cells of one checkpoint in one batched pass."""
    from creditgrid.core.science.credit_sources import credits_on, network_and_sources, source_name
    from creditgrid.core.science.from_artifacts import tensors
    from creditgrid.core.science.line_search import Step, line_search
    from creditgrid.core.science.measuring import measured
    from creditgrid.core.science.task_units import measurements_of, rule_of

    network, sources = network_and_sources(tasks, inputs, device)
    probe = tensors(inputs[tasks[0].parents["probe"]], device)
    x_same, y_same = probe["x_same"], probe["y_same"]
    credits = credits_on(network, sources, x_same, y_same)
    steps = [
        Step(
            source_name(task, inputs),
            task.params["update_range"],
            task.params["norm_mode"],
            task.params["eta"],
            _steps_head(task.params),
            rule_of(task, inputs),
            task.params["step_weight_decay"],
            task.params["step_noise"],
            task.params["clamp"],
            task.params["step_radius"],
        )
        for task in tasks
    ]
    held, seed = (probe["x_held"], probe["y_held"]), streams_seed(tasks[0].params)
    besides: dict[int, Mapping[str, Any]] = {}
    measurements = measurements_of(tasks[0], inputs)

    def on_update(position: int, update: Mapping[str, torch.Tensor]) -> None:
        besides[position] = measured(measurements, network, x_same, y_same, update)

    on_update_or_none = on_update if measurements else None
    results = line_search(network, x_same, y_same, *held, credits, steps, seed, on_update_or_none)
    for position, (task, result) in enumerate(zip(tasks, results, strict=True)):
        yield Output(task.key, rows=[result._asdict() | dict(besides.get(position, {}))])


def _steps_head(params: Mapping[str, object]) -> bool:
    head = params["update_head"]
    return head == "always" or (head == "auto" and params["update_range"] != "last1")


def cost(task: Task, given: Given, units: Units | None = None) -> Cost | None:
    """Each credit once, each direction once over its widest range, and a forward pass for each step size."""
    params = task.params
    shape = costs.shape_of(params, given.dataset)
    if shape is None:
        return None
    method = costs.method_of(task, units)
    batch = params["batch_size"] if params["step_batch_size"] is None else params["step_batch_size"]
    blocks, head = {"last1": 1, "last2": 2}.get(params["update_range"], shape.blocks), _steps_head(params)
    credit = None if method is None else method.credit_cost(shape, batch, shape.blocks)
    if method is None or credit is None:
        return None
    source, rule = costs.source_part(task, method), costs.rule_part(task)
    direction = costs.local_gradients(shape, batch, blocks, with_head=head)
    if params["step_noise"]:
        drawn = costs.moved_parameters(shape, shape.blocks, with_head=True) * counts.RANDN
        direction = direction.plus(Work(elements=drawn))
    shared = (
        ("forward", counts.forward(shape, 3 * batch).plus(costs.LOADED)),
        (source, credit),
        (f"{source}/{params['norm_mode']}/{rule}", direction),
    )
    return Cost(costs.candidate(shape, 2 * batch, blocks, with_head=head), shared)


def summarise(rows: Sequence[Row], params: type[Params] = LinesearchParams) -> Summary:
    """For each (method, range, norm): the step size with the lowest mean delta_loss_same over seeds.

    Each setting of the other axes, such as checkpoint_epoch, has lines of its own. Diverged cells are never the best.
    """
    columns = [*GROUPED, *varied(params, rows, besides=(*GROUPED, "eta"))]
    table = []
    for values, some in grouped(rows, columns).items():
        by_eta = {eta: of_eta for (eta,), of_eta in grouped(some, ["eta"]).items()}
        diverged = sum(row["diverged"] for row in some)
        line: Line = {**dict(zip(columns, values, strict=True)), "best_eta": None, "n": 0, "diverged": diverged}
        # A step size at which a seed diverged cannot be the best: the mean over the others would hide that seed.
        whole = {
            eta: statistics(of_eta, [*COLUMNS, *added(params)])
            for eta, of_eta in by_eta.items()
            if not any(row["diverged"] for row in of_eta)
        }
        if whole:
            best = min(whole, key=lambda eta: (whole[eta]["delta_loss_same"], eta))
            line |= {"best_eta": best, "n": whole[best]["delta_loss_same_n"], **whole[best]}
        table.append(line)
    shown = [*columns, "best_eta", "delta_loss_same", "delta_loss_held", *added(params), "n", "diverged"]
    return Summary("Best step size by delta_loss_same", shown, table, list(_verdicts(table, params)))


def _verdicts(table: Sequence[Line], params: type[Params]) -> Iterator[Verdict]:
    """One for each method whose credit is the gradient itself."""
    measured = [line for line in table if line["norm_mode"] == "raw" and line["best_eta"] is not None]
    for name, method in methods_of(params).items():
        raw = [line["delta_loss_same"] for line in measured if line["method"] == name]
        if not raw or not method.exact:
            continue
        numbers = {"oracle_best_raw_delta_loss_same": min(raw), "threshold": ORACLE_DESCENDS}
        text = f"the best raw step of {name} changes the loss by {min(raw):.3g}"
        if min(raw) < ORACLE_DESCENDS:
            yield Verdict("oracle descends", text, numbers)
            continue
        why = "the implementation is suspect, or the step sizes are far from useful ones"
        yield Verdict("oracle does not descend", f"{text}, not below {ORACLE_DESCENDS:g}: {why}", numbers, warning=True)


CHARTS = (
    Chart(
        name="loss-change",
        title="Loss change against step size",
        mark="line",
        x=Axis(("eta",), "step size η", "log"),
        # One axis, so that the panels of "same" and "held" share a scale.
        measures=(Axis(("delta_loss_same", "delta_loss_held"), "loss change (nats)", "symlog"),),
        series=("method",),
    ),
)

COST_BY = ("update_range", "norm_mode", "update_head", "step_batch_size", "step_noise")
# 2: the key holds the parameters of the cell's own units alone.
MEASURE = TaskKind("linesearch", 2, measure, Resources(cpu=1, gpu=0.25), max_group=8192, cost=cost, cost_by=COST_BY)

EXPERIMENT = Experiment(
    name="linesearch",
    title="Same-batch line search over step sizes",
    params=LinesearchParams,
    columns=COLUMNS,
    measure=MEASURE,
    cell=cell,
    summarise=summarise,
    charts=CHARTS,
    measurable="step",
)
