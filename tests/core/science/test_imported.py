"""Foreign checkpoints: their names, and what is no residual MLP's state dict."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from typing import Annotated

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from pydantic.types import StringConstraints

from creditgrid.core.errors import CheckpointError
from creditgrid.core.science.imported import MAX_BLOCKS, PATTERN, CheckpointName, check
from creditgrid.core.science.network import ResidualMLP

Arrays = dict[str, npt.NDArray[np.float32]]
TYPED = TypeAdapter(Annotated[str, StringConstraints(pattern=PATTERN)])
HASH = "0123456789abcdef" * 4
SIZES = st.integers(1, 999_999_999)


def make(num_blocks: int = 2, d_hidden: int = 4, input_dim: int = 6, num_classes: int = 3) -> Arrays:
    network = ResidualMLP(input_dim, d_hidden, num_classes, num_blocks)
    return {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}


# -- names --


@given(st.integers(1, MAX_BLOCKS), SIZES, SIZES, SIZES)
def test_names_are_read_as_they_are_written(blocks: int, d_hidden: int, input_dim: int, classes: int) -> None:
    name = CheckpointName(blocks, d_hidden, input_dim, classes, HASH)
    assert str(name) == f"L{blocks}-d{d_hidden}-D{input_dim}-C{classes}-{HASH}"
    assert CheckpointName.parse(str(name)) == name
    assert TYPED.validate_python(str(name)) == str(name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "epoch_20.pt",
        HASH,
        f"L4-d256-D3072-C10-{HASH[1:]}",
        f"L4-d256-D3072-C10-{HASH}0",
        f"L4-d256-D3072-C10-{HASH.upper()}",
        f"L0-d256-D3072-C10-{HASH}",
        f"L257-d256-D3072-C10-{HASH}",
        f"L04-d256-D3072-C10-{HASH}",
        f"L4-d0-D3072-C10-{HASH}",
        f"L4-d-256-D3072-C10-{HASH}",
        f"L٤-d256-D3072-C10-{HASH}",
        f" L4-d256-D3072-C10-{HASH}",
        f"L4-d256-D3072-C10-{HASH}\n",
    ],
)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(ValueError, match="not the name of an imported checkpoint"):
        CheckpointName.parse(text)
    with pytest.raises(ValidationError):
        TYPED.validate_python(text)


# -- state dicts --


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 4, 6, 3), (11, 3, 2, 5)])
def test_the_name_holds_the_shape(shape: tuple[int, int, int, int]) -> None:
    name = check(make(*shape))
    assert (name.num_blocks, name.d_hidden, name.input_dim, name.num_classes) == shape


def test_the_hash_is_of_names_shapes_and_values() -> None:
    arrays = make(11)  # block 10 stands before block 2 in the order of names
    said = b""
    for name in sorted(arrays):
        said += f"{name} {[int(size) for size in arrays[name].shape]}\n".encode()
        said += b"".join(struct.pack("<f", value) for value in arrays[name].flatten().tolist())
    assert check(arrays).sha256 == hashlib.sha256(said).hexdigest()


def test_the_hash_is_of_values_alone_however_they_lie_in_memory() -> None:
    arrays = make()
    name = check(arrays)
    assert check(dict(reversed(arrays.items()))) == name
    assert check({key: np.asfortranarray(array) for key, array in arrays.items()}) == name
    for key in arrays:
        changed = {other: array.copy() for other, array in arrays.items()}
        changed[key].flat[-1] = np.nextafter(changed[key].flat[-1], np.float32(9))
        assert check(changed).sha256 != name.sha256, key
    arrays["blocks.0.w1.weight"], arrays["blocks.0.w2.weight"] = (
        arrays["blocks.0.w2.weight"],
        arrays["blocks.0.w1.weight"],
    )
    assert check(arrays).sha256 != name.sha256


def renamed(arrays: Arrays, old: str, new: str) -> None:
    arrays[new] = arrays.pop(old)


def prefixed(arrays: Arrays) -> None:
    for name in list(arrays):
        renamed(arrays, name, f"module.{name}")


def put(name: str, array: npt.NDArray[np.float32]) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.update({name: array})


def zeros(*shape: int) -> npt.NDArray[np.float32]:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda arrays: arrays.clear(), ["blocks.0", "none at all"]),
        (prefixed, ["blocks.0", "module.blocks.0.ln.bias", "and 15 more", "nothing before"]),
        (lambda arrays: arrays.pop("out_ln.bias"), ["out_ln.bias missing"]),
        (lambda arrays: arrays.pop("embed.weight"), ["embed.weight missing"]),
        (put("extra.weight", zeros(2)), ["extra.weight not expected"]),
        (lambda arrays: renamed(arrays, "embed.weight", "stem.weight"), ["embed.weight missing", "stem.weight not"]),
        (lambda arrays: renamed(arrays, "blocks.1.w1.bias", "blocks.01.w1.bias"), ["blocks.1.w1.bias missing"]),
        (put("blocks.3.w1.bias", zeros(4)), ["blocks.2.ln.bias", "missing"]),
        (put("blocks.256.w1.bias", zeros(4)), ["block 256", "at most 256 blocks"]),
        (put("blocks.999999999.w1.bias", zeros(4)), ["block 999999999", "at most 256 blocks"]),
        (put("embed.weight", zeros(4)), ["embed.weight has the shape (4,)", "(d_hidden, input_dim)"]),
        (put("embed.weight", zeros(0, 6)), ["embed.weight has the shape (0, 6)"]),
        (put("out_head.weight", zeros(3)), ["out_head.weight has the shape (3,)", "(num_classes, d_hidden)"]),
        (put("embed.weight", zeros(5, 6)), ["embed.bias has the shape (4,), and (5,) was expected", "d_hidden is 5"]),
        (put("blocks.1.w1.weight", zeros(4, 5)), ["blocks.1.w1.weight has the shape (4, 5), and (4, 4)"]),
        (put("blocks.0.ln.weight", zeros()), ["blocks.0.ln.weight has the shape (), and (4,)"]),
        (put("out_head.bias", zeros(4)), ["out_head.bias has the shape (4,), and (3,)", "num_classes is 3"]),
        (put("out_head.weight", zeros(3, 5)), ["out_head.weight has the shape (3, 5), and (3, 4)"]),
        (put("out_ln.bias", np.zeros(4)), ["out_ln.bias is of type float64", "float32"]),  # type: ignore[arg-type]
        (put("out_ln.bias", np.full(4, np.nan, np.float32)), ["out_ln.bias holds values that are not finite"]),
        (put("embed.bias", np.full(4, -np.inf, np.float32)), ["embed.bias holds values that are not finite"]),
    ],
)
def test_what_is_wrong_is_named(spoil: Callable[[Arrays], object], said: list[str]) -> None:
    arrays = make()
    check(arrays)
    spoil(arrays)
    with pytest.raises(CheckpointError) as caught:
        check(arrays)
    for part in said:
        assert part in str(caught.value)
    assert len(str(caught.value)) < 600


def test_as_many_blocks_as_are_taken() -> None:
    arrays = make(MAX_BLOCKS, 1, 1, 1)
    assert check(arrays).num_blocks == MAX_BLOCKS
