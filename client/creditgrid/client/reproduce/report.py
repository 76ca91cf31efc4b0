"""The report that compares our figures with the published ones: of runs for it, or of sweeps that exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from creditgrid.client.errors import BadSetting
from creditgrid.client.reproduce.comparison import Agreement, Comparison, Status, compare
from creditgrid.client.reproduce.published import DATASET, EXPERIMENTS, FIT_EPOCHS, PUBLISHED, SEED, TRAIN_EPOCHS, Claim
from creditgrid.client.reproduce.runs import Choice, Settings, example
from creditgrid.client.reproduce.selection import seeds_text, select
from creditgrid.core.states import RESULT, State

if TYPE_CHECKING:
    from creditgrid.client.sweep import Sweep

_ABSENT = {State.FAILED: Status.FAILED, State.CANCELLED: Status.CANCELLED}


@dataclass(frozen=True, slots=True)
class SweepReport:
    """A sweep of the report; ``failures`` are the causes of its failures, one per line."""

    experiment: str
    id: str
    state: State
    cells: int
    failures: Sequence[str]


@dataclass(frozen=True, slots=True)
class Report:
    """Our figures beside the published ones; ``heading`` says what was run, and whether to expect agreement.

    ``whole_sweeps``: the report also needs the cells that it does not show.
    """

    heading: Sequence[str]
    sweeps: Sequence[SweepReport]
    comparisons: Sequence[Comparison]
    whole_sweeps: bool = True

    @property
    def complete(self) -> bool:
        """Whether everything was computed; figures may disagree."""
        whole = not self.whole_sweeps or all(sweep.state in RESULT for sweep in self.sweeps)
        return whole and not self.missing()

    @property
    def passed(self) -> bool:
        """Whether everything was computed, and no interval of ours contradicts a published sign or order."""
        return self.complete and not self.contradictions()

    def contradictions(self) -> list[str]:
        """Each published sign and order that is contradicted beyond our interval, with the numbers."""
        return [line for table in self.comparisons for line in table.contradictions()]

    def missing(self) -> list[str]:
        """Each figure that was not computed."""
        return [line for table in self.comparisons for line in table.missing()]

    def counts(self) -> dict[str, dict[str, int]]:
        """How many signs, orders of two methods and step sizes agree, disagree, are unclear, or were not judged."""
        figures = {
            name: [
                figure.agreement
                for table in self.comparisons
                if table.claim is claim
                for figure in table.figures
                if figure.published is not None
            ]
            for name, claim in (("signs", Claim.SIGNS_AND_ORDER), ("step sizes", Claim.STEP_SIZE))
        }
        # `order` lacks the pairs in which a method has no figure of ours.
        orders: list[Agreement | None] = [pair.agreement for table in self.comparisons for pair in table.order]
        orders += [None] * (sum(table.claimed_pairs for table in self.comparisons) - len(orders))
        named = {"signs": figures["signs"], "orders": orders, "step sizes": figures["step sizes"]}
        return {
            name: {kind.value: found.count(kind) for kind in Agreement} | {"not judged": found.count(None)}
            for name, found in named.items()
        }

    def as_json(self) -> dict[str, Any]:
        """The whole report as plain JSON values."""
        computed = {"counts": self.counts(), "complete": self.complete, "passed": self.passed}
        shown = {name: value for name, value in asdict(self).items() if name != "whole_sweeps"}
        return {**shown, **computed, "contradictions": self.contradictions(), "missing": self.missing()}


def report(settings: Settings, sweeps: Mapping[str, Sweep]) -> Report:
    """Compare the rows of the finished sweeps with the published figures."""
    rows = {experiment: sweep.results().to_pylist() for experiment, sweep in sweeps.items()}
    etas = example("linesearch")["axes"]["eta"]
    comparisons = [
        compare(
            column,
            rows[column.experiment],
            settings.seed_list,
            etas,
            _ABSENT.get(sweeps[column.experiment].state, Status.MISSING),
        )
        for column in PUBLISHED
        if column.experiment in sweeps
    ]
    return Report(
        _heading(settings), [_sweep_report(experiment, sweep) for experiment, sweep in sweeps.items()], comparisons
    )


def report_of(sweeps: Sequence[Sweep], choice: Choice, only: Sequence[str] = ()) -> Report:
    """Compare rows of sweeps that exist; a row is taken from whichever has it.

    Args:
        only: experiments to compare; the default is every one that a sweep has.

    Raises:
        BadSetting: no sweep is of an experiment with published figures, or the rows do not say which are meant.
    """
    wanted = [sweep for sweep in sweeps if sweep.view.experiment in (only or EXPERIMENTS)]
    if not wanted:
        given = ", ".join(f"{sweep.id} is of {sweep.view.experiment}" for sweep in sweeps)
        raise BadSetting(f"no sweep is of {' or '.join(only or EXPERIMENTS)}: {given}")
    lines: list[str] = []
    comparisons: list[Comparison] = []
    for experiment in EXPERIMENTS:
        of_it = [sweep for sweep in wanted if sweep.view.experiment == experiment]
        if of_it:
            rows = {(row["cell"], row.get("layer")): row for sweep in of_it for row in sweep.results().to_pylist()}
            found = select(experiment, rows.values(), choice)
            lines += [f"ours: {line}" for line in found.conditions]
            comparisons += [
                compare(column, found.rows, found.seeds, found.etas)
                for column in PUBLISHED
                if column.experiment == experiment
            ]
    left_out = [name for name in EXPERIMENTS if name not in {sweep.view.experiment for sweep in wanted}]
    lines.append(_published_heading())
    lines += [f"not compared: {', '.join(left_out)}"] if left_out else []
    return Report(lines, [_sweep_report(s.view.experiment, s) for s in wanted], comparisons, whole_sweeps=False)


def _heading(settings: Settings) -> list[str]:
    fits = " and ".join(f"{epochs:,} for {method}" for method, epochs in settings.scaled_fit_epochs.items())
    ran = seeds_text(settings.seed_list)
    lines = [
        f"ours: {settings.dataset}, {settings.epochs:,} epochs of training, of fitting {fits}; {ran}",
        _published_heading(),
    ]
    if settings.scaled_down:
        published = f"the published figures are of {TRAIN_EPOCHS} epochs and one seed"
        lines.append(f"Scaled down: {published}, so disagreement is expected.")
    return lines


def _published_heading() -> str:
    fits = " and ".join(f"{epochs} for {method}" for method, epochs in FIT_EPOCHS.items())
    return f"published: {DATASET}, {TRAIN_EPOCHS} epochs of training, of fitting {fits}; seed {SEED}"


def _sweep_report(experiment: str, sweep: Sweep) -> SweepReport:
    causes = [] if sweep.state in RESULT else sweep.failures()
    lines = [f"{failure.kind}: {failure.cause} ({failure.count:,} failed)" for failure in causes]
    return SweepReport(experiment, sweep.id, sweep.state, sweep.view.cells, lines)
