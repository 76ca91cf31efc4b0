"""Credit sources, made from the artifacts that a measure task needs: a method with its feedback or its estimator."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from creditgrid.core.science.choices import Method, Reduction, Signal
from creditgrid.core.science.credit import credits
from creditgrid.core.science.estimators import EstimatorNet
from creditgrid.core.science.from_artifacts import checkpoint_network, feedback_stack, fitted_estimator
from creditgrid.core.science.network import Layers, ResidualMLP
from creditgrid.core.task import Inputs, Task


@dataclass(frozen=True)
class CreditSource:
    """A method, and what it needs to compute the credits of any batch; see `credits`."""

    method: Method
    feedback: Tensor | None = None
    estimator: EstimatorNet | None = None
    s_source: Signal = "e_T"
    oracle_reduction: Reduction = "mean"

    def credits(self, network: Layers, hiddens: Sequence[Tensor], logits: Tensor, y: Tensor, first: int = 0) -> Tensor:
        """a_first … a_{L-1} on a batch: (L - first, b, d), or (L - first, S, b, d) of S networks side by side."""
        return credits(
            self.method,
            network,
            hiddens,
            logits,
            y,
            feedback=self.feedback,
            estimator=self.estimator,
            s_source=self.s_source,
            oracle_reduction=self.oracle_reduction,
            first=first,
        )

    def double(self) -> CreditSource:
        """A copy in double precision."""
        feedback = None if self.feedback is None else self.feedback.double()
        estimator = None if self.estimator is None else copy.deepcopy(self.estimator).double()
        return replace(self, feedback=feedback, estimator=estimator)


def credits_on(network: ResidualMLP, sources: Mapping[str, CreditSource], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The credits of every source on a batch x (b, D), y (b,), by the source's name: (L, b, d) each."""
    with torch.no_grad():
        logits, hiddens = network(x, return_hidden=True)
    return {name: source.credits(network, hiddens, logits, y) for name, source in sources.items()}


def source_name(task: Task) -> str:
    """The name of a measure task's credit source; tasks of one group with equal names share the source."""
    origin = task.parents.get("estimator") or task.parents.get("feedback") or task.params["oracle_reduction"]
    return f"{task.params['method']}/{origin}"


def network_and_sources(
    tasks: Sequence[Task], inputs: Inputs, device: torch.device
) -> tuple[ResidualMLP, dict[str, CreditSource]]:
    """The frozen network that the measure tasks of one group share, and all their credit sources by `source_name`."""
    shared = tasks[0]
    arrays = inputs[shared.parents["checkpoint"]]
    network = checkpoint_network(arrays, device, residual_add=shared.params["residual_add"])
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
            task.params["method"], feedback, estimator, task.params["cb_source"], task.params["oracle_reduction"]
        )
    return network, sources
