"""The global random states of a process, which a unit must neither change nor depend on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def states() -> dict[str, Any]:
    """The global random states, by library, in a form that can be compared."""
    legacy: Any = np.random.get_state(legacy=True)
    return {
        "random": random.getstate(),
        "numpy.random": (legacy[0], legacy[1].tobytes(), *legacy[2:]),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Every global random state starts at ``seed`` in the block, and is as before after it."""
    python, legacy = random.getstate(), np.random.get_state(legacy=True)
    with torch.random.fork_rng(devices=()):
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


@contextmanager
def watched(changed: list[str]) -> Iterator[None]:
    """Adds to ``changed`` the libraries whose global random state is another after the block.

    The states start at a seed that nobody else uses, so that a block which seeds them by itself changes them too.
    """
    with seeded(0x5EED_C0DE):
        before = states()
        yield
        after = states()
    changed += [library for library, state in before.items() if after[library] != state]
