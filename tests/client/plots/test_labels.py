"""Labels and colours of values."""

from __future__ import annotations

from typing import Any

from charting import PARAMETERS, chart, encodings, grid, spec, view

from creditgrid.client.plots.charts import charts
from creditgrid.client.plots.labels import Values
from creditgrid.client.plots.scales import COLOURS


def test_colours_are_a_methods_own() -> None:
    def colours(rows: list[dict[str, Any]]) -> dict[str, str]:
        found = next(
            e["color"]["scale"] for e in encodings(spec(charts(view(chart()), rows)["change"])) if "color" in e
        )
        return dict(zip(found["domain"], found["range"], strict=True))

    assert colours(grid(["dfa", "vec", "oracle"])) == dict(zip(["oracle", "vec", "dfa"], COLOURS, strict=False))
    assert colours(grid(["dfa"])) == {"dfa": COLOURS[2]}


def test_labels_hold_the_values_that_distinguish() -> None:
    methods = Values.of(
        ("method", "source"), [("dfa", "e"), ("vec", "e"), ("vec", "delta"), ("oracle", "e")], PARAMETERS
    )
    assert list(methods.labels) == ["oracle", "vec, e", "vec, delta", "dfa"]
    assert methods.title == "method, source"
    assert len(set(methods.slots)) == 4
    assert [methods.slots[i] for i in (0, 1, 3)] == [0, 1, 2]
    rules = Values.of(("rule", "kappa"), [("shift", 0.1), ("shift", 1.0), ("inner", None)], {})
    assert list(rules.labels) == ["inner", "shift, kappa = 0.1", "shift, kappa = 1"]
    plain = Values.of(("method", "source"), [("dfa", "e"), ("oracle", "e")], PARAMETERS)
    assert (list(plain.labels), plain.title) == (["oracle", "dfa"], "method")


def test_numbers_that_look_alike_have_different_labels() -> None:
    assert len(set(Values.of(("eta",), [(0.12345678,), (0.12345679,)], {}).labels)) == 2
