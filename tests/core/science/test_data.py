from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from creditgrid.core.science.augment import augment
from creditgrid.core.science.data import ImageData, full_batches, normalise, training_batches
from creditgrid.core.science.random_streams import generator


def test_normalise_against_a_loop(tiny_data: ImageData) -> None:
    images = tiny_data.x_train[:3]
    out = normalise(images, tiny_data.mean, tiny_data.std)
    assert out.dtype == torch.float32
    assert out.shape == (3, 3 * 8 * 8)
    mean, std = tiny_data.mean.double(), tiny_data.std.double()
    for sample in range(3):
        flat = [
            (images[sample, c, row, column].item() / 255 - mean[c].item()) / std[c].item()
            for c in range(3)
            for row in range(8)
            for column in range(8)
        ]
        np.testing.assert_allclose(out[sample], flat, rtol=1e-6, atol=1e-6)


def _indexed(size: int) -> ImageData:
    """Images that carry their index in every pixel's colour, so that a batch shows which images it holds."""
    index = torch.arange(size)
    images = torch.stack([1 + index % 100, 1 + index // 100], dim=1).to(torch.uint8)[:, :, None, None]
    images = images.expand(size, 2, 6, 6).contiguous()
    return ImageData(images, index, images, index, torch.zeros(2), torch.ones(2), num_classes=size)


def _indices(data: ImageData, x: torch.Tensor) -> list[int]:
    low, high = (255 * x.view(-1, 2, 36).amax(2)).round().long().unbind(1)
    return (low - 1 + 100 * (high - 1)).tolist()


@pytest.mark.parametrize(("size", "batch"), [(250, 64), (256, 64), (10, 64)])
def test_an_epoch_holds_every_image_once_with_its_label(size: int, batch: int) -> None:
    data = _indexed(size)
    batches = list(training_batches(data, batch, seed=1, epoch=1))
    assert [len(y) for _, y in batches] == [batch] * (size // batch) + [size % batch] * (size % batch > 0)
    for x, y in batches:
        assert x.dtype == torch.float32
        assert _indices(data, x) == y.tolist()
    order = torch.cat([y for _, y in batches]).tolist()
    assert sorted(order) == list(range(size))
    assert order != list(range(size))


def test_full_batches_are_those_of_the_epoch_without_the_partial_one() -> None:
    data = _indexed(250)
    full, every = list(full_batches(data, 64, 1, 1, "probe")), list(training_batches(data, 64, 1, 1, "probe"))
    assert [len(y) for _, y in full] == [64] * 3
    for (x, y), (expected_x, expected_y) in zip(full, every, strict=False):
        assert torch.equal(x, expected_x)
        assert torch.equal(y, expected_y)
    assert not list(full_batches(data, 251, 1, 1))


def test_batches_come_from_their_two_streams_and_from_nothing_else(tiny_data: ImageData) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches = list(training_batches(tiny_data, 64, seed=3, epoch=2, stream="fit"))
    assert torch.equal(torch.get_rng_state(), before)
    order = torch.randperm(200, generator=generator(3, "fit/order", 2))
    crops = generator(3, "fit/augment", 2)
    for number, (x, y) in enumerate(batches):
        chosen = order[64 * number : 64 * (number + 1)]
        images = augment(tiny_data.x_train[chosen], crops)
        assert torch.equal(x, normalise(images, tiny_data.mean, tiny_data.std))
        assert torch.equal(y, tiny_data.y_train[chosen])


@pytest.mark.parametrize(
    "other",
    [
        lambda data: training_batches(data, 64, 3, 2),
        lambda data: training_batches(data, 64, 4, 1),
        lambda data: training_batches(data, 64, 3, 1, "probe"),
    ],
    ids=["epoch", "seed", "stream"],
)
def test_epochs_seeds_and_streams_differ_and_each_repeats(
    tiny_data: ImageData, other: Callable[[ImageData], Iterator[tuple[torch.Tensor, torch.Tensor]]]
) -> None:
    first, again = list(training_batches(tiny_data, 64, 3, 1)), list(training_batches(tiny_data, 64, 3, 1))
    for (x, y), (x_again, y_again) in zip(first, again, strict=True):
        assert torch.equal(x, x_again)
        assert torch.equal(y, y_again)
    assert not torch.equal(first[0][1], next(iter(other(tiny_data)))[1])


def test_arrays_round_trip_without_copying_even_when_read_only(tiny_data: ImageData) -> None:
    arrays = tiny_data.to_arrays()
    assert {name: array.dtype.name for name, array in arrays.items()} == {
        "x_train": "uint8",
        "y_train": "int64",
        "x_test": "uint8",
        "y_test": "int64",
        "mean": "float32",
        "std": "float32",
        "num_classes": "int64",
    }
    for array in arrays.values():
        array.flags.writeable = False
    back = ImageData.from_arrays(arrays)
    for name in ("x_train", "y_train", "x_test", "y_test", "mean", "std"):
        assert torch.equal(getattr(back, name), getattr(tiny_data, name))
        assert getattr(back, name).data_ptr() == arrays[name].ctypes.data
    assert back.num_classes == 5
    assert back.input_dim == 3 * 8 * 8


def test_moving_takes_every_tensor_along(tiny_data: ImageData) -> None:
    moved = tiny_data.to("meta")
    assert {moved.x_train.device.type, moved.y_test.device.type, moved.mean.device.type} == {"meta"}
    assert moved.device == torch.device("meta")
    assert replace(moved, num_classes=7).num_classes == 7
