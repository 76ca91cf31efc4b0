"""Credit sources, made from the artifacts that a measure task needs: a method with its feedback or its estimator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from creditgrid.core.science.credit import CreditSource
from creditgrid.core.science.from_artifacts import (
    checkpoint_network,
    feedback_stack,
    fitted_estimator,
    units_of,
)
from creditgrid.core.science.network import ResidualNetwork
from creditgrid.core.task import Inputs, Task
from creditgrid.core.units.network import network_of


def credits_on(
    network: ResidualNetwork, sources: Mapping[str, CreditSource], x: Tensor, y: Tensor
) -> dict[str, Tensor]:
    """The credits of every source on a batch x (b, D), y (b,), by the source's name: (L, b, d) each."""
    with torch.no_grad():
        logits, hiddens = network(x, return_hidden=True)
    return {name: source.credits(network, hiddens, logits, y) for name, source in sources.items()}


def source_name(task: Task) -> str:
    """The name of a measure task's credit source; tasks of one group with equal names share the source."""
    origin = task.parents.get("estimator") or task.parents.get("feedback") or task.params.get("oracle_reduction", "")
    return f"{task.params['method']}/{origin}"


def network_and_sources(
    tasks: Sequence[Task], inputs: Inputs, device: torch.device
) -> tuple[ResidualNetwork, dict[str, CreditSource]]:
    """The frozen network that the measure tasks of one group share, and all their credit sources by `source_name`."""
    shared = tasks[0]
    arrays = inputs[shared.parents["checkpoint"]]
    chosen = network_of(shared.params, units_of(shared, inputs))
    network = checkpoint_network(arrays, device, residual_add=shared.params["residual_add"], network=chosen)
    sources: dict[str, CreditSource] = {}
    for task in tasks:
        if (name := source_name(task)) in sources:
            continue
        feedback = estimator = None
        if "feedback" in task.parents:
            feedback = feedback_stack(inputs[task.parents["feedback"]], device)
        if "estimator" in task.parents:
            estimator = fitted_estimator(inputs[task.parents["estimator"]], device)
        sources[name] = CreditSource(
            task.params["method"],
            feedback,
            estimator,
            task.params.get("cb_source", "e_T"),
            task.params.get("oracle_reduction", "mean"),
        )
    return network, sources
