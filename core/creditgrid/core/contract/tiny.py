"""A small dataset and small networks, on which a unit is checked in a second or two."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from creditgrid.core.science.data import ImageData
from creditgrid.core.science.forward import Forward
from creditgrid.core.science.network import ResidualMLP, ResidualNetwork
from creditgrid.core.science.per_sample import cross_entropy
from creditgrid.core.science.random_streams import generator
from creditgrid.core.units.shape import Shape

IMAGE_SHAPE = (1, 8, 8)
CLASSES, BLOCKS, WIDTH = 3, 3, 8
TRAIN, TEST, BATCH = 40, 24, 16
"""Images of the two splits and of a batch: the last training batch is smaller."""
W2_STD = 0.3
"""Large enough for branches that differ from 0."""


def images(device: torch.device | str = "cpu") -> ImageData:
    """Random images with three classes."""
    draws = generator(1, "contract/images")
    x = torch.randint(256, (TRAIN + TEST, *IMAGE_SHAPE), generator=draws, dtype=torch.uint8)
    y = torch.arange(TRAIN + TEST) % CLASSES
    half = torch.full((IMAGE_SHAPE[0],), 0.5)
    return ImageData(x[:TRAIN], y[:TRAIN], x[TRAIN:], y[TRAIN:], half, half / 2, CLASSES).to(device)


def network(device: torch.device | str = "cpu", *, residual_add: bool = True, seed: int = 1) -> ResidualNetwork:
    """A frozen network in eval mode."""
    pixels = IMAGE_SHAPE[0] * IMAGE_SHAPE[1] * IMAGE_SHAPE[2]
    draws = generator(seed, "contract/network")
    made = ResidualMLP(pixels, WIDTH, CLASSES, BLOCKS, residual_add, W2_STD, generator=draws)
    return made.to(device).eval().requires_grad_(False)


def batch(network: ResidualNetwork, size: int = 6) -> tuple[Tensor, Tensor]:
    """Random inputs x (size, D) of the network's precision and device, and labels y (size,)."""
    x = torch.randn(size, network.input_dim, generator=generator(2, "contract/batch"))
    return x.to(network.device, network.dtype), (torch.arange(size) % network.num_classes).to(network.device)


def forward(network: ResidualNetwork, size: int = 6, first: int = 0) -> Forward:
    """A forward pass of the network on `batch`."""
    x, y = batch(network, size)
    with torch.no_grad():
        logits, hiddens = network(x, return_hidden=True)
    return Forward(network, hiddens, logits, y, first)


def side_by_side(networks: Sequence[ResidualNetwork], size: int = 6, first: int = 0) -> Forward:
    """The forward passes of networks of one shape as one: each tensor has a leading dimension."""
    parts = [forward(network, size, first) for network in networks]
    parameters = [dict(network.named_parameters()) for network in networks]
    stacked = {name: torch.stack([of[name] for of in parameters]) for name in parameters[0]}
    layers = networks[0].with_parameters(stacked.__getitem__)
    hiddens = [torch.stack(list(level)) for level in zip(*(part.hiddens for part in parts), strict=True)]
    return Forward(layers, hiddens, torch.stack([part.logits for part in parts]), parts[0].y, first)


def gradients(forward: Forward) -> Tensor:
    """∂CE_sum/∂h_l by backprop through the network's own layers: (L, b, n)."""
    assert isinstance(forward.network, ResidualNetwork)
    found: list[Tensor] = []
    for layer in range(forward.network.num_blocks):
        with torch.enable_grad():
            leaf = forward.hiddens[layer].detach().requires_grad_()
            loss = cross_entropy(forward.network.forward_from_layer(leaf, layer), forward.y).sum()
            found += torch.autograd.grad(loss, leaf)
    return torch.stack(found)


def shape(network: ResidualNetwork) -> Shape:
    """The counts of the network, for costs."""
    counts = {name: p.numel() for name, p in network.named_parameters()}
    first = sum(counts[name] for name in network.parameter_names([0]))
    head = sum(counts[name] for name in network.parameter_names(head=True))
    embed = sum(counts.values()) - first * network.num_blocks - head
    size = network.hidden_size
    flops = 2.0 * embed, 2.0 * first, 2.0 * head
    return Shape(network.input_dim, size, network.num_blocks, CLASSES, *flops, embed, first, head)
