"""The network that the shipped credit estimators share: Protocols, section 5 (Estimators)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from creditgrid.core.science.network import linear

WIDTH = 256
TIME_DIMS = 32


class EstimatorNet(nn.Module):
    """A function of (h_l, t_l, s): [LN(h), embedded t, s], then 3 x (Linear -> GELU) of width 256, then Linear.

    ``out_dim`` d gives a vector field, ``out_dim`` 1 a scalar value whose last dim is squeezed away. t = l/L is the
    depth of a hidden state (1 is the terminal one), s (``s_dim``) is e_T or δ_L. Parameters have torch's
    default distributions, drawn from ``generator`` alone and on its device. On the meta device nothing is drawn, and
    ``generator`` is None.
    """

    def __init__(self, d_hidden: int, s_dim: int, out_dim: int, *, generator: torch.Generator | None) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(d_hidden, device=None if generator is None else generator.device)
        self.net = nn.Sequential(
            linear(d_hidden + TIME_DIMS + s_dim, WIDTH, generator),
            nn.GELU(),
            linear(WIDTH, WIDTH, generator),
            nn.GELU(),
            linear(WIDTH, WIDTH, generator),
            nn.GELU(),
            linear(WIDTH, out_dim, generator),
        )
        self.scalar = out_dim == 1

    def forward(self, h: Tensor, t: Tensor | float, s: Tensor) -> Tensor:
        """Evaluate on hidden states h (…, b, d) at depths t with s (b, s_dim): (…, b, out_dim), or (…, b) for a scalar.

        t is a number, or a tensor that broadcasts against h's leading dims (…, b), so that one call can evaluate many
        layers: t (L, 1) for h (L, b, d). s broadcasts likewise.
        """
        if not isinstance(t, Tensor):
            t = torch.full((), t, dtype=h.dtype, device=h.device)
        first = self.net[0]
        assert isinstance(first, nn.Linear)
        # The first Linear acts on the concatenation part by part: what layers and draws share is multiplied once.
        of_h, of_t, of_s = torch.split(first.weight, [h.shape[-1], TIME_DIMS, s.shape[-1]], dim=1)
        shared = F.linear(time_embedding(t), of_t, first.bias) + F.linear(s, of_s)
        out: Tensor = self.net[1:](F.linear(self.ln(h), of_h) + shared)
        return out.squeeze(-1) if self.scalar else out


def loaded_estimator(tensors: Mapping[str, Tensor]) -> EstimatorNet:
    """The frozen net with these parameters, which give its shape, on their device and in their precision."""
    d_hidden, out_dim = len(tensors["ln.weight"]), len(tensors["net.6.bias"])
    s_dim = tensors["net.0.weight"].shape[1] - d_hidden - TIME_DIMS
    with torch.device("meta"):
        estimator = EstimatorNet(d_hidden, s_dim, out_dim, generator=None)
    estimator.load_state_dict(tensors, assign=True)
    return estimator.eval().requires_grad_(False)


def time_embedding(t: Tensor) -> Tensor:
    """sin(t f_i) for i = 0…15, then cos(t f_i), with f_i = exp(-ln 10000 · i/16): (…) -> (…, 32)."""
    half = TIME_DIMS // 2
    frequencies = torch.exp(torch.arange(half, dtype=t.dtype, device=t.device) * (-math.log(10_000) / half))
    angles = t.unsqueeze(-1) * frequencies
    return torch.cat((angles.sin(), angles.cos()), -1)
