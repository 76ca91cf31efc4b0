"""Cells and the stages below them, computed in this process, in calls as a worker gets them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.experiment import Experiment
from creditgrid.core.experiments.stages import STAGES
from creditgrid.core.science.data import ImageData
from creditgrid.core.task import Arrays, Output, Task, TaskKind

Cell: TypeAlias = dict[str, Any]

CPU = torch.device("cpu")


def measured(
    experiment: Experiment, cells: Sequence[Cell], dataset: DatasetRef, data: ImageData, made: dict[str, Arrays]
) -> list[tuple[Cell, dict[str, Arrays], list[dict[str, Any]]]]:
    """The parameters, artifacts by role and rows of every cell."""
    kinds = {kind.name: kind for kind in (*STAGES, *experiment.kinds, experiment.measure)}
    params = [experiment.params(**cell) for cell in cells]
    planned = [experiment.cell(each, dataset) for each in params]
    below = {task.key: task for _, ancestors in planned for task in ancestors}
    groups: dict[str, list[Task]] = defaultdict(list)
    for task in below.values():
        groups[task.group].append(task)
    for task in below.values():  # parents come first
        if task.kind == "data":
            made[task.key] = data.to_arrays()
        missing = [one for one in groups[task.group] if one.key not in made]
        made |= {output.key: output.arrays or {} for output in outputs(kinds[task.kind], missing, made)}
    together: dict[str, list[Task]] = defaultdict(list)
    for task in {task.key: task for task, _ in planned}.values():
        together[task.group].append(task)
    rows: dict[str, list[dict[str, Any]]] = {}
    for group in together.values():
        for output in outputs(experiment.measure, group, made):
            assert output.key not in rows
            assert all(row.keys() <= experiment.columns.keys() for row in output.rows or ())
            rows[output.key] = [{name: row.get(name) for name in experiment.columns} for row in output.rows or ()]
    return [
        (each.model_dump(), {role: made[key] for role, key in task.parents.items()}, rows[task.key])
        for each, (task, _) in zip(params, planned, strict=True)
    ]


def outputs(kind: TaskKind, tasks: Sequence[Task], made: dict[str, Arrays]) -> list[Output]:
    if not tasks:
        return []
    assert kind.run is not None
    return [item for item in kind.run(tasks, made, CPU) if isinstance(item, Output)]
