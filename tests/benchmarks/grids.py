"""Grids of cells with the artifacts that they stand on, measured both ways: as a worker does, and by plain loops."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.experiments.code_registry import registry_of
from creditgrid.core.experiments.registry import registry
from creditgrid.core.experiments.stages import STAGES, code_task
from creditgrid.core.science.data import ImageData, normalise
from creditgrid.core.science.estimators import loaded_estimator
from creditgrid.core.science.from_artifacts import checkpoint_network, feedback_stack, tensors
from creditgrid.core.science.network import ResidualMLP
from creditgrid.core.task import Arrays, Output, Task
from creditgrid.core.units.code import Files, sha256_of, to_arrays

from . import plain_cells
from .plain_measuring import Batch, Source

Rows: TypeAlias = Sequence[Mapping[str, Any]]

CPU = torch.device("cpu")
PLAIN = {
    "linesearch": plain_cells.line_search_cell,
    "exploitability": plain_cells.exploitability_cell,
    "snapshot_time": plain_cells.snapshot_time_cell,
    "credit_recovery": plain_cells.credit_recovery_cell,
}


class Grid:
    """Cells of one experiment on one data set; what they stand on is made here, or was made for another grid.

    ``made`` holds artifacts by key: grids that share it share their checkpoints and estimators, as sweeps do. ``code``
    are the files of methods that the cells bring.
    """

    def __init__(
        self,
        experiment: str,
        cells: Sequence[Mapping[str, Any]],
        data: ImageData,
        made: dict[str, Arrays],
        code: Files | None = None,
    ) -> None:
        self._name, self._data, self._made = experiment, data, made
        known = registry() if code is None else registry_of(code)
        if code is not None:
            made[code_task(sha256_of(code)).key] = to_arrays(code)
        self._experiment = known.experiments[experiment]
        channels, height, width = data.x_train.shape[1:]
        images = DatasetRef(
            "images",
            "0" * 64,
            len(data.x_train),
            len(data.x_test),
            data.num_classes,
            (channels, height, width),
            {"package": "none"},
        )
        params = [self._experiment.params(dataset="images", **cell) for cell in cells]
        planned = [self._experiment.cell(each, images) for each in params]
        self.params = [each.model_dump() for each in params]
        self.tasks = [task for task, _ in planned]
        for task in (ancestor for _, ancestors in planned for ancestor in ancestors):  # parents come first
            if task.kind == "data":
                made[task.key] = data.to_arrays()
            elif task.key not in made:
                (run,) = (kind.run for kind in STAGES if kind.name == task.kind)
                assert run is not None
                (output,) = (item for item in run([task], made, CPU) if isinstance(item, Output))
                made[task.key] = output.arrays or {}
        # A script has these in memory before it begins.
        self._tests: dict[int, list[Batch]] = {
            size: [
                (normalise(x, data.mean, data.std), y)
                for x, y in zip(torch.split(data.x_test, size), torch.split(data.y_test, size), strict=True)
            ]
            for size in {each["batch_size"] for each in self.params}
        }
        self._probes = {key: tensors(made[key]) for key in {task.parents["probe"] for task in self.tasks}}
        self._networks: dict[str, ResidualMLP] = {
            key: checkpoint_network(made[key], CPU, residual_add=True)
            for key in {task.parents["checkpoint"] for task in self.tasks}
        }
        self._sources = [self._source(task) for task in self.tasks]

    def _source(self, task: Task) -> Source:
        feedback, estimator = task.parents.get("feedback"), task.parents.get("estimator")
        fitted = {} if estimator is None else tensors(self._made[estimator], CPU)
        return Source(
            task.params["method"],
            () if feedback is None else tuple(feedback_stack(self._made[feedback], CPU)),
            fitted["weights"] if "weights" in fitted else loaded_estimator(fitted) if fitted else None,
            task.params["cb_source"] if task.params["method"] == "scalar_cb" else "e_T",
        )

    def measured(self) -> list[Rows]:
        """The rows of every cell, measured in calls as a worker's, from artifacts to rows."""
        together: dict[str, list[Task]] = defaultdict(list)
        for task in self.tasks:
            together[task.group].append(task)
        run = self._experiment.measure.run
        assert run is not None
        outputs = (item for group in together.values() for item in run(group, self._made, CPU))
        rows = {output.key: output.rows or () for output in outputs if isinstance(output, Output)}
        return [rows[task.key] for task in self.tasks]

    def plain(self) -> list[Rows]:
        """The rows of every cell by plain loops, from networks and batches that are in memory to begin with."""
        return [
            PLAIN[self._name](
                self._networks[task.parents["checkpoint"]],
                source,
                self._probes[task.parents["probe"]],
                self._tests[params["batch_size"]],
                params,
            )
            for task, source, params in zip(self.tasks, self._sources, self.params, strict=True)
        ]
