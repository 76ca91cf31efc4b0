"""Augmentation of Protocols, section 2 (Data): zero-pad, crop and flip a batch of uint8 images on the device."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F  # noqa: N812


def augment(images: Tensor, generator: Generator, pad: int = 4) -> Tensor:
    """Randomly shifted and flipped copies of uint8 images (b, C, H, W), same shape.

    Each image is zero-padded by `pad` on all sides, cropped back to H x W at an offset drawn uniformly from
    {0, …, 2 pad}², then flipped left-right with probability 1/2. `generator` must live on the images' device.
    """
    batch, device = len(images), images.device
    top, left = torch.randint(2 * pad + 1, (2, batch), generator=generator, device=device)
    flip = torch.rand(batch, generator=generator, device=device) < 0.5
    return crop_and_flip(images, top, left, flip, pad)


def crop_and_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, pad: int = 4) -> Tensor:
    """`augment` with given draws: crop offsets top, left int64 (b,) into the padded images, and flips bool (b,)."""
    batch, channels, height, width = images.shape
    padded = F.pad(images, (pad, pad, pad, pad))
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = left[:, None] + torch.where(flip[:, None], width - 1 - columns, columns)
    # One gather over flattened pixels: all channels share the index of an image's pixel.
    pixels = (rows[:, :, None] * padded.shape[-1] + columns[:, None, :]).view(batch, 1, height * width)
    return padded.flatten(2).gather(2, pixels.expand(batch, channels, -1)).view_as(images)
