"""The work: numbered specs, the same in every run; real science, many small calls, and pairs that share tasks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

RETRY = {"max": 50, "backoff_s": 0.1}
"""Kills of workers count as failed attempts, and a run makes many."""
DIGITS = {"dataset": "digits", "d_hidden": 64, "num_blocks": 3, "batch_size": 64, "train_epochs": 40, "fit_epochs": 2}


@dataclass(frozen=True, slots=True)
class Spec:
    """A sweep to submit: its family, and its document."""

    family: str
    document: dict[str, Any]


class Work:
    """Specs by family, each family's numbered from 0."""

    def __init__(self) -> None:
        self._numbers: Counter[str] = Counter()

    def next(self, family: str) -> list[Spec]:
        """Specs to submit at the same moment: one, or two that share tasks."""
        number = self._numbers[family]
        self._numbers[family] += 1
        if family == "pair":
            return pair(number)
        return [{"science": science, "slow": slow, "noop": noop}[family](number)]


def science(number: int) -> Spec:
    """Trainings that take seconds, their fits, and a line search; every second time a credit recovery instead."""
    seeds = [1000 + number, 2000 + number]
    rule = "dfa" if number % 2 else "bp"
    fixed = {**DIGITS, "train_rule": rule}
    if number % 2:
        axes: dict[str, Any] = {"seed": seeds[:1], "method": ["oracle_bp", "dfa", "vec"]}
        return Spec("science", document(f"credits {number}", "credit_recovery", fixed, axes))
    axes = {
        "seed": seeds,
        "method": ["oracle_bp", "vec", "scalar_cb", "dfa"],
        "norm_mode": ["raw", "norm"],
        "eta": {"logspace": [1e-4, 1e-2, 3]},
    }
    return Spec("science", document(f"steps {number}", "linesearch", fixed, axes))


def slow(number: int, start: int = 0, cells: int = 120) -> Spec:
    """Cells that take time but no processor, on stages that each write an artifact; 12 cells a call."""
    numbers = [10_000 * number + start + i for i in range(cells)]
    axes = {
        "x": numbers,
        "stage": [x // 24 for x in numbers],
        "group": [x // 12 for x in numbers],
    }
    fixed = {"scale": 1.0 + number, "pause_ms": 40.0, "stage_pause_ms": 80.0}
    return Spec("slow", document(f"slow {number}+{start}", "chaos_slow", fixed, axes, together=[[*axes]]))


def noop(number: int) -> Spec:
    """Many cells in many calls that take no time."""
    numbers = [1_000_000 + 1_000 * number + i for i in range(300)]
    axes = {"x": numbers, "group": [x // 10 for x in numbers]}
    fixed = {"behaviour": "ok", "base": "ok"}
    return Spec("noop", document(f"noop {number}", "noop", fixed, axes, together=[[*axes]]))


def pair(number: int) -> list[Spec]:
    """Two sweeps that share half of their tasks: of slow cells, and every third time of trainings."""
    if number % 3 == 2:
        fixed = {**DIGITS, "train_epochs": 20, "method": "vec"}
        seeds = [3000 + number, 4000 + number]
        return [
            Spec(
                "pair", document(f"shared steps {number}a", "linesearch", fixed, {"seed": seeds, "eta": [1e-3, 1e-2]})
            ),
            Spec("pair", document(f"shared credits {number}b", "credit_recovery", fixed, {"seed": seeds})),
        ]
    first, second = slow(5_000 + number, 0, 48), slow(5_000 + number, 24, 48)
    return [Spec("pair", {**first.document}), Spec("pair", {**second.document})]


def document(
    name: str, experiment: str, fixed: dict[str, Any], axes: dict[str, Any], together: list[list[str]] | None = None
) -> dict[str, Any]:
    """The spec as it is submitted."""
    return {
        "name": name,
        "experiment": experiment,
        "fixed": fixed,
        "axes": axes,
        "zip": together or [],
        "retry": RETRY,
    }
