"""Image data on the device as uint8, its augmentation, and its batches: Protocols, section 2 (Data)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.utils.dlpack import from_dlpack

from creditgrid.core.science.random_streams import generator


@dataclass(frozen=True)
class ImageData:
    """A classification set: images x uint8 (N, C, H, W) and labels y int64 (N,), in file order.

    `mean` and `std`, float32 (C,), are the channels' statistics for pixels scaled to [0, 1].
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    mean: Tensor
    std: Tensor
    num_classes: int

    @property
    def input_dim(self) -> int:
        """D = C * H * W, the length of a flattened image."""
        return self.x_train[0].numel()

    @property
    def device(self) -> torch.device:
        return self.x_train.device

    def to(self, device: torch.device | str) -> ImageData:
        """The same data with every tensor on `device`."""
        moved = {name: tensor.to(device) for name, tensor in self._tensors().items()}
        return replace(self, **moved)  # type: ignore[arg-type]

    def to_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """The tensors as NumPy arrays by field name, and `num_classes` as a 0-dim int64 array."""
        arrays = {name: tensor.cpu().numpy() for name, tensor in self._tensors().items()}
        return {**arrays, "num_classes": np.asarray(self.num_classes, dtype=np.int64)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray[Any, Any]]) -> ImageData:
        """The inverse of `to_arrays`, without copying: the tensors share the arrays' memory, which may be read-only."""
        # Ray hands out read-only arrays, which torch.from_numpy warns about and DLPack passes on.
        tensors = {field.name: from_dlpack(arrays[field.name]) for field in fields(cls) if field.name != "num_classes"}
        return cls(**tensors, num_classes=int(arrays["num_classes"]))

    def _tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "num_classes"}


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(x/255 - mean)/std of uint8 images (b, C, H, W), per channel, flattened in C, H, W order: float32 (b, C*H*W)."""
    pixels = images.to(torch.float32)
    pixels.sub_(255 * mean[:, None, None]).div_(255 * std[:, None, None])
    return pixels.flatten(1)


def augment(images: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
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


def training_batches(
    data: ImageData, batch_size: int, seed: int, epoch: int, stream: str = "train"
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of augmented, normalised training batches: x float32 (b, D), y int64 (b,); the last may be smaller.

    The order is drawn on the CPU from the stream "{stream}/order", the crops and flips on the data's device from
    "{stream}/augment", both indexed by the epoch: no epoch depends on another.
    """
    order = torch.randperm(len(data.y_train), generator=generator(seed, f"{stream}/order", epoch)).to(data.device)
    crops = generator(seed, f"{stream}/augment", epoch, device=data.device)
    for indices in torch.split(order, batch_size):
        images = augment(data.x_train.index_select(0, indices), crops)
        yield normalise(images, data.mean, data.std), data.y_train[indices]


def full_batches(
    data: ImageData, batch_size: int, seed: int, epoch: int, stream: str = "train"
) -> Iterator[tuple[Tensor, Tensor]]:
    """`training_batches` without those smaller than `batch_size`."""
    for x, y in training_batches(data, batch_size, seed, epoch, stream):
        if len(y) == batch_size:
            yield x, y
