"""How does training concentrate the spectrum of each block's weights? One row for each layer of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.errors import TaskError
from creditgrid.core.experiment import Axis, Chart, Column, Experiment, Row, Summary, Verdict
from creditgrid.core.experiments.parameters import TrainParams
from creditgrid.core.experiments.summaries import grouped, over_seeds, setting_prefix, varied
from creditgrid.core.task import Inputs, Output, Resources, Task, TaskKind

if TYPE_CHECKING:
    import torch  # at run time only tasks import it: plans are made on machines that have none

COLUMNS: Mapping[str, Column] = {
    "layer": Column("int64", "Layer l, from 0."),
    "top_singular": Column("float64", "Largest singular value σ_1 of the matrix (d, d), dimensionless."),
    "stable_rank": Column("float64", "Σσ² / σ_1², in dimensions; null where every σ is 0."),
    "effective_rank": Column("float64", "exp of the entropy of σ / Σσ, in dimensions; null where every σ is 0."),
}
MEASURED = [name for name in COLUMNS if name != "layer"]
SETTING = ("matrix", "d_hidden", "checkpoint_epoch")


class WeightSpectrumParams(TrainParams):
    """A cell: one matrix of every block, at one epoch of a training run. Each parameter may be fixed or an axis."""

    checkpoint_epoch: int = Field(ge=0, description="Epoch of the checkpoint; 0 is the initialisation.")
    matrix: Literal["w1", "w2"] = Field("w2", description="Which weights of each block.")

    def conflicts(self, dataset: DatasetRef | None) -> Iterable[tuple[str, str]]:
        yield from super().conflicts(dataset)
        if self.checkpoint_epoch > self.train_epochs:
            yield "checkpoint_epoch", f"{self.checkpoint_epoch} is beyond the end of training ({self.train_epochs})"


def cell(params: WeightSpectrumParams, dataset: DatasetRef) -> tuple[Task, Sequence[Task]]:
    """The task that measures one cell, and its ancestors: parents before children."""
    checkpoint = params.trained(dataset, params.checkpoint_epoch)  # the same task that other experiments name
    spectrum = SPECTRUM.task({}, {"checkpoint": checkpoint})  # of both matrices: cells over ``matrix`` share it
    task = MEASURE.task(params.identity(), {"spectrum": spectrum}, group=(spectrum.key,))
    return task, params.ancestors(dataset, {"checkpoint": checkpoint, "spectrum": spectrum})


def decompose(tasks: Sequence[Task], inputs: Inputs, device: torch.device) -> Iterator[Output]:
    """The singular values of every block's matrices: w1 and w2, float64 (L, d), descending."""
    import torch

    for task in tasks:
        checkpoint = inputs[task.parents["checkpoint"]]
        blocks = len({name.split(".")[1] for name in checkpoint if name.startswith("blocks.")})
        arrays = {}
        for matrix in ("w1", "w2"):
            weights = np.stack([checkpoint[f"blocks.{layer}.{matrix}.weight"] for layer in range(blocks)])
            if not np.isfinite(weights).all():  # what a task raises is reported as the cause of its cells' failure
                raise TaskError(f"{matrix} is not finite: the training diverged, so choose a smaller lr")
            values = torch.linalg.svdvals(torch.from_numpy(weights).to(device, torch.float64))
            arrays[matrix] = values.cpu().numpy()
        yield Output(task.key, arrays=arrays)


def measure(tasks: Sequence[Task], inputs: Inputs, device: torch.device) -> Iterator[Output]:
    """The rows of every cell on one spectrum."""
    for task in tasks:
        spectra = inputs[task.parents["spectrum"]][task.params["matrix"]]
        yield Output(task.key, rows=[{"layer": layer, **ranks(sigma)} for layer, sigma in enumerate(spectra)])


def ranks(sigma: np.ndarray[tuple[int], np.dtype[np.float64]]) -> dict[str, float | None]:
    """The measured columns of one matrix with singular values ``sigma`` (d,), descending."""
    if not sigma[0]:
        return {"top_singular": 0.0, "stable_rank": None, "effective_rank": None}
    share = sigma[sigma > 0] / sigma.sum()
    return {
        "top_singular": float(sigma[0]),
        "stable_rank": float(np.square(sigma / sigma[0]).sum()),
        "effective_rank": float(np.exp(-(share * np.log(share)).sum())),
    }


def summarise(rows: Sequence[Row]) -> Summary:
    """Means over seeds for each matrix, epoch and layer, and for each value of other parameters that vary."""
    by = [*SETTING, *varied(WeightSpectrumParams, rows, besides=SETTING)]
    table = over_seeds(rows, [*by, "layer"], MEASURED)
    verdicts = [verdict(lines, by) for lines in grouped(table, by).values()]
    shown = [*by, "layer", *MEASURED, "n", "diverged"]
    return Summary("Spectra of the blocks' weights", shown, table, [found for found in verdicts if found])


def verdict(lines: Sequence[Row], by: Sequence[str]) -> Verdict | None:
    """Low-rank: the layers' mean stable rank is below d/8, half of what a random Gaussian (d, d) matrix has."""
    found = [line["stable_rank"] for line in lines if line["stable_rank"] is not None]
    if not found:
        return None
    mean, bound = sum(found) / len(found), lines[0]["d_hidden"] / 8
    text = f"{setting_prefix(lines[0], by)}mean stable rank {mean:.3g}, against {bound:.3g} = d/8"
    return Verdict("low-rank" if mean < bound else "full-rank", text, {"mean_stable_rank": mean, "bound": bound})


CHARTS = (
    Chart(
        name="ranks",
        title="Rank of the blocks' weights over training",
        mark="line",
        x=Axis(("checkpoint_epoch",), "checkpoint (epochs)"),
        measures=(Axis(("stable_rank", "effective_rank"), "rank (dimensions)"),),
        series=("layer",),
    ),
)
SPECTRUM = TaskKind("spectrum", 1, decompose, Resources(cpu=1, gpu=0.1))
MEASURE = TaskKind("weight_spectrum", 1, measure, max_group=100)
EXPERIMENT = Experiment(
    name="weight_spectrum",
    title="Spectrum of the blocks' weights",
    params=WeightSpectrumParams,
    columns=COLUMNS,
    measure=MEASURE,
    cell=cell,
    summarise=summarise,
    kinds=(SPECTRUM,),
    charts=CHARTS,
)
