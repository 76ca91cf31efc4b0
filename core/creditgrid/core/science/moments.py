"""The moments of Adam and AdamW as tensors: with the parameters, they are what a run needs to continue bit for bit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


def moments_of(module: nn.Module, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """The moments as ``{moment}.{parameter}``, and the number of ``steps``; before the first step only that."""
    found, steps = dict[str, Tensor](), torch.zeros(())
    for name, parameter in module.named_parameters():
        moments = optimizer.state[parameter]
        if moments:
            steps = moments["step"]
            found |= {f"{moment}.{name}": moments[moment] for moment in MOMENTS}
    return found | {"steps": steps}


def load_moments(module: nn.Module, optimizer: torch.optim.Adam, state: Mapping[str, Tensor]) -> None:
    """Give an optimizer the moments that `moments_of` took after a step."""
    for name, parameter in module.named_parameters():
        moments = {moment: state[f"{moment}.{name}"].to(parameter).clone() for moment in MOMENTS}
        optimizer.state[parameter] = {"step": state["steps"].to(parameter.device).clone(), **moments}


def moments_fit(module: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether the state has the moments of all parameters, as after a step."""
    wanted = {f"{moment}.{name}": p.shape for moment in MOMENTS for name, p in module.named_parameters()}
    return "steps" in state and all(name in state and state[name].shape == shape for name, shape in wanted.items())
