from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from creditgrid.core.science.random_streams import generator, stream_seed

# One draw from each stream there is, so that a change of any of them is seen: a renamed stream changes results.
GOLDEN = {
    ("init", ()): (7_920_988_386_951_094_333, [915, 949, 871]),
    ("train/order", (1,)): (4_198_443_223_084_938_090, [4, 868, 751]),
    ("train/augment", (1,)): (2_635_871_883_151_982_511, [78, 324, 413]),
    ("probe/order", (0,)): (3_339_320_163_625_975_803, [378, 266, 894]),
    ("probe/augment", (0,)): (2_832_129_129_733_556_424, [537, 357, 458]),
    ("feedback", (0,)): (4_232_553_656_212_316_210, [599, 683, 811]),
    ("fit/vec/init", ()): (6_641_286_756_288_006_562, [555, 356, 642]),
    ("fit/scalar_cb/init", ()): (2_575_867_905_088_709_057, [177, 743, 124]),
    ("fit/order", (1,)): (3_134_307_226_685_393_729, [455, 776, 274]),
    ("fit/augment", (1,)): (8_939_874_563_551_548_671, [550, 812, 842]),
    ("fit/layer", (1,)): (7_093_295_958_229_545_169, [345, 546, 931]),
    ("fit/perturb", (1,)): (5_565_716_329_445_924_548, [966, 191, 700]),
}


@pytest.mark.parametrize(("stream", "index"), GOLDEN)
def test_golden_seeds_and_draws(stream: str, index: tuple[int, ...]) -> None:
    seed, draws = GOLDEN[stream, index]
    assert stream_seed(42, stream, *index) == seed
    assert torch.randint(1000, (3,), generator=generator(42, stream, *index)).tolist() == draws


@given(st.integers(), st.text(), st.lists(st.integers(), max_size=3))
def test_the_seed_is_the_hash_of_the_streams_name(seed: int, stream: str, index: list[int]) -> None:
    text = f"{seed}/{stream}" + "".join(f"/{i}" for i in index)
    bits = "".join(f"{byte:08b}" for byte in hashlib.sha256(text.encode()).digest())
    assert stream_seed(seed, stream, *index) == int(bits[:63], 2)


def test_streams_are_pairwise_distinct() -> None:
    names = [(seed, stream, index) for seed in range(4) for stream, _ in GOLDEN for index in range(200)]
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
