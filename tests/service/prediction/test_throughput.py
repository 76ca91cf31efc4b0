"""What is learned from past calls, on calls of known rates."""

from __future__ import annotations

import random

import pytest

from creditgrid.core.work import Work
from creditgrid.service.ledger.past_calls import PastCall
from creditgrid.service.prediction.calibration import Calibration
from creditgrid.service.prediction.throughput import CALL_S, Rates, alike, fitted

PRIOR = Calibration(5e-6, 1.2e-11, 1e-10)
SMALL = Work(2e5, 3e9, 1e9)  # an epoch of digits: bound by launches
LARGE = Work(8e4, 3e11, 4e10)  # an epoch of CIFAR-10: bound by products


def took(seconds: float, work: Work = SMALL) -> PastCall:
    return PastCall("train", "cpu", work, 1, seconds, 0, 0, 0.0)


def on(machine: Rates, *works: Work, noise: float = 0.0, seed: int = 0) -> list[PastCall]:
    draws = random.Random(seed)
    return [took(machine.seconds(work) * draws.lognormvariate(0.0, noise), work) for work in works]


def test_without_calls_the_calibration_holds() -> None:
    assert fitted([], PRIOR).seconds(SMALL) == pytest.approx(2e5 * 5e-6 + 3e9 * 1.2e-11 + 1e9 * 1e-10 + CALL_S)


def test_calls_of_both_sizes_give_the_machine_s_rates() -> None:
    machine = Rates(9e-6, 2e-11, 2e-10)
    calls = on(machine, *[SMALL, LARGE, SMALL.times(20), LARGE.times(10)] * 5, noise=0.1)
    learned = fitted(calls, PRIOR)
    for work in (SMALL, LARGE, SMALL.times(50), LARGE.times(3)):
        assert learned.seconds(work) == pytest.approx(machine.seconds(work), rel=0.1)


def test_one_small_call_moves_a_large_prediction_less_than_a_small_one() -> None:
    learned = fitted([took(3 * Rates(*PRIOR).seconds(SMALL))], PRIOR)
    assert learned.seconds(SMALL) == pytest.approx(3 * Rates(*PRIOR).seconds(SMALL), rel=0.1)
    grown = learned.seconds(LARGE) / Rates(*PRIOR).seconds(LARGE)
    assert 1.0 < grown < 3.0


def test_an_outlier_counts_little() -> None:
    machine = Rates(*PRIOR)
    calls = on(machine, *[SMALL] * 9, noise=0.05)
    calls[4] = took(40 * machine.seconds(SMALL))
    assert fitted(calls, PRIOR).seconds(SMALL) == pytest.approx(machine.seconds(SMALL), rel=0.15)


def test_the_newest_calls_count_most() -> None:
    before, now = Rates(*PRIOR), Rates(*(4 * price for price in PRIOR))
    calls = on(before, *[SMALL] * 30) + on(now, *[SMALL] * 20)
    assert fitted(calls, PRIOR).seconds(SMALL) == pytest.approx(now.seconds(SMALL), rel=0.2)


def test_units_of_a_package_s_own_are_learned_in_a_few_calls() -> None:
    work = Work(launches=100.0)  # which take a second each
    calls = [took(100.0, work), took(205.0, work.times(2)), took(98.0, work)]
    assert fitted(calls, PRIOR).seconds(work.times(5)) == pytest.approx(500.0, rel=0.1)


def test_a_kind_without_a_cost_takes_the_median_of_its_calls() -> None:
    assert alike([]) is None
    calls = [
        took(seconds, Work(launches=scale)) for seconds, scale in ((2.0, 2.0), (30.0, 1.0), (5.0, 5.0), (9.0, 9.0))
    ]
    found = alike(calls)
    assert found is not None
    assert found.seconds(Work(launches=7.0), 3) == pytest.approx(7.0)


@pytest.mark.parametrize("calls", [[took(1e-9, Work())], [took(1e9)], [took(1e-9, Work(1e24, 1e24, 1e24))]])
def test_nonsense_gives_finite_rates(calls: list[PastCall]) -> None:
    assert all(0 < rate < 1e20 for rate in fitted(calls, PRIOR))
