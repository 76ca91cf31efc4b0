"""Snapshot time: is a held-out failure of local steps an artifact of late snapshots?

For each method and checkpoint: search the step size with the lowest loss on the same batch after one step, then take
five steps at it, each with a new credit, and measure both on the same and on the held-out batch. PUR_k =
-dl_held_k/-dl_same_k is the part of the gain that carries over. The spread of the update directions over further
batches shows how much of a direction is specific to its batch. Protocols, section 8 (The experiments).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from creditgrid.core.costing import Given
from creditgrid.core.datasets import DatasetRef
from creditgrid.core.experiment import Axis, Chart, Column, Experiment, Params, Row, Summary, Verdict
from creditgrid.core.experiments import costs
from creditgrid.core.experiments.parameters import CreditParams, enough_blocks, enough_images
from creditgrid.core.experiments.stages import EXTRA_BATCHES, step_batches
from creditgrid.core.experiments.summaries import Line, added, grouped, methods_of, over_seeds, setting_prefix, varied
from creditgrid.core.rules.inner_product import InnerProduct
from creditgrid.core.science import counts
from creditgrid.core.science.choices import UpdateRange
from creditgrid.core.task import Inputs, Output, Progress, Resources, Task, TaskKind
from creditgrid.core.units.known import Units
from creditgrid.core.units.method import is_fitted
from creditgrid.core.work import Cost, Work

if TYPE_CHECKING:
    import torch

    from creditgrid.core.science.credit_sources import CreditSource
    from creditgrid.core.science.line_search import StepResult
    from creditgrid.core.science.measuring import Update
    from creditgrid.core.science.network import ResidualNetwork
    from creditgrid.core.science.rollout import OnUpdate
    from creditgrid.core.units.measurement import Measurement

ETAS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
"""Step sizes of the search."""
STEPS = 5
LATE, EARLY = 50, 20
"""A snapshot is late from epoch LATE on, and early up to epoch EARLY."""
GROUPED = ("method", "checkpoint_epoch")
COLUMNS: Mapping[str, Column] = {
    "test_accuracy": Column("float64", "Accuracy of the checkpoint on the whole test set, fraction."),
    "best_eta": Column("float64", "Step size with the lowest loss on the same batch after one step."),
    "dl_same_1": Column("float64", "Loss change on the same batch after one step at best_eta, nats."),
    "dl_held_1": Column("float64", "Loss change on the held-out batch after one step at best_eta, nats."),
    "pur_1": Column("float64", "-dl_held_1/(-dl_same_1); null if the loss on the same batch did not fall."),
    "dl_same_5": Column("float64", "Loss change on the same batch after five steps on fresh batches, nats."),
    "dl_held_5": Column("float64", "Loss change on the held-out batch after five steps on fresh batches, nats."),
    "pur_5": Column("float64", "-dl_held_5/(-dl_same_5); null if the loss on the same batch did not fall."),
    "update_cos": Column("float64", "Mean pairwise cosine of the update directions on the extra batches."),
    "update_var": Column("float64", "Mean squared distance of those directions from their mean."),
}


class SnapshotTimeParams(CreditParams):
    """Parameters of a snapshot-time cell; each may be fixed or an axis."""

    update_range: UpdateRange = Field("last1", description="Blocks that take the steps.")
    eta: float | None = Field(None, ge=0, description="Step size; null: the best of 1e-5 … 1e-2, seven values.")
    extra_batches: int = Field(4, ge=2, le=4096, description="Batches whose update directions are compared.")

    def conflicts(self, dataset: DatasetRef | None) -> Iterable[tuple[str, str]]:
        yield from super().conflicts(dataset)
        yield from enough_blocks(self.update_range, self.num_blocks)
        blamed = "extra_batches" if self.extra_batches > EXTRA_BATCHES else "batch_size"
        yield from enough_images(dataset, (blamed, 2 + _extra(self), self.batch_size))


def _extra(params: SnapshotTimeParams) -> int:
    return max(EXTRA_BATCHES, params.extra_batches)


def cell(params: SnapshotTimeParams, dataset: DatasetRef) -> tuple[Task, Sequence[Task]]:
    """The measure task of one cell, and its ancestors."""
    steps = step_batches(dataset, STEPS, params.batch_size)
    return params.measured(MEASURE, dataset, extra=_extra(params), steps=steps, step_images=params.batch_size)


def measure(tasks: Sequence[Task], inputs: Inputs, device: torch.device) -> Iterator[Progress | Output]:
    """All cells of one checkpoint: one fused search, then one rollout for each range."""
    from creditgrid.core.science.credit_sources import network_and_sources, source_name
    from creditgrid.core.science.from_artifacts import image_data, tensors
    from creditgrid.core.science.rollout import Rollout, rollouts
    from creditgrid.core.science.task_units import measurements_of
    from creditgrid.core.science.training import accuracy_and_loss
    from creditgrid.core.science.updates import update_blocks

    shared = tasks[0]
    network, sources = network_and_sources(tasks, inputs, device)
    probe = tensors(inputs[shared.parents["probe"]], device)
    accuracy, _ = accuracy_and_loss(network, image_data(inputs[shared.parents["data"]], device))
    names = {task.key: source_name(task, inputs) for task in tasks}
    best = _search(tasks, names, network, probe, sources)
    on = {name: (probe[f"x_{name}"], probe[f"y_{name}"]) for name in ("same", "held")}
    measurements = measurements_of(shared, inputs)

    x_steps, y_steps = probe["x_steps"][:STEPS], probe["y_steps"][:STEPS]
    for update_range in dict.fromkeys(task.params["update_range"] for task in tasks):
        alike = [task for task in tasks if task.params["update_range"] == update_range]
        blocks = update_blocks(update_range, network.num_blocks)
        stepped = [Rollout(names[task.key], InnerProduct(), "raw", best[task.key][0]) for task in alike]
        besides: dict[int, Mapping[str, Any]] = {}
        on_update = _measuring(measurements, network, on["same"], besides) if measurements else None
        losses = rollouts(
            network,
            sources,
            stepped,
            x_steps,
            y_steps,
            on,
            blocks,
            measured_after=(0, STEPS),
            on_update=on_update,
        )
        spreads = _spreads(alike, names, network, probe, sources, blocks)
        for place, task in enumerate(alike):
            eta, one = best[task.key]
            same, held = ((losses[name][place, -1] - losses[name][place, 0]).item() for name in ("same", "held"))
            cosine, variance = spreads[names[task.key], task.params["extra_batches"]]
            yield Output(
                task.key,
                rows=[
                    {
                        "test_accuracy": accuracy,
                        "best_eta": eta,
                        "dl_same_1": one.delta_loss_same,
                        "dl_held_1": one.delta_loss_held,
                        "pur_1": _pur(one.delta_loss_same, one.delta_loss_held),
                        "dl_same_5": same,
                        "dl_held_5": held,
                        "pur_5": _pur(same, held),
                        "update_cos": cosine,
                        "update_var": variance,
                        **besides.get(place, {}),
                    }
                ],
            )


def _measuring(
    measurements: Sequence[Measurement],
    network: ResidualNetwork,
    batch: tuple[torch.Tensor, torch.Tensor],
    found: dict[int, Mapping[str, Any]],
) -> OnUpdate:
    """Puts into ``found`` what is measured of all steps together, by the position of a rollout."""
    from creditgrid.core.science.measuring import measured

    def on_update(position: int, steps: int, update: Update) -> None:
        if steps == STEPS:
            found[position] = measured(measurements, network, *batch, update())

    return on_update


def _search(
    tasks: Sequence[Task],
    names: Mapping[str, str],
    network: ResidualNetwork,
    probe: Mapping[str, torch.Tensor],
    sources: Mapping[str, CreditSource],
) -> dict[str, tuple[float, StepResult]]:
    """By task's key: the step size with the lowest loss on the same batch, and the result of one step.

    ``names`` are those of the tasks' credit sources, by key.
    """
    from creditgrid.core.science.credit_sources import credits_on
    from creditgrid.core.science.line_search import Step, line_search

    x_same, y_same = probe["x_same"], probe["y_same"]
    credits = credits_on(network, sources, x_same, y_same)
    tried: dict[str, list[Step]] = {}
    for task in tasks:
        etas = ETAS if task.params["eta"] is None else (task.params["eta"],)
        tried[task.key] = [
            Step(names[task.key], task.params["update_range"], "raw", eta, update_head=True, rule=InnerProduct())
            for eta in etas
        ]
    steps = list(dict.fromkeys(itertools.chain.from_iterable(tried.values())))
    results = line_search(network, x_same, y_same, probe["x_held"], probe["y_held"], credits, steps)
    found = dict(zip(steps, results, strict=True))

    def change(step: Step) -> float:
        delta = found[step].delta_loss_same
        return delta if math.isfinite(delta) else math.inf  # a step that diverges is never the best

    chosen = {key: min(some, key=change) for key, some in tried.items()}
    return {key: (step.eta, found[step]) for key, step in chosen.items()}


def _spreads(  # noqa: PLR0917
    tasks: Sequence[Task],
    names: Mapping[str, str],
    network: ResidualNetwork,
    probe: Mapping[str, torch.Tensor],
    sources: Mapping[str, CreditSource],
    blocks: range,
) -> dict[tuple[str, int], tuple[float, float]]:
    """The `_spread` of the update directions of head and ``blocks``, by credit source and number of extra batches."""
    import torch

    from creditgrid.core.science.updates import local_direction

    wanted = {(names[task.key], task.params["extra_batches"]) for task in tasks}
    widest = max(extra for _, extra in wanted)
    directions: dict[str, list[torch.Tensor]] = {name: [] for name, _ in wanted}
    for x, y in zip(probe["x_extra"][:widest], probe["y_extra"][:widest], strict=True):
        with torch.no_grad():
            logits, hiddens = network(x, return_hidden=True)
        for name, of_batches in directions.items():
            credit = sources[name].credits(network, hiddens, logits, y, blocks.start)
            parts = local_direction(network, hiddens, credit, y, blocks, update_head=True, rule=InnerProduct())
            of_batches.append(torch.cat([part.flatten() for part in parts.values()]))
    return {(name, extra): _spread(torch.stack(directions[name][:extra]).double()) for name, extra in wanted}


def _spread(u: torch.Tensor) -> tuple[float, float]:
    """Mean pairwise cosine, and mean ‖u - ū‖², of vectors u (n, p)."""
    import torch
    from torch.nn import functional as F  # noqa: N812

    cosines = F.normalize(u, dim=-1) @ F.normalize(u, dim=-1).T
    pairs = torch.triu_indices(len(u), len(u), offset=1)
    return cosines[pairs[0], pairs[1]].mean().item(), (u - u.mean(0)).square().sum(-1).mean().item()


def _pur(same: float, held: float) -> float | None:
    return -held / (-same + 1e-12) if same < 0 else None


def cost(task: Task, given: Given, units: Units | None = None) -> Cost | None:
    """The checkpoint's accuracy and each credit once; for each cell its search, its steps and the extra batches."""
    dataset = given.dataset
    params = task.params
    shape = costs.shape_of(params, dataset)
    if shape is None or dataset is None:
        return None
    batch, blocks = params["batch_size"], {"last1": 1, "last2": 2}.get(params["update_range"], shape.blocks)
    searched = costs.candidate(shape, 2 * batch, blocks, with_head=True).times(
        1 if params["eta"] is not None else len(ETAS)
    )
    if (method := costs.method_of(task, units)) is None:
        return None
    step = costs.rollout_step(method, shape, batch, blocks, False)
    once = method.credit_cost(shape, batch, shape.blocks)
    again = method.credit_cost(shape, batch, blocks)
    if step is None or once is None or again is None:
        return None
    spread = again.plus(costs.local_gradients(shape, batch, blocks, with_head=True))
    shared = (
        ("accuracy", costs.evaluation(shape, dataset.num_test).plus(costs.LOADED)),
        ("forward", counts.forward(shape, (3 + STEPS + params["extra_batches"]) * batch)),
        (costs.source_part(task, method), once),
    )
    own = Work.total(searched, step.times(STEPS), spread.times(params["extra_batches"] + 1))
    return Cost(own, shared)


def summarise(rows: Sequence[Row], params: type[Params] = SnapshotTimeParams) -> Summary:
    """For each method and checkpoint, and each setting of the other axes, the means over seeds."""
    # Without an epoch, a trained checkpoint is the last one; of an imported one the epoch is unknown.
    dated = [
        {**row, "checkpoint_epoch": row["train_epochs"]}
        if row["checkpoint_epoch"] is None and row["checkpoint"] is None
        else row
        for row in rows
    ]
    others = varied(params, dated, besides=GROUPED)
    table = over_seeds(dated, [*GROUPED, *others], [*COLUMNS, *added(params)])
    measured = ["test_accuracy", "best_eta", "dl_same_1", "dl_held_1", "pur_1", "dl_same_5", "dl_held_5", "pur_5"]
    shown = [*GROUPED, *others, *measured, *added(params), "n", "diverged"]
    return Summary("Local steps by snapshot", shown, table, list(_verdicts(table, others, params)))


def _verdicts(table: Sequence[Line], others: Sequence[str], params: type[Params]) -> Iterator[Verdict]:
    """On each fitted method, one for each setting of the other axes."""
    known = [line for line in table if line["checkpoint_epoch"] is not None and line["dl_held_1"] is not None]
    fits = [name for name, method in methods_of(params).items() if is_fitted(method)]
    for (method, *_), lines in grouped([line for line in known if line["method"] in fits], ["method", *others]).items():
        measured = {line["checkpoint_epoch"]: line["dl_held_1"] for line in lines}
        failed = sorted(epoch for epoch, change in measured.items() if change > 0)
        late, early = any(epoch >= LATE for epoch in failed), any(epoch <= EARLY for epoch in failed)
        if late and early:
            name = "across-training failure"
        elif late and min(failed) >= LATE and min(measured) <= EARLY:
            name = "late-snapshot artifact"
        else:
            name = "need more data"
        shown = ", ".join(f"{change:+.3g} at epoch {epoch}" for epoch, change in sorted(measured.items()))
        text = f"{setting_prefix(lines[0], others, params)}{method}'s held-out loss changes by {shown}"
        numbers = {f"dl_held_1_epoch_{epoch}": change for epoch, change in sorted(measured.items())}
        yield Verdict(name, text, numbers)


CHARTS = (
    Chart(
        name="pur",
        title="How much of a step's gain carries over to held-out images (PUR)",
        mark="line",
        # checkpoint_epoch null is the last epoch: a line stands at the first column that is not null.
        x=Axis(("checkpoint_epoch", "train_epochs"), "checkpoint (epochs)"),
        measures=(Axis(("pur_1", "pur_5"), "PUR (ratio)", "symlog"),),
        series=("method",),
    ),
    Chart(
        name="loss-change",
        title="Loss change after 1 and 5 steps at the best step size",
        mark="line",
        x=Axis(("checkpoint_epoch", "train_epochs"), "checkpoint (epochs)"),
        measures=(Axis(("dl_same_1", "dl_held_1", "dl_same_5", "dl_held_5"), "loss change (nats)", "symlog"),),
        series=("method",),
    ),
)

COST_BY = ("update_range", "eta", "extra_batches")
# 2: the key holds the parameters of the cell's own units alone.
MEASURE = TaskKind("snapshot_time", 2, measure, Resources(cpu=1, gpu=0.25), max_group=1024, cost=cost, cost_by=COST_BY)

EXPERIMENT = Experiment(
    name="snapshot_time",
    title="Local steps on early and late snapshots",
    params=SnapshotTimeParams,
    columns=COLUMNS,
    measure=MEASURE,
    cell=cell,
    summarise=summarise,
    charts=CHARTS,
    measurable="step",
)
