"""The embedding, the branches and the head of every network in float64, from the formulas and the tensors' names alone.

A hidden state is a vector here too, (b, n). What the tensors do not say of a network (its name, activation, …) is in
keys that start with ``#``, see ``described``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

Tensors: TypeAlias = Mapping[str, Tensor]

NAMES = ("residual_mlp", "conv", "transformer")
ACTIVATIONS = ("gelu", "relu", "tanh", "silu")
PLACEMENTS = ("pre", "post", "none")
BOTH = ("weight", "bias")
OF_A_BLOCK = {
    "residual_mlp": ("ln", "w1", "w2"),
    "conv": ("norm", "w1", "w2"),
    "transformer": ("ln1", "qkv", "out", "ln2", "w1", "w2"),
}
OF_THE_HEAD = {
    "residual_mlp": ("out_ln", "out_head"),
    "conv": ("readout.norm", "readout.out"),
    "transformer": ("readout.ln", "readout.out"),
}


def described(params: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a cell's parameters say of its network."""
    name = params.get("network") or "residual_mlp"
    said = {"#network": NAMES.index(name)}
    if name == "residual_mlp":
        said["#activation"] = ACTIVATIONS.index(params.get("activation") or "gelu")
        said["#norm"] = PLACEMENTS.index(params.get("norm") or "pre")
    if name == "transformer":
        said["#heads"] = params["heads"]
    return {key: torch.tensor(value) for key, value in said.items()}


def name_of(p: Tensors) -> str:
    return NAMES[int(p.get("#network", torch.tensor(0)))]


def block_parameters(p: Tensors, block: int) -> list[str]:
    """In the order of the state dict."""
    names = [f"blocks.{block}.{layer}.{which}" for layer in OF_A_BLOCK[name_of(p)] for which in BOTH]
    return [name for name in names if name in p]


def head_parameters(p: Tensors) -> list[str]:
    """In the order of the state dict."""
    names = [f"{layer}.{which}" for layer in OF_THE_HEAD[name_of(p)] for which in BOTH]
    return [name for name in names if name in p]


# -- layers ----------------------------------------------------------------------------------------------------------


def layer_norm(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = h.mean(-1, keepdim=True)
    variance = ((h - mean) ** 2).mean(-1, keepdim=True)
    return (h - mean) / torch.sqrt(variance + 1e-5) * weight + bias


def image_norm(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Over channels and places together: (b, c, g, g)."""
    flat = h.flatten(1)
    mean = flat.mean(1).view(-1, 1, 1, 1)
    variance = ((flat - flat.mean(1, keepdim=True)) ** 2).mean(1).view(-1, 1, 1, 1)
    return (h - mean) / torch.sqrt(variance + 1e-5) * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)


def activated(x: Tensor, which: str = "gelu") -> Tensor:
    if which == "relu":
        return torch.where(x > 0, x, torch.zeros_like(x))
    if which == "tanh":
        return (torch.exp(x) - torch.exp(-x)) / (torch.exp(x) + torch.exp(-x))
    if which == "silu":
        return x / (1 + torch.exp(-x))
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def linear(p: Tensors, name: str, h: Tensor) -> Tensor:
    out = h @ p[f"{name}.weight"].T
    return out + p[f"{name}.bias"] if f"{name}.bias" in p else out


def convolved(p: Tensors, name: str, h: Tensor) -> Tensor:
    """A convolution that keeps the size, one place of the kernel at a time: (b, c, g, g)."""
    weight = p[f"{name}.weight"]
    reach = weight.shape[-1] // 2
    height, width = h.shape[-2:]
    padded = h.new_zeros(*h.shape[:2], height + 2 * reach, width + 2 * reach)
    padded[:, :, reach : reach + height, reach : reach + width] = h
    out = p[f"{name}.bias"].view(-1, 1, 1) * torch.ones_like(h[:, :1])
    for i in range(weight.shape[-2]):
        for j in range(weight.shape[-1]):
            seen = padded[:, :, i : i + height, j : j + width]
            out = out + torch.einsum("oc,bcxy->boxy", weight[:, :, i, j], seen)
    return out


def patches(p: Tensors, x: Tensor) -> Tensor:
    """The stem, one patch at a time: flat images (b, D) -> (b, d, g, g)."""
    weight, bias = p["embed.stem.weight"], p["embed.stem.bias"]
    _, channels, high, wide = weight.shape
    grid = math.isqrt(x.shape[1] // (channels * high * wide))
    images = x.view(-1, channels, grid * high, grid * wide)
    rows = []
    for i in range(grid):
        cut = [images[:, :, i * high : (i + 1) * high, j * wide : (j + 1) * wide] for j in range(grid)]
        rows.append(torch.stack([patch.flatten(1) @ weight.flatten(1).T + bias for patch in cut], -1))
    return torch.stack(rows, -2)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One head: (b, tokens, width)."""
    scores = torch.einsum("bqw,bkw->bqk", q, k) / math.sqrt(q.shape[-1])
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    return torch.einsum("bqk,bkw->bqw", weights / weights.sum(-1, keepdim=True), v)


# -- networks --------------------------------------------------------------------------------------------------------


def embed(p: Tensors, x: Tensor) -> Tensor:
    """h_0."""
    if name_of(p) == "residual_mlp":
        return linear(p, "embed", x)
    stem = patches(p, x)
    if name_of(p) == "conv":
        return stem.flatten(1)
    return (stem.flatten(2).transpose(1, 2) + p["embed.position"]).flatten(1)


def branch(p: Tensors, block: int, h: Tensor) -> Tensor:
    """F_l(h)."""
    name = f"blocks.{block}"
    return {"residual_mlp": _mlp, "conv": _conv, "transformer": _transformer}[name_of(p)](p, name, h)


def _mlp(p: Tensors, name: str, h: Tensor) -> Tensor:
    activation = ACTIVATIONS[int(p.get("#activation", torch.tensor(0)))]
    placement = PLACEMENTS[int(p.get("#norm", torch.tensor(0)))]
    inner = layer_norm(h, p[f"{name}.ln.weight"], p[f"{name}.ln.bias"]) if placement == "pre" else h
    out = linear(p, f"{name}.w2", activated(linear(p, f"{name}.w1", inner), activation))
    return layer_norm(out, p[f"{name}.ln.weight"], p[f"{name}.ln.bias"]) if placement == "post" else out


def _conv(p: Tensors, name: str, h: Tensor) -> Tensor:
    h = _grid(h, len(p[f"{name}.norm.weight"]))
    inner = image_norm(h, p[f"{name}.norm.weight"], p[f"{name}.norm.bias"])
    return convolved(p, f"{name}.w2", activated(convolved(p, f"{name}.w1", inner))).flatten(1)


def _transformer(p: Tensors, name: str, h: Tensor) -> Tensor:
    h = h.view(len(h), *p["embed.position"].shape)
    heads = int(p["#heads"])
    qkv = linear(p, f"{name}.qkv", layer_norm(h, p[f"{name}.ln1.weight"], p[f"{name}.ln1.bias"]))
    inner = qkv.shape[-1] // 3
    width = inner // heads
    seen = []
    for head in range(heads):
        q, k, v = (qkv[..., part * inner + head * width : part * inner + (head + 1) * width] for part in range(3))
        seen.append(attention(q, k, v))
    a = linear(p, f"{name}.out", torch.cat(seen, -1))
    inside = layer_norm(h + a, p[f"{name}.ln2.weight"], p[f"{name}.ln2.bias"])
    return (a + linear(p, f"{name}.w2", activated(linear(p, f"{name}.w1", inside)))).flatten(1)


def head(p: Tensors, h: Tensor) -> Tensor:
    """Logits."""
    if name_of(p) == "residual_mlp":
        return linear(p, "out_head", layer_norm(h, p["out_ln.weight"], p["out_ln.bias"]))
    if name_of(p) == "conv":
        grid = _grid(h, len(p["readout.norm.weight"]))
        pooled = image_norm(grid, p["readout.norm.weight"], p["readout.norm.bias"]).flatten(2).mean(-1)
    else:
        tokens = h.view(len(h), *p["embed.position"].shape)
        pooled = layer_norm(tokens, p["readout.ln.weight"], p["readout.ln.bias"]).mean(1)
    return linear(p, "readout.out", pooled)


def _grid(h: Tensor, channels: int) -> Tensor:
    side = math.isqrt(h.shape[1] // channels)
    return h.view(len(h), channels, side, side)
