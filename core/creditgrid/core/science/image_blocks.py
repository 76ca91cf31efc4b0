"""The parts of the convolutional network and of the transformer: stems, residual branches and heads.

They take one batch of hidden states of their own shape. All their operations have deterministic gradients on a GPU, and
rules for networks side by side: attention is written out for that reason.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class Patches(nn.Module):
    """A convolution whose kernel and stride are a patch: images (b, c, H, W) -> (b, d, grid, grid)."""

    def __init__(self, channels: int, d_hidden: int, patch: tuple[int, int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, d_hidden, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x)  # type: ignore[no-any-return]


class ConvBlock(nn.Module):
    """F(h) = w2(GELU(w1(norm(h)))) with convolutions w1 and w2: (b, d, grid, grid) -> the same shape."""

    def __init__(self, d_hidden: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, d_hidden)
        self.w1 = nn.Conv2d(d_hidden, d_hidden, kernel, padding=kernel // 2)
        self.w2 = nn.Conv2d(d_hidden, d_hidden, kernel, padding=kernel // 2)

    def forward(self, h: Tensor) -> Tensor:
        return self.w2(F.gelu(self.w1(self.norm(h))))  # type: ignore[no-any-return]


class ConvHead(nn.Module):
    """Logits of the mean of norm(h) over the grid: (b, d, grid, grid) -> (b, C)."""

    def __init__(self, d_hidden: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, d_hidden)
        self.out = nn.Linear(d_hidden, num_classes)

    def forward(self, h: Tensor) -> Tensor:
        return self.out(self.norm(h).mean((-2, -1)))  # type: ignore[no-any-return]


class Tokens(nn.Module):
    """Patches as tokens, with learned positions: images (b, c, H, W) -> (b, tokens, d)."""

    def __init__(self, channels: int, d_hidden: int, patch: tuple[int, int], tokens: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, d_hidden, patch, stride=patch)
        self.position = nn.Parameter(torch.empty(tokens, d_hidden))

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x).flatten(-2).mT + self.position  # type: ignore[no-any-return]


class AttentionBlock(nn.Module):
    """F(h) = a + w2(GELU(w1(ln2(h + a)))) with a = out(attention(ln1(h))): (b, tokens, d) -> the same shape."""

    def __init__(self, d_hidden: int, heads: int, head_width: int, expansion: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.ln1 = nn.LayerNorm(d_hidden)
        self.qkv = nn.Linear(d_hidden, 3 * heads * head_width)
        self.out = nn.Linear(heads * head_width, d_hidden)
        self.ln2 = nn.LayerNorm(d_hidden)
        self.w1 = nn.Linear(d_hidden, expansion * d_hidden)
        self.w2 = nn.Linear(expansion * d_hidden, d_hidden)

    def forward(self, h: Tensor) -> Tensor:
        a: Tensor = self.out(self._attention(self.ln1(h)))
        return a + self.w2(F.gelu(self.w1(self.ln2(h + a))))  # type: ignore[no-any-return]

    def _attention(self, h: Tensor) -> Tensor:
        """softmax(q kᵀ/√width) v of each head, side by side: (b, tokens, heads · width)."""
        q, k, v = (
            part.unflatten(-1, (self.heads, self.head_width)).transpose(-3, -2) for part in self.qkv(h).chunk(3, -1)
        )
        weights = (q @ k.mT * self.head_width**-0.5).softmax(-1)
        out: Tensor = weights @ v
        return out.transpose(-3, -2).flatten(-2)


class TokenHead(nn.Module):
    """Logits of the mean of ln(h) over the tokens: (b, tokens, d) -> (b, C)."""

    def __init__(self, d_hidden: int, num_classes: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(d_hidden)
        self.out = nn.Linear(d_hidden, num_classes)

    def forward(self, h: Tensor) -> Tensor:
        return self.out(self.ln(h).mean(-2))  # type: ignore[no-any-return]
