from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from creditgrid.core.science.data import ImageData, augment, crop_and_flip, full_batches, normalise, training_batches
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


def _slow(image: torch.Tensor, top: int, left: int, flip: bool, pad: int) -> torch.Tensor:
    """One image, one pixel at a time: what stands at (row, column) of the crop, or 0 outside the image."""
    channels, height, width = image.shape
    out = torch.zeros_like(image)
    for c in range(channels):
        for row in range(height):
            for column in range(width):
                source_row = row + top - pad
                source_column = (width - 1 - column if flip else column) + left - pad
                if 0 <= source_row < height and 0 <= source_column < width:
                    out[c, row, column] = image[c, source_row, source_column]
    return out


@given(
    shape=st.tuples(st.integers(1, 4), st.sampled_from([1, 3]), st.integers(1, 6), st.integers(1, 6)),
    pad=st.integers(0, 3),
    seed=st.integers(0, 2**32),
)
def test_crops_and_flips_against_a_loop_over_pixels(shape: tuple[int, int, int, int], pad: int, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    images = torch.randint(1, 256, shape, generator=draws, dtype=torch.uint8)
    top, left = torch.randint(2 * pad + 1, (2, shape[0]), generator=draws)
    flip = torch.rand(shape[0], generator=draws) < 0.5
    out = crop_and_flip(images, top, left, flip, pad)
    assert out.dtype == torch.uint8
    expected = [
        _slow(image, int(t), int(x), bool(f), pad) for image, t, x, f in zip(images, top, left, flip, strict=True)
    ]
    assert torch.equal(out, torch.stack(expected))


def test_every_offset_and_flip_is_drawn_equally_often_and_independently() -> None:
    """The augmented copies of one image with distinct pixels show which offset and flip was drawn."""
    image = torch.arange(1, 64 + 1, dtype=torch.uint8).view(1, 8, 8)
    outcomes = {
        _slow(image, top, left, flip, 2).numpy().tobytes(): (top, left, flip)
        for top in range(5)
        for left in range(5)
        for flip in (False, True)
    }
    assert len(outcomes) == 50
    images = augment(image.expand(20_000, 1, 8, 8), generator(0, "test"), pad=2)
    counts = dict.fromkeys(outcomes.values(), 0)
    for copy in images.numpy():
        counts[outcomes[copy.tobytes()]] += 1
    # 400 expected of each; chi-squared with 49 degrees of freedom is above 99 once in 30,000 seeds.
    assert sum((count - 400) ** 2 / 400 for count in counts.values()) < 99


def test_padding_is_black_before_normalising() -> None:
    images = torch.full((1, 3, 32, 32), 200, dtype=torch.uint8)
    out = crop_and_flip(images, torch.tensor([0]), torch.tensor([8]), torch.tensor([False]))
    assert not out[:, :, :4].any()
    assert not out[:, :, :, -4:].any()
    assert (out[:, :, 4:, :-4] == 200).all()


def test_the_same_stream_gives_the_same_copies_and_the_global_state_is_left_alone() -> None:
    images = torch.randint(256, (16, 3, 8, 8), generator=generator(0, "test"), dtype=torch.uint8)
    before = torch.get_rng_state()
    first = augment(images, generator(1, "test"))
    assert torch.equal(first, augment(images, generator(1, "test")))
    assert not torch.equal(first, augment(images, generator(2, "test")))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("pad", [0, 4])
def test_default_and_zero_padding_keep_the_shape(pad: int) -> None:
    images = torch.randint(256, (5, 1, 7, 9), generator=generator(0, "test"), dtype=torch.uint8)
    assert augment(images, generator(1, "test"), pad).shape == images.shape
