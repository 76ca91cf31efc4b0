"""Credit sources: a credit method with what it was fitted to, so that it computes the credits of any batch.

They are made from the artifacts that a measure task needs. A method may be a researcher's own: the shape of what it
returns is checked here, once for all that use credits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from creditgrid.core.errors import TaskError
from creditgrid.core.science.forward import Forward
from creditgrid.core.science.from_artifacts import checkpoint_network, tensors
from creditgrid.core.science.functional import Functional, Layers
from creditgrid.core.science.network import ResidualNetwork
from creditgrid.core.science.task_units import method_of
from creditgrid.core.task import Inputs, Task
from creditgrid.core.units.brought import units_of
from creditgrid.core.units.method import Method
from creditgrid.core.units.network import network_of


@dataclass(frozen=True)
class CreditSource:
    """A method with the tensors of its fit, or of its feedback; without any for a method that needs none."""

    method: Method
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    fitted: Any = field(init=False)
    """What the method has loaded from them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "fitted", self.method.load(self.tensors))

    def credits(self, network: Layers, hiddens: Sequence[Tensor], logits: Tensor, y: Tensor, first: int = 0) -> Tensor:
        """The credits a_0 … a_{L-1} of a batch, detached, (L, b, n); or (L, S, b, n) of S networks side by side.

        With ``first`` only a_first … a_{L-1}, (L - first, …): no credit needs the layers below it.

        ``hiddens`` h_0 … h_L, each (…, b, n), and ``logits`` (…, b, C) are those of ``network`` on the batch, ``y``
        int64 (b,) its labels.

        Raises:
            TaskError: the method returns credits of another shape.
        """
        forward = Forward(network, [h.detach() for h in hiddens], logits.detach(), y, first)
        if self.method.side_by_side or logits.dim() == 2:
            return self._credits(forward)
        assert isinstance(network, Functional)  # as networks side by side are
        alone = (
            Forward(network.alone(s), [h[s] for h in forward.hiddens], forward.logits[s], y, first)
            for s in range(len(logits))
        )
        return torch.stack([self._credits(each) for each in alone], 1)

    def _credits(self, forward: Forward) -> Tensor:
        with torch.enable_grad():
            found = self.method.credit(forward, self.fitted)
        like = forward.hiddens[-1]
        depth = len(forward.hiddens) - 1
        wanted = (depth - forward.first, *like.shape)
        if not isinstance(found, Tensor):
            raise TaskError(f"the credit of {self.method.name} is a {type(found).__name__}: return a tensor {wanted}")
        shape, flat = tuple(found.shape), found.detach()
        if flat.dim() > len(wanted):  # the shape of the hidden states
            flat = flat.flatten(like.dim())
        if len(flat) == depth != wanted[0]:  # all layers
            flat = flat[forward.first :]
        if flat.shape != wanted:
            raise TaskError(f"the credit of {self.method.name} has the shape {shape}: return a tensor {wanted}")
        return flat.to(like)

    def predicted_states(self, network: Layers, hiddens: Sequence[Tensor], logits: Tensor, y: Tensor) -> Tensor:
        """What the method takes h_L for, from h_0 … h_{L-1} of a batch: (L, b, n)."""
        return self.method.predicted_states(Forward(network, hiddens, logits, y), self.fitted).detach()

    def double(self) -> CreditSource:
        """A copy in double precision."""
        return CreditSource(
            self.method,
            {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in self.tensors.items()},
        )


def credits_on(
    network: ResidualNetwork, sources: Mapping[str, CreditSource], x: Tensor, y: Tensor
) -> dict[str, Tensor]:
    """The credits of every source on a batch x (b, D), y (b,), by the source's name: (L, b, n) each."""
    with torch.no_grad():
        logits, hiddens = network(x, return_hidden=True)
    return {name: source.credits(network, hiddens, logits, y) for name, source in sources.items()}


def source_name(task: Task, inputs: Inputs) -> str:
    """The name of a measure task's credit source; tasks of one group with equal names share the source."""
    method = method_of(task, inputs)
    origin = task.parents.get("estimator") or task.parents.get("feedback") or ""
    return f"{method.name}/{origin}/{_shown(method)}"


@lru_cache(1024)
def _shown(method: Method) -> str:
    return repr(method)


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
        if (name := source_name(task, inputs)) in sources:
            continue
        origin = task.parents.get("estimator") or task.parents.get("feedback")
        found = {} if origin is None else tensors(inputs[origin], device)
        sources[name] = CreditSource(method_of(task, inputs), found)
    return network, sources
