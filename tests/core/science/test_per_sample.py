from __future__ import annotations

import math

import pytest
import torch

from creditgrid.core.science.per_sample import correct, cross_entropy, rms


def test_rms_against_a_loop() -> None:
    a = torch.randn(3, 4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = rms(a)
    assert found.shape == (3, 4)
    for i in range(3):
        for j in range(4):
            expected = math.sqrt(sum(float(v) ** 2 for v in a[i, j]) / 7) + 1e-6
            assert found[i, j].item() == pytest.approx(expected, rel=1e-12)


def test_the_rms_of_zero_is_its_floor() -> None:
    assert rms(torch.zeros(2, 5, dtype=torch.float64)).tolist() == [1e-6, 1e-6]


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_cross_entropy_and_correct_against_a_loop(leading: tuple[int, ...]) -> None:
    logits = 3 * torch.randn(*leading, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = torch.tensor([0, 3, 2, 1, 1, 0])
    losses, hits = cross_entropy(logits, y), correct(logits, y)
    assert losses.shape == hits.shape == (*leading, 6)
    for k, row in enumerate(logits.reshape(-1, 6, 4).tolist()):
        for i, scores in enumerate(row):
            label = int(y[i])
            expected = math.log(sum(math.exp(score) for score in scores)) - scores[label]
            assert losses.reshape(-1, 6)[k, i].item() == pytest.approx(expected, rel=1e-12, abs=1e-14)
            assert bool(hits.reshape(-1, 6)[k, i]) == (scores[label] == max(scores))
