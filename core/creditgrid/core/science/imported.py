"""Imported checkpoints: the state dict of a residual MLP that another program trained, and its name.

The name holds all that a plan needs to know of the checkpoint, so planning does not open the file::

    L4-d256-D3072-C10-0f3a…    blocks, hidden width, input dimension, classes, and the SHA-256 of the tensors

The tensors are those of ``ResidualMLP.state_dict()``: ``embed``, ``blocks.N.{ln,w1,w2}``, ``out_ln`` and ``out_head``,
each with ``weight`` and ``bias``, in float32.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from creditgrid.core.errors import CheckpointError

if TYPE_CHECKING:
    from creditgrid.core.task import Arrays

MAX_BLOCKS = 256
PATTERN = (
    r"^L([1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-6])-d([1-9][0-9]{0,8})-D([1-9][0-9]{0,8})-C([1-9][0-9]{0,8})"
    r"-([0-9a-f]{64})$"
)
"""The form of a name; it means the same to Python's regular expressions and to pydantic's."""
SHOWN = 3
"""An error names this many tensors and counts the others."""


@dataclass(frozen=True, slots=True)
class CheckpointName:
    """The name of an imported checkpoint; ``str(name)`` writes it and ``parse`` reads it."""

    num_blocks: int
    d_hidden: int
    input_dim: int
    num_classes: int
    sha256: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """The name that ``text`` writes.

        Raises:
            ValueError: for a text that is no such name.
        """
        found = re.fullmatch(PATTERN, text)
        if found is None:
            raise ValueError(
                f"{text!r:.120} is not the name of an imported checkpoint: such names look like L4-d256-D3072-C10- and "
                "64 hexadecimal digits, and the import prints them"
            )
        num_blocks, d_hidden, input_dim, num_classes = map(int, found.groups()[:4])
        return cls(num_blocks, d_hidden, input_dim, num_classes, found[5])

    def __str__(self) -> str:
        return f"L{self.num_blocks}-d{self.d_hidden}-D{self.input_dim}-C{self.num_classes}-{self.sha256}"


def check(arrays: Arrays) -> CheckpointName:
    """The name of the checkpoint with these tensors.

    Raises:
        CheckpointError: when they are not those of a residual MLP in float32; it names the tensor and its fault.
    """
    import numpy as np  # here, because plans read names without it

    num_blocks = _blocks(arrays)
    _same_names(arrays, _shapes(num_blocks, 1, 1, 1))
    d_hidden, input_dim = _matrix(arrays, "embed.weight", "(d_hidden, input_dim)")
    num_classes, _ = _matrix(arrays, "out_head.weight", "(num_classes, d_hidden)")
    for name, shape in _shapes(num_blocks, d_hidden, input_dim, num_classes).items():
        array = arrays[name]
        if array.shape != shape:
            raise CheckpointError(
                f"{name} has the shape {array.shape}, and {shape} was expected: embed.weight says that d_hidden is "
                f"{d_hidden}, out_head.weight that num_classes is {num_classes}"
            )
        if array.dtype != np.float32:
            raise CheckpointError(f"{name} is of type {array.dtype}, and float32 was expected")
        if not np.isfinite(array).all():
            raise CheckpointError(f"{name} holds values that are not finite (NaN or infinite, as float32)")
    return CheckpointName(num_blocks, d_hidden, input_dim, num_classes, _sha256(arrays))


def _shapes(num_blocks: int, d_hidden: int, input_dim: int, num_classes: int) -> dict[str, tuple[int, ...]]:
    import torch  # here, because plans read names without it

    from creditgrid.core.science.network import ResidualMLP

    with torch.device("meta"):  # shapes without values
        network = ResidualMLP(input_dim, d_hidden, num_classes, num_blocks)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _blocks(names: Iterable[str]) -> int:
    """The number of blocks that the names belong to."""
    numbers = [int(found[1]) for name in names if (found := re.match(r"blocks\.([0-9]{1,9})\.", name))]
    if not numbers:
        raise CheckpointError(f"there is no tensor blocks.0.…, but {_some(names) or 'none at all'}: {_WANTED}")
    if max(numbers) >= MAX_BLOCKS:
        raise CheckpointError(f"there is a block {max(numbers)}, and at most {MAX_BLOCKS} blocks (from 0) are accepted")
    return max(numbers) + 1


def _same_names(arrays: Arrays, expected: Mapping[str, object]) -> None:
    missing, stray = expected.keys() - arrays.keys(), arrays.keys() - expected.keys()
    parts = [f"{_some(missing)} missing"] if missing else []
    parts += [f"{_some(stray)} not expected"] if stray else []
    if parts:
        raise CheckpointError(f"the names are not those of a residual MLP, {' and '.join(parts)}: {_WANTED}")


def _matrix(arrays: Arrays, name: str, meaning: str) -> tuple[int, int]:
    shape = arrays[name].shape
    if len(shape) != 2 or 0 in shape:
        raise CheckpointError(f"{name} has the shape {shape}, and {meaning} was expected, neither of them 0")
    return int(shape[0]), int(shape[1])


_WANTED = (
    "a checkpoint is the state dict of a ResidualMLP, with weight and bias of embed, blocks.N.ln, blocks.N.w1, "
    "blocks.N.w2, out_ln and out_head, and nothing before these names"
)


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - SHOWN:,} more" if len(ordered) > SHOWN else ""
    return f"{', '.join(f'{name:.80}' for name in ordered[:SHOWN])}{more}"


def _sha256(arrays: Arrays) -> str:
    """SHA-256 over the tensors in the order of their names: name, shape, and the values as little-endian float32."""
    import numpy as np

    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        sha.update(f"{name} {list(array.shape)}\n".encode())
        sha.update(np.ascontiguousarray(array, dtype="<f4").data)
    return sha.hexdigest()
