from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from creditgrid.core.streams import generator, stream_seed

# One draw from each stream there is, so that a change of any of them is seen: a renamed stream changes results.
GOLDEN = {
GOLDEN_ROWS
}


@pytest.mark.parametrize("name", GOLDEN, ids=lambda name: "/".join(map(str, name)))
def test_golden_seeds_and_draws(name: tuple[str, ...]) -> None:
    seed, draws = GOLDEN[name]
    assert stream_seed(42, *name) == seed
    assert torch.randint(1000, (3,), generator=generator(42, *name)).tolist() == draws


@given(st.integers(), st.text(), st.lists(st.integers(), max_size=3))
def test_the_seed_is_the_hash_of_the_streams_name(seed: int, stream: str, index: list[int]) -> None:
    text = f"{seed}/{stream}" + "".join(f"/{i}" for i in index)
    bits = "".join(f"{byte:08b}" for byte in hashlib.sha256(text.encode()).digest())
    assert stream_seed(seed, stream, *index) == int(bits[:63], 2)


def test_streams_are_pairwise_distinct() -> None:
    names = [(seed, *name[:1], index) for seed in range(4) for name in GOLDEN for index in range(200)]
    names = sorted(set(names))
    seeds = [stream_seed(*name) for name in names]
    assert len(set(seeds)) == len(names)
    # torch's CPU engine sees only these bits.
    assert len({seed % 2**32 for seed in seeds}) == len(names)
    first_draws = {tuple(torch.rand(4, generator=generator(*name)).tolist()) for name in names[:500]}
    assert len(first_draws) == 500


def test_a_stream_starts_over_and_neither_reads_nor_advances_the_global_state() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = torch.rand(10, generator=generator(7, "init", 3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(torch.rand(10, generator=generator(7, "init", 3)), first)
