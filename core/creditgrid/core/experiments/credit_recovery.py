"""Credit recovery: does an estimator recover the credit on frozen features? Protocols, section 8 (The experiments).

For each method and layer, on test images: does the credit point along the true gradient (gamma), does it predict how
the loss changes along random directions (rho), and does the loss fall when a hidden state is nudged against it (nudge)?
For a state bridge also: how well does it predict the terminal state?
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from creditgrid.core.costing import Given
from creditgrid.core.datasets import DatasetRef
from creditgrid.core.experiment import Axis, Chart, Column, Experiment, Params, Row, Summary, Verdict
from creditgrid.core.experiments import costs
from creditgrid.core.experiments.parameters import CreditParams, enough_images, streams_seed
from creditgrid.core.experiments.stages import EXTRA_BATCHES
from creditgrid.core.experiments.summaries import Line, added, grouped, methods_of, over_seeds, setting_prefix, varied
from creditgrid.core.task import Inputs, Output, Progress, Resources, Task, TaskKind
from creditgrid.core.units.choice import ChoosingParams
from creditgrid.core.units.known import Units
from creditgrid.core.units.method import is_fitted, predicts_states
from creditgrid.core.work import NO_WORK, Cost

if TYPE_CHECKING:
    import torch

MARGIN = 0.02
"""How far a fitted method's rho must exceed the baselines' for a positive verdict, and 0 for a marginal one."""
GROUPED = ("method",)
NUDGES = {"nudge_0_001": 0.001, "nudge_0_003": 0.003, "nudge_0_01": 0.01}
"""The columns of the nudges, and their step sizes: ``quality.NUDGE_ETAS``."""
PER_LAYER: Mapping[str, Column] = {
    "gamma": Column("float64", "Mean cosine of a_l with the gradient, over up to 10 test batches."),
    "rho": Column("float64", "Pearson correlation of ⟨a_l, v⟩ with the loss's central difference along v."),
    **{
        name: Column("float64", f"Loss change when h_l moves by {eta:g} against a_l/‖a_l‖, nats; negative is descent.")
        for name, eta in NUDGES.items()
    },
    "pred_error": Column("float64", "Methods that predict h_L: mean ‖P(h_l, t_l, e_T) - h_L‖² over the test set."),
}
MEANS: Mapping[str, Column] = {
    f"{name}_mean": Column("float64", f"{name}, mean over the layers (the same on every row of a cell).")
    for name in PER_LAYER
}
COLUMNS: Mapping[str, Column] = {"layer": Column("int64", "Layer l, from 0."), **PER_LAYER, **MEANS}


class CreditRecoveryParams(CreditParams):
    """Parameters of a credit-recovery cell; each may be fixed or an axis."""

    def conflicts(self, dataset: DatasetRef | None) -> Iterable[tuple[str, str]]:
        yield from super().conflicts(dataset)
        yield from enough_images(dataset, ("batch_size", 2 + EXTRA_BATCHES, self.batch_size))


def cell(params: CreditRecoveryParams, dataset: DatasetRef) -> tuple[Task, Sequence[Task]]:
    """The measure task of one cell, and its ancestors."""
    return params.measured(MEASURE, dataset)


def measure(tasks: Sequence[Task], inputs: Inputs, device: torch.device) -> Iterator[Progress | Output]:
    """All methods on one checkpoint, which share its gradients and central differences."""
    from creditgrid.core.science import credit_quality
    from creditgrid.core.science.credit_quality import defined, mean
    from creditgrid.core.science.credit_sources import network_and_sources, source_name
    from creditgrid.core.science.from_artifacts import image_data
    from creditgrid.core.science.measuring import measured
    from creditgrid.core.science.task_units import measurements_of

    shared = tasks[0]
    data = image_data(inputs[shared.parents["data"]], device)
    network, sources = credit_quality.in_double(*network_and_sources(tasks, inputs, device))
    size = shared.params["batch_size"]
    batches = list(credit_quality.file_batches(network, data, size, credit_quality.GAMMA_BATCHES))
    gammas = credit_quality.gamma(network, sources, batches)
    own = credit_quality.source_credits(network, sources, batches[0])
    rhos = credit_quality.rho(network, own, batches[0], streams_seed(shared.params))
    nudges = credit_quality.nudge(network, own, batches[0])
    errors = {
        name: credit_quality.prediction_error(network, source, data, size).tolist()
        for name, source in sources.items()
        if predicts_states(type(source.method))
    }
    besides = measured(measurements_of(shared, inputs), network, batches[0].x, batches[0].y)
    for task in tasks:
        name = source_name(task, inputs)
        by_eta = nudges[name].T.tolist()
        columns: dict[str, list[float | None]] = {
            "gamma": gammas[name].tolist(),
            "rho": defined(rhos[name]),
            **dict(zip(NUDGES, by_eta, strict=True)),
        }
        if name in errors:
            columns["pred_error"] = errors[name]
        means = {f"{column}_mean": mean(values) for column, values in columns.items()}
        yield Output(
            task.key,
            rows=[
                {"layer": layer, **{column: values[layer] for column, values in columns.items()}, **means, **besides}
                for layer in range(network.num_blocks)
            ],
        )


def cost(task: Task, given: Given, units: Units | None = None) -> Cost | None:
    """All is shared: by the cells of a source, or by all."""
    dataset = given.dataset
    params = task.params
    shape = costs.shape_of(params, dataset)
    if shape is None or dataset is None:
        return None
    batch, test, method = params["batch_size"], dataset.num_test, costs.method_of(task, units)
    source = None if method is None else costs.source_quality(method, shape, batch, test)
    if method is None or source is None:
        return None
    own = source.plus(costs.nudged(shape, batch, test))
    if predicts_states(type(method)):
        own = own.plus(costs.prediction_error(method, shape, batch, test) or NO_WORK)
    shared = costs.quality(shape, batch, test).plus(costs.LOADED)
    return Cost(shared=(("", shared), (costs.source_part(task, method), own)))


def summarise(rows: Sequence[Row], params: type[Params] = CreditRecoveryParams) -> Summary:
    """For each method the means over layers, then each layer, as means over seeds."""
    others = varied(params, rows, besides=GROUPED)
    by = [*GROUPED, *others]
    layers = grouped(over_seeds(rows, [*by, "layer"], [*PER_LAYER, *MEANS, *added(params)]), by)
    whole = over_seeds([row for row in rows if row["layer"] == 0], by, [*MEANS, *added(params)])
    table: list[Row] = []
    for line in whole:
        # The means also have the metrics' own names, so that one column holds the means and the layers.
        own = {name.replace("_mean", ""): value for name, value in line.items() if "_mean" in name}
        table += [{**line, **own, "layer": None}, *layers[tuple(line[name] for name in by)]]
    shown = [*by, "layer", *PER_LAYER, *added(params), "n", "diverged"]
    title = "Credit recovery, mean over layers (–) and by layer"
    return Summary(title, shown, table, list(_verdicts(whole, others, params)))


def _verdicts(table: Sequence[Line], others: Sequence[str], params: type[Params]) -> Iterator[Verdict]:
    """One for each fitted method and setting of the axes that all methods have, where a baseline was measured too."""
    methods = methods_of(params)
    of_methods = params.choices["method"].all if issubclass(params, ChoosingParams) and params.choices else ()
    common = [name for name in others if name not in of_methods]
    known = [line for line in table if line["gamma_mean"] is not None and line["rho_mean"] is not None]
    for lines in grouped(known, common).values():
        best = {
            method: [max(line[name] for line in own) for name in ("rho_mean", "gamma_mean")]
            for (method,), own in grouped(lines, ["method"]).items()
            if method in methods
        }
        baselines = {name: found for name, found in best.items() if methods[name].baseline}
        for name, found in best.items():
            if baselines and is_fitted(methods[name]) and name not in baselines:
                yield _verdict(name, found, baselines, setting_prefix(lines[0], common, params))


def _verdict(method: str, own: Sequence[float], baselines: Mapping[str, Sequence[float]], where: str) -> Verdict:
    """Of the largest rho and gamma of a method, and of those that it should exceed."""
    rho, gamma = own
    numbers = {f"{method}_best_rho": rho, f"{method}_best_gamma": gamma, "margin": MARGIN}
    for name, (baseline_rho, baseline_gamma) in baselines.items():
        numbers |= {f"{name}_rho": baseline_rho, f"{name}_gamma": baseline_gamma}
    to_exceed, gamma_to_exceed = (max(values) for values in zip(*baselines.values(), strict=True))
    if rho > to_exceed + MARGIN and gamma > gamma_to_exceed:
        name = "positive"
    else:
        name = "marginal" if rho > MARGIN else "negative"
    compared = "; ".join(f"{name}'s are {values[0]:.3g} and {values[1]:.3g}" for name, values in baselines.items())
    return Verdict(name, f"{where}{method}'s best rho is {rho:.3g} and gamma {gamma:.3g}; {compared}", numbers)


CHARTS = (
    Chart(
        name="recovery",
        title="Credit recovery by layer",
        mark="heatmap",
        x=Axis(("layer",), "layer l"),
        measures=(
            Axis(("gamma",), "gamma: cosine with the gradient"),
            Axis(("rho",), "rho: correlation with the loss's slope"),
            *(Axis((name,), f"loss change of a nudge of {eta:g} (nats)") for name, eta in NUDGES.items()),
        ),
        series=("method",),
    ),
)

# 2: the directions of rho have unit length. 3: the key holds the parameters of the cell's own units alone.
MEASURE = TaskKind("credit_recovery", 3, measure, Resources(cpu=1, gpu=0.25), max_group=256, cost=cost, cost_by=())

EXPERIMENT = Experiment(
    name="credit_recovery",
    title="Credit recovery on frozen features",
    params=CreditRecoveryParams,
    columns=COLUMNS,
    measure=MEASURE,
    cell=cell,
    summarise=summarise,
    charts=CHARTS,
    measurable="checkpoint",
)
