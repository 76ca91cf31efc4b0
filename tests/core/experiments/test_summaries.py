"""Lines of a summary: what is averaged, what has lines of its own, and statistics against NumPy and printed tables."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditgrid.core.experiment import Params
from creditgrid.core.experiments.summaries import grouped, over_seeds, setting_prefix, statistics, varied

T975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}  # Student's t by the number of values


class ToyParams(Params):
    seed: int = 0
    probe_seed: int | None = None
    method: Literal["u", "v"] = "u"
    eta: float | None = None
    depth: int = 1


def row(**values: Any) -> dict[str, Any]:
    return {**ToyParams().model_dump(), "loss": 0.0, "diverged": False, **values}


# -- what varies ---------------------------------------------------------------------------------------------------


def test_what_varies_is_named_except_the_seeds_and_those_given() -> None:
    rows = [
        row(seed=1, probe_seed=1, method="u", eta=None, depth=1),
        row(seed=2, probe_seed=2, method="v", eta=0.1, depth=1),
    ]
    assert varied(ToyParams, rows) == ["method", "eta"]
    assert varied(ToyParams, rows, besides=["method"]) == ["eta"]
    assert varied(ToyParams, rows[:1]) == []
    assert varied(ToyParams, []) == []


def test_null_is_a_value_among_others() -> None:
    assert varied(ToyParams, [row(eta=None), row(eta=None)]) == []
    assert varied(ToyParams, [row(eta=None), row(eta=0.0)]) == ["eta"]


# -- groups --------------------------------------------------------------------------------------------------------


def test_groups_come_in_the_order_of_their_values_and_null_first() -> None:
    rows = [row(method=m, eta=e) for m, e in (("v", 1.0), ("u", 2.0), ("u", None), ("v", -1.0), ("u", 10.0))]
    assert list(grouped(rows, ["method", "eta"])) == [
        ("u", None),
        ("u", 2.0),
        ("u", 10.0),
        ("v", -1.0),
        ("v", 1.0),
    ]
    assert list(grouped(rows, [])) == [()]
    assert grouped([], ["eta"]) == {}


@given(st.lists(st.tuples(st.sampled_from(["u", "v"]), st.one_of(st.none(), st.integers(-2, 2)), st.integers(0, 3))))
def test_every_row_is_in_the_group_of_its_values_in_its_order(values: list[tuple[str, int | None, int]]) -> None:
    rows = [row(method=m, eta=e, seed=s, place=place) for place, (m, e, s) in enumerate(values)]
    groups = grouped(rows, ["method", "eta"])
    assert sorted(r["place"] for some in groups.values() for r in some) == list(range(len(rows)))
    for (method, eta), some in groups.items():
        assert {(r["method"], r["eta"]) for r in some} == {(method, eta)}
        assert [r["place"] for r in some] == sorted(r["place"] for r in some)


# -- statistics ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", sorted(T975))
def test_statistics_over_seeds_against_numpy(n: int) -> None:
    values = np.random.default_rng(n).normal(3.0, 2.0, n)
    (line,) = over_seeds([row(seed=s, loss=v) for s, v in enumerate(values.tolist())], ["method"], ["loss"])
    assert (line["method"], line["n"], line["diverged"], line["loss_n"]) == ("u", n, 0, n)
    assert line["loss"] == pytest.approx(values.mean(), rel=1e-12)
    assert line["loss_std"] == pytest.approx(values.std(ddof=1), rel=1e-12)
    assert line["loss_ci95"] == pytest.approx(T975[n] * values.std(ddof=1) / math.sqrt(n), rel=3e-4)


def test_one_seed_has_a_mean_and_no_spread() -> None:
    (line,) = over_seeds([row(loss=0.5)], ["method"], ["loss"])
    assert line == {
        "method": "u",
        "n": 1,
        "diverged": 0,
        "loss": 0.5,
        "loss_std": None,
        "loss_ci95": None,
        "loss_n": 1,
    }


def test_rows_that_diverged_are_counted_and_left_out() -> None:
    rows = [row(seed=s, loss=v, diverged=d) for s, v, d in ((1, 1.0, False), (2, None, True), (3, 2.0, False))]
    rows.append(row(seed=4, loss=99.0, diverged=True))  # another column was not finite
    (line,) = over_seeds(rows, ["method"], ["loss"])
    assert (line["n"], line["diverged"], line["loss"], line["loss_n"]) == (2, 2, 1.5, 2)
    (none,) = over_seeds([row(loss=None, diverged=True)], ["method"], ["loss"])
    assert (none["n"], none["diverged"], none["loss"], none["loss_std"], none["loss_n"]) == (0, 1, None, None, 0)


def test_a_metric_that_some_rows_lack_rests_on_those_that_have_it() -> None:
    rows = [row(seed=s, loss=float(s), pur=p) for s, p in ((1, None), (2, 0.5), (3, 1.5))]
    line = statistics(rows, ["loss", "pur"])
    assert (line["loss"], line["loss_n"]) == (2.0, 3)
    assert (line["pur"], line["pur_n"]) == (1.0, 2)
    assert line["pur_std"] == pytest.approx(np.std([0.5, 1.5], ddof=1))


def test_lines_come_in_order_and_hold_what_they_are_of() -> None:
    rows = [row(method=m, eta=e, loss=e or -1.0) for m in ("v", "u") for e in (0.2, None, 0.1)]
    lines = over_seeds(rows, ["method", "eta"], ["loss"])
    assert [(line["method"], line["eta"], line["loss"]) for line in lines] == [
        (m, e, e or -1.0) for m in ("u", "v") for e in (None, 0.1, 0.2)
    ]


def test_the_setting_of_a_line_in_words() -> None:
    line = {"num_blocks": 4, "lr": 0.001, "eta": None}
    assert setting_prefix(line, ["num_blocks", "lr"]) == "num_blocks 4, lr 0.001: "
    assert setting_prefix(line, []) == ""


def test_probes_of_one_seed_are_averaged_before_the_seeds() -> None:
    """They are no independent runs: 2 seeds x 3 probes are 2 values, not 6."""
    losses = {1: [1.0, 2.0, 3.0], 2: [4.0, 4.0, 7.0]}
    rows = [row(seed=seed, probe_seed=n, loss=loss) for seed, some in losses.items() for n, loss in enumerate(some)]
    (line,) = over_seeds(rows, ["method"], ["loss"])
    assert (line["n"], line["loss_n"], line["loss"]) == (2, 2, 3.5)
    assert line["loss_std"] == pytest.approx(np.std([2.0, 5.0], ddof=1))
    assert line["loss_ci95"] == pytest.approx(T975[2] * np.std([2.0, 5.0], ddof=1) / math.sqrt(2), rel=1e-3)


def test_probes_alone_are_what_is_averaged_over() -> None:
    (line,) = over_seeds([row(probe_seed=n, loss=float(n)) for n in range(4)], ["method"], ["loss"])
    assert (line["n"], line["loss"]) == (4, 1.5)
