"""Holding rows against the published figures: only what was computed is judged.

A figure of ours is a mean over all the seeds that were asked for: where one has no row, or no finite number, the figure
says so instead. A sign, and the order of two methods, agree, disagree, or are unclear: where the 95 % interval of the
mean (of the difference, seed by seed) spans 0, or a single seed's number is 0. No tolerance is allowed for.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from creditgrid.client.reproduce.published import Claim, Column
from creditgrid.core.statistics import mean_std_ci

Row = Mapping[str, Any]


class Status(StrEnum):
    """What became of a figure of ours."""

    COMPUTED = "computed"
    DIVERGED = "diverged"
    """A number is not finite: at every step size, or at a seed."""
    UNDEFINED = "undefined"
    """There is no such number, such as a correlation with something that does not vary."""
    FAILED = "failed"
    """Rows are missing, of a sweep that failed."""
    CANCELLED = "cancelled"
    """Rows are missing, of a sweep that was cancelled."""
    MISSING = "missing"
    """Rows are missing, and nothing is known to have failed."""


ABSENT = (Status.FAILED, Status.CANCELLED, Status.MISSING)
"""Nothing was computed."""


class Agreement(StrEnum):
    """What a comparison found."""

    AGREES = "agrees"
    DISAGREES = "disagrees"
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True)
class Figure:
    """A method's figure, ours beside the published one.

    ``value`` is the mean over ``n`` seeds, with its 95 % half-width where n is 2 or more; ``eta`` the step size it was
    taken at, where that was chosen. ``agreement`` is of the sign (or of the step size), None where it was not judged.
    """

    method: str
    published: float | None
    status: Status
    value: float | None = None
    ci95: float | None = None
    n: int = 0
    eta: float | None = None
    note: str = ""
    agreement: Agreement | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two methods in the published order, and whether ours is the same."""

    higher: str
    lower: str
    agreement: Agreement


@dataclass(frozen=True, slots=True)
class Comparison:
    """One published column, with ours beside it."""

    experiment: str
    title: str
    column: str
    where: Mapping[str, Any]
    claim: Claim
    figures: Sequence[Figure]
    order: Sequence[Pair]

    @property
    def claimed_pairs(self) -> int:
        """How many pairs of methods the published figures order; ``order`` holds those that could be judged."""
        if self.claim is not Claim.SIGNS_AND_ORDER:
            return 0
        published = [figure.published for figure in self.figures if figure.published is not None]
        return sum(one != other for one, other in itertools.combinations(published, 2))


@dataclass(frozen=True, slots=True)
class _Ours:
    """One method's numbers by seed, or why there are none."""

    status: Status
    by_seed: Mapping[int, float] = field(default_factory=dict)
    eta: float | None = None
    note: str = ""


def compare(
    column: Column, rows: Sequence[Row], seeds: Sequence[int], etas: Sequence[float], absent: Status = Status.MISSING
) -> Comparison:
    """Hold ``rows`` against a published column.

    Args:
        column: of the published tables.
        rows: of a sweep of its experiment; others are passed over.
        seeds: over which a figure is the mean.
        etas: the step sizes among which the best one is chosen, if the column asks for that.
        absent: what rows that are not there stand for.
    """
    chosen = [row for row in rows if _stands_beside(column, row)]
    ours = {
        method: _ours(column, [row for row in chosen if row["method"] == method], seeds, etas, absent)
        for method in column.figures
    }
    figures = [_figure(column.claim, method, published, ours[method]) for method, published in column.figures.items()]
    order = _order(column.figures, ours) if column.claim is Claim.SIGNS_AND_ORDER else []
    return Comparison(column.experiment, column.title, column.column, column.where, column.claim, figures, order)


def _stands_beside(column: Column, row: Row) -> bool:
    at_the_end = row["checkpoint_epoch"] in (None, row["train_epochs"])
    return (
        row["experiment"] == column.experiment
        and at_the_end
        and all(row[name] == value for name, value in column.where.items())
    )


def _ours(column: Column, rows: Sequence[Row], seeds: Sequence[int], etas: Sequence[float], absent: Status) -> _Ours:
    candidates: dict[float | None, dict[int, Row]] = (
        {eta: {row["seed"]: row for row in rows if row["eta"] == eta} for eta in etas}
        if column.at_best_eta
        else {None: {row["seed"]: row for row in rows}}
    )
    without = {seed for by_seed in candidates.values() for seed in seeds if seed not in by_seed}
    if without:  # the best of the step sizes that are there might not be the best
        return _Ours(absent, note=_of_seeds("no result", len(without), len(seeds)))
    if column.at_best_eta:
        candidates = {
            eta: by_seed
            for eta, by_seed in candidates.items()
            if not any(by_seed[seed]["diverged"] or by_seed[seed]["delta_loss_same"] is None for seed in seeds)
        }
        if not candidates:
            return _Ours(Status.DIVERGED, note="diverged at every step size")

    def same_batch(eta: float | None) -> tuple[float, float]:
        return statistics.fmean(candidates[eta][seed]["delta_loss_same"] for seed in seeds), eta or 0.0

    eta = min(candidates, key=same_batch) if column.at_best_eta else None
    values = {seed: candidates[eta][seed][column.column] for seed in seeds}
    lost = [seed for seed, value in values.items() if value is None]
    if lost:
        diverged = any(candidates[eta][seed]["diverged"] for seed in lost)
        status = Status.DIVERGED if diverged else Status.UNDEFINED
        return _Ours(status, eta=eta, note=_of_seeds(status.value, len(lost), len(seeds)))
    return _Ours(Status.COMPUTED, values, eta)


def _of_seeds(what: str, count: int, seeds: int) -> str:
    return what if seeds == 1 else f"{what} at {count} of {seeds} seeds"


def _figure(claim: Claim, method: str, published: float | None, ours: _Ours) -> Figure:
    if ours.status is not Status.COMPUTED:
        return Figure(method, published, ours.status, eta=ours.eta, note=ours.note)
    values = list(ours.by_seed.values())
    if claim is Claim.STEP_SIZE:  # chosen once for all seeds
        value, ci95 = values[0], None
    else:
        _, value, _, ci95 = mean_std_ci(values)
    agreement = None
    if published is not None and claim is Claim.STEP_SIZE:
        agreement = Agreement.AGREES if value == published else Agreement.DISAGREES
    elif published is not None and claim is Claim.SIGNS_AND_ORDER:
        agreement = _same_sign(values, published)
    return Figure(method, published, ours.status, value, ci95, len(values), ours.eta, agreement=agreement)


def _order(published: Mapping[str, float | None], ours: Mapping[str, _Ours]) -> list[Pair]:
    """Every two methods of which both the published figures and ours exist."""
    known = {name: figure for name, figure in published.items() if figure is not None}
    judged = [name for name in known if ours[name].status is Status.COMPUTED]
    pairs = []
    for one, other in itertools.combinations(judged, 2):
        if known[one] == known[other]:
            continue
        higher, lower = (one, other) if known[one] > known[other] else (other, one)
        above, below = ours[higher].by_seed, ours[lower].by_seed
        pairs.append(Pair(higher, lower, _same_sign([above[seed] - below[seed] for seed in above], 1.0)))
    return pairs


def _same_sign(values: Sequence[float], published: float) -> Agreement:
    _, mean, _, ci95 = mean_std_ci(values)
    if abs(mean) <= (ci95 or 0.0):
        return Agreement.UNCLEAR
    return Agreement.AGREES if (mean > 0) == (published > 0) else Agreement.DISAGREES
