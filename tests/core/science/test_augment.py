from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from creditgrid.core.science.augment import augment, crop_and_flip
from creditgrid.core.science.random_streams import generator


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
