"""Scales and their ticks."""

from __future__ import annotations

from creditgrid.client.plots.scales import linear_below, powers, scaled


def test_scales_hold_their_data() -> None:
    values = [-0.4, 3e-5, 0.002, -1e-4]
    for kind in ("linear", "symlog"):
        found = scaled(kind, values)
        assert found.low < min(values) < max(values) < found.high
    ticks = scaled("symlog", values).ticks
    assert ticks is not None
    assert 0.0 in ticks
    assert ticks == sorted(ticks)
    assert powers(3e-5, 0.2) == [1e-4, 1e-3, 1e-2, 1e-1]
    assert len(powers(1e-30, 1.0)) <= 7
    assert linear_below([0.0]) == 1.0
    assert 1e-5 <= linear_below(values) <= 0.04
