"""Our figures beside the published ones: only computed figures are judged, and by their numbers."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditgrid.client.reproduce.comparison import Agreement, Comparison, Figure, Status, compare
from creditgrid.client.reproduce.published import PublishedColumn

METHODS = ("dfa", "scalar_cb", "vec", "oracle_bp")
SHIFT = PublishedColumn(
    "shift", "exploitability", "delta_loss", {"rule": "target_shift"}, {"dfa": -0.1, "vec": 0.2, "x": None}
)
STEP = PublishedColumn("step", "linesearch", "delta_loss_same", {"norm_mode": "raw"}, {"vec": -0.1}, at_best_eta=True)
Row = dict[str, Any]


def row(value: float | None, seed: int = 42, method: str = "vec", **others: Any) -> Row:
    """An exploitability row of the checkpoint at the end of training."""
    common = {"experiment": "exploitability", "train_epochs": 100, "checkpoint_epoch": None, "diverged": False}
    return {**common, "rule": "target_shift", "seed": seed, "method": method, "delta_loss": value, **others}


def step(value: float | None, eta: float, seed: int = 42, **others: Any) -> Row:
    return row(None, seed, experiment="linesearch", norm_mode="raw", eta=eta, delta_loss_same=value, **others)


def figure(found: Comparison, method: str = "vec") -> Figure:
    (one,) = [figure for figure in found.figures if figure.method == method]
    return one


def judged(column: PublishedColumn, rows: list[Row], seeds: list[int], **others: Any) -> Figure:
    return figure(compare(column, rows, seeds, [1e-3, 1e-2], **others))


@pytest.mark.parametrize(
    ("value", "agreement"), [(1e-9, Agreement.AGREES), (-1e-9, Agreement.DISAGREES), (0.0, Agreement.UNCLEAR)]
)
def test_a_sign_that_all_seeds_have(value: float, agreement: Agreement) -> None:
    found = judged(SHIFT, [row(value, 42), row(value, 43)], [42, 43])
    assert (found.value, found.published, found.n, found.ci95) == (value, 0.2, 2, 0.0)
    assert found.agreement is agreement


@pytest.mark.parametrize("value", [5.0, 0.0, -5.0])
def test_one_seed_has_no_interval_so_all_is_unclear(value: float) -> None:
    found = compare(SHIFT, [row(value), row(0.0, method="dfa")], [42], [])
    assert (figure(found).value, figure(found).n, figure(found).ci95) == (value, 1, None)
    assert figure(found).agreement is Agreement.UNCLEAR
    (pair,) = found.order
    assert (pair.difference, pair.ci95, pair.n, pair.agreement) == (value, None, 1, Agreement.UNCLEAR)
    assert found.contradictions() == []


def test_a_contradiction_says_what_was_published_and_our_interval() -> None:
    rows = [row(-0.3 - 0.01 * n, 42 + n) for n in range(3)] + [row(-0.1 - 0.02 * n, 42 + n, "dfa") for n in range(3)]
    found = compare(SHIFT, rows, [42, 43, 44], [])
    assert found.contradictions() == [
        "exploitability, shift: published vec +0.2, ours -0.31 ± 0.025 (n 3)",
        "exploitability, shift: published vec > dfa (+0.2 > -0.1), our difference -0.19 ± 0.025 (n 3)",
    ]
    assert found.missing() == ["exploitability, shift: x: no result at 3 of 3 seeds"]
    rows[0] |= {"delta_loss": 1.0}  # now the interval spans 0
    assert compare(SHIFT, rows, [42, 43, 44], []).contradictions() == []


def test_a_sign_is_unclear_where_the_interval_spans_zero() -> None:
    # t_{0.975, 1} = 12.706; of 0.1 and 0.3 the half-width is 12.706 · 0.1.
    wide = judged(SHIFT, [row(0.1, 42), row(0.3, 43)], [42, 43])
    assert (wide.value, wide.n) == (pytest.approx(0.2), 2)
    assert wide.ci95 == pytest.approx(1.2706, rel=1e-4)
    assert wide.agreement is Agreement.UNCLEAR
    narrow = judged(SHIFT, [row(0.2, 42), row(0.21, 43)], [42, 43])
    assert narrow.agreement is Agreement.AGREES
    assert judged(SHIFT, [row(-0.2, 42), row(-0.21, 43)], [42, 43]).agreement is Agreement.DISAGREES


def test_what_was_not_published_is_shown_and_not_judged() -> None:
    found = figure(compare(SHIFT, [row(0.5, method="x")], [42], []), "x")
    assert (found.value, found.published, found.agreement) == (0.5, None, None)


@pytest.mark.parametrize("absent", [Status.MISSING, Status.FAILED, Status.CANCELLED])
def test_missing_rows(absent: Status) -> None:
    one = judged(SHIFT, [], [42], absent=absent)
    assert (one.status, one.value, one.agreement, one.note) == (absent, None, None, "no result")
    some = judged(SHIFT, [row(0.2, 43)], [42, 43, 44], absent=absent)
    assert (some.status, some.value, some.agreement) == (absent, None, None)
    assert some.note == "no result at 2 of 3 seeds"


def test_a_diverged_number_is_no_number() -> None:
    found = judged(SHIFT, [row(0.2, 42), row(None, 43, diverged=True)], [42, 43])
    assert (found.status, found.value, found.agreement) == (Status.DIVERGED, None, None)
    assert found.note == "diverged at 1 of 2 seeds"
    assert judged(SHIFT, [row(None)], [42]).status is Status.UNDEFINED


def test_rows_of_other_cells_are_passed_over() -> None:
    others = [
        row(9.0, rule="inner_product"),
        row(9.0, checkpoint_epoch=20),
        row(9.0, experiment="linesearch"),
        row(9.0, seed=43),
        row(9.0, method="dfa"),
    ]
    assert judged(SHIFT, others, [42]).status is Status.MISSING
    assert judged(SHIFT, [*others, row(0.1, checkpoint_epoch=100)], [42]).value == 0.1


def test_the_best_step_size_has_the_lowest_mean() -> None:
    rows = [step(-0.5, 1e-3, 42), step(-0.1, 1e-3, 43), step(-0.35, 1e-2, 42), step(-0.33, 1e-2, 43)]
    found = judged(STEP, rows, [42, 43])
    assert (found.eta, found.value) == (1e-2, pytest.approx(-0.34))


def test_a_step_size_at_which_a_seed_diverged_is_not_eligible() -> None:
    rows = [step(-0.1, eta, seed) for eta in (1e-3, 1e-2) for seed in (42, 43)]
    rows[2] |= {"delta_loss_same": -9.0}
    rows[3] |= {"diverged": True}
    found = judged(STEP, rows, [42, 43])
    assert (found.eta, found.value, found.agreement) == (1e-3, pytest.approx(-0.1), Agreement.AGREES)
    rows[0] |= {"delta_loss_same": None, "diverged": True}
    found = judged(STEP, rows, [42, 43])
    assert (found.status, found.note, found.agreement) == (Status.DIVERGED, "diverged at every step size", None)


def test_the_best_of_some_step_sizes_is_not_the_best() -> None:
    found = judged(STEP, [step(-0.1, 1e-3)], [42], absent=Status.FAILED)
    assert (found.status, found.value, found.eta) == (Status.FAILED, None, None)


def order(rows: list[Row], seeds: list[int], **figures: float | None) -> dict[tuple[str, str], Agreement]:
    found = compare(replace(SHIFT, figures=figures), rows, seeds, [])
    return {(pair.higher, pair.lower): pair.agreement for pair in found.order}


def test_the_order_of_each_pair() -> None:
    ours = {"dfa": 0.1, "vec": 0.3, "oracle_bp": 0.2, "scalar_cb": 9.0}
    rows = [row(value, seed, method) for method, value in ours.items() for seed in (42, 43)]
    assert order(rows, [42, 43], dfa=0.0, vec=0.1, oracle_bp=0.2, scalar_cb=None) == {
        ("vec", "dfa"): Agreement.AGREES,
        ("oracle_bp", "dfa"): Agreement.AGREES,
        ("oracle_bp", "vec"): Agreement.DISAGREES,
    }


def test_the_order_is_judged_only_where_both_figures_exist() -> None:
    rows = [row(0.1, method="dfa"), row(None, method="vec", diverged=True)]
    assert order(rows, [42], dfa=0.0, vec=0.1, oracle_bp=0.2) == {}
    assert order([row(0.1, method="dfa"), row(0.2)], [42], dfa=0.1, vec=0.1) == {}, "a published tie claims nothing"


def test_the_order_over_seeds_is_of_the_differences() -> None:
    """Seeds that differ much among each other leave the order clear where it is the same at each."""
    rows = [row(10.0 * seed, seed, "dfa") for seed in (42, 43, 44)]
    rows += [row(10.0 * seed + 1 + 0.01 * seed, seed, "vec") for seed in (42, 43, 44)]
    assert order(rows, [42, 43, 44], dfa=0.0, vec=1.0) == {("vec", "dfa"): Agreement.AGREES}
    rows[0] |= {"delta_loss": 430.0}
    assert order(rows, [42, 43, 44], dfa=0.0, vec=1.0) == {("vec", "dfa"): Agreement.UNCLEAR}


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4), st.lists(st.floats(-1, 1), min_size=4, max_size=4))
def test_order_and_signs_against_the_obvious(ours: list[float], published: list[float]) -> None:
    column = replace(SHIFT, figures=dict(zip(METHODS, published, strict=True)))
    rows = [row(value, seed, name) for name, value in zip(METHODS, ours, strict=True) for seed in (42, 43)]
    found = compare(column, rows, [42, 43], [])
    agree = sum(
        (ours[i] - ours[j]) * (published[i] - published[j]) > 0
        or (ours[i] > ours[j] and published[i] > published[j])  # where the product underflows
        or (ours[i] < ours[j] and published[i] < published[j])
        for i, j in itertools.combinations(range(4), 2)
    )
    assert sum(pair.agreement is Agreement.AGREES for pair in found.order) == agree
    for one, value, said in zip(found.figures, ours, published, strict=True):
        same = (value > 0) == (said > 0)
        assert one.agreement == ("unclear" if value == 0 else "agrees" if same else "disagrees")
