"""Comparing rows with the published figures: only computed figures are judged.

Our figure is a mean over all seeds; if a seed has no row or no finite number, the figure has a note instead. A sign, or
the order of two methods, agrees or disagrees where the 95 % interval (Student's t over the seeds) of the mean, or of
the mean difference by seed, leaves 0 out. It is unclear where the interval contains 0. One seed has no interval, so
with one seed everything is unclear. There is no tolerance.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import fmean
from typing import Any

from creditgrid.client.reproduce.published import Claim, PublishedColumn
from creditgrid.core.statistics import mean_std_ci

Row = Mapping[str, Any]


class Status(StrEnum):
    """Whether our figure was computed, and if not, why."""

    COMPUTED = "computed"
    DIVERGED = "diverged"
    """A number is not finite: at every step size, or for a seed."""
    UNDEFINED = "undefined"
    """The number does not exist, such as a correlation with a constant."""
    FAILED = "failed"
    """Rows are missing because the sweep failed."""
    CANCELLED = "cancelled"
    """Rows are missing because the sweep was cancelled."""
    MISSING = "missing"
    """Rows are missing for no known reason."""


ABSENT = (Status.FAILED, Status.CANCELLED, Status.MISSING)
"""Nothing was computed."""


class Agreement(StrEnum):
    """The result of a comparison."""

    AGREES = "agrees"
    DISAGREES = "disagrees"
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True)
class Figure:
    """Our figure of a method beside the published one.

    ``value`` is the mean over ``n`` seeds, with its 95 % half-width if n is 2 or more; ``eta`` is the chosen step size,
    if one was chosen. ``agreement`` is that of the sign (or of the step size), None if it was not judged.
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
    """Two methods in the published order, and whether our order agrees.

    ``difference`` is our mean of higher - lower over ``n`` seeds, with its 95 % half-width if n is 2 or more.
    """

    higher: str
    lower: str
    agreement: Agreement
    difference: float
    ci95: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """A published column with our figures beside it."""

    experiment: str
    title: str
    column: str
    where: Mapping[str, Any]
    claim: Claim
    figures: Sequence[Figure]
    order: Sequence[Pair]

    @property
    def claimed_pairs(self) -> int:
        """How many pairs of methods have a published order; ``order`` has those that could be judged."""
        if self.claim is not Claim.SIGNS_AND_ORDER:
            return 0
        published = [figure.published for figure in self.figures if figure.published is not None]
        return sum(one != other for one, other in itertools.combinations(published, 2))

    def contradictions(self) -> list[str]:
        """Each published sign and order that our interval contradicts, in a sentence with the numbers."""
        where = f"{self.experiment}, {self.title}"
        published = {figure.method: figure.published for figure in self.figures}
        signs = [
            f"{where}: published {one.method} {one.published:+.4g}, ours {_interval(one.value, one.ci95, one.n)}"
            for one in self.figures
            if one.agreement is Agreement.DISAGREES and self.claim is Claim.SIGNS_AND_ORDER and one.value is not None
        ]
        orders = [
            f"{where}: published {pair.higher} > {pair.lower} "
            f"({published[pair.higher]:+.4g} > {published[pair.lower]:+.4g}), "
            f"our difference {_interval(pair.difference, pair.ci95, pair.n)}"
            for pair in self.order
            if pair.agreement is Agreement.DISAGREES
        ]
        return signs + orders

    def missing(self) -> list[str]:
        """Each figure for which nothing was computed, in a sentence."""
        absent = [figure for figure in self.figures if figure.status in ABSENT]
        return [f"{self.experiment}, {self.title}: {figure.method}: {figure.note}" for figure in absent]


@dataclass(frozen=True, slots=True)
class _Ours:
    """Our numbers of one method by seed, or why there are none."""

    status: Status
    by_seed: Mapping[int, float] = field(default_factory=dict)
    eta: float | None = None
    note: str = ""


def compare(
    column: PublishedColumn,
    rows: Sequence[Row],
    seeds: Sequence[int],
    etas: Sequence[float],
    absent: Status = Status.MISSING,
) -> Comparison:
    """Compare ``rows`` with a published column.

    Args:
        rows: of a sweep of the column's experiment; rows that do not belong to the column are ignored.
        seeds: a figure is the mean over these.
        etas: the step sizes among which the best is chosen, for a column ``at_best_eta``.
        absent: the status of figures without rows.
    """
    chosen = [row for row in rows if belongs_to(column, row)]
    ours = {
        method: _ours(column, [row for row in chosen if row["method"] == method], seeds, etas, absent)
        for method in column.figures
    }
    figures = [_figure(column.claim, method, published, ours[method]) for method, published in column.figures.items()]
    order = _order(column.figures, ours) if column.claim is Claim.SIGNS_AND_ORDER else []
    return Comparison(column.experiment, column.title, column.column, column.where, column.claim, figures, order)


def belongs_to(column: PublishedColumn, row: Row) -> bool:
    """Whether a row has what the column shows: its experiment and values, at the end of training."""
    at_the_end = row["checkpoint_epoch"] in (None, row["train_epochs"])
    return (
        row["experiment"] == column.experiment
        and at_the_end
        and all(row[name] == value for name, value in column.where.items())
    )


def _ours(
    column: PublishedColumn, rows: Sequence[Row], seeds: Sequence[int], etas: Sequence[float], absent: Status
) -> _Ours:
    candidates: dict[float | None, dict[int, Row]] = (
        {eta: {row["seed"]: row for row in rows if row["eta"] == eta} for eta in etas}
        if column.at_best_eta
        else {None: {row["seed"]: row for row in rows}}
    )
    without = {seed for by_seed in candidates.values() for seed in seeds if seed not in by_seed}
    if without:  # the best of the present step sizes may not be the best of all
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
        return fmean(candidates[eta][seed]["delta_loss_same"] for seed in seeds), eta or 0.0

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
    """All pairs of methods for which both the published figures and ours exist."""
    known = {name: figure for name, figure in published.items() if figure is not None}
    judged = [name for name in known if ours[name].status is Status.COMPUTED]
    pairs = []
    for one, other in itertools.combinations(judged, 2):
        if known[one] == known[other]:
            continue
        higher, lower = (one, other) if known[one] > known[other] else (other, one)
        above, below = ours[higher].by_seed, ours[lower].by_seed
        differences = [above[seed] - below[seed] for seed in above]
        n, mean, _, ci95 = mean_std_ci(differences)
        pairs.append(Pair(higher, lower, _same_sign(differences, 1.0), mean, ci95, n))
    return pairs


def _same_sign(values: Sequence[float], published: float) -> Agreement:
    _, mean, _, ci95 = mean_std_ci(values)
    if ci95 is None or abs(mean) <= ci95:
        return Agreement.UNCLEAR
    return Agreement.AGREES if (mean > 0) == (published > 0) else Agreement.DISAGREES


def _interval(value: float | None, ci95: float | None, n: int) -> str:
    return f"{value:+.4g} ± {ci95:.2g} (n {n})"
