"""Named random streams (Protocols, section 2 (Data)): each purpose of a cell's draws has a generator of its own.

A stream is identified by the cell's seed, a name ("init", "train/order") and any number of indices (an epoch, a layer).
Its seed is a hash of these alone, so adding an axis, a worker or another stream changes no number drawn here. torch's
global random state is neither read nor advanced.
"""

from __future__ import annotations

import hashlib

import torch


def stream_seed(seed: int, stream: str, *index: int) -> int:
    """The 63-bit seed of a stream: the first 8 bytes (big-endian) of sha256("seed/stream/i/j…") without their last bit.

    torch's CPU engine (mt19937) keeps the low 32 bits of it, CUDA's (Philox) keeps all.
    """
    name = "/".join([str(seed), stream, *map(str, index)])
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def generator(seed: int, stream: str, *index: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator on `device` at the start of the stream named by (seed, stream, *index)."""
    return torch.Generator(device=device).manual_seed(stream_seed(seed, stream, *index))
