"""The report as a person reads it: our figures beside the published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from creditgrid.client.display.quantities import number
from creditgrid.client.display.tables import headed_table, state_text
from creditgrid.client.reproduce.comparison import Agreement, Comparison, Figure, Status
from creditgrid.client.reproduce.published import Claim
from creditgrid.client.reproduce.report import Report, SweepReport
from creditgrid.core.states import RESULT

STYLES: Mapping[Agreement | None, str] = {
    Agreement.AGREES: "green",
    Agreement.DISAGREES: "red",
    Agreement.UNCLEAR: "yellow",
    None: "dim",
}


def report_view(report: Report) -> RenderableType:
    """The heading; for each experiment a table, the order of its methods and its failures; the counts."""
    parts: list[RenderableType] = [Text(line, style="bold") for line in report.heading]
    for experiment in dict.fromkeys(sweep.experiment for sweep in report.sweeps):
        sweeps = [sweep for sweep in report.sweeps if sweep.experiment == experiment]
        tables = [table for table in report.comparisons if table.experiment == experiment]
        parts += [Text(), _table(sweeps, tables), *_orders(tables)]
        parts += [line for sweep in sweeps for line in _failures(sweep)]
    parts.append(Text())
    for name, counts in report.counts().items():
        text = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        parts += [Text(f"{name}: {text}", style="bold")] if text else []
    return Group(*parts, *_verdict(report))


def _verdict(report: Report) -> list[Text]:
    """Why the command fails, or that nothing is contradicted."""
    lines = [Text(f"contradicted: {line}", style=STYLES[Agreement.DISAGREES]) for line in report.contradictions()]
    if lines:
        lines.append(
            Text("Each interval alone is one of 95 %, so of many comparisons a few are contradicted by chance.")
        )
    lines += [Text(f"missing: {line}", style="red") for line in report.missing()]
    return lines or [Text("no published sign or order is contradicted")]


def _table(sweeps: Sequence[SweepReport], tables: Sequence[Comparison]) -> Table:
    title = Text.assemble((sweeps[0].experiment, "bold"))
    for sweep in sweeps:
        title.append_text(Text.assemble(f"  {sweep.id}  ", state_text(sweep.state)))
    table = headed_table(title, "figure", "method", right=("ours", "published"))
    table.add_column("agreement", overflow="fold")
    for comparison in tables:
        claim = comparison.claim
        for index, figure in enumerate(comparison.figures):
            values = (_ours(claim, figure), _number(claim, figure.published), _agreement(claim, figure))
            table.add_row(comparison.title if index == 0 else "", figure.method, *values)
        table.add_section()
    return table


def _number(claim: Claim, value: float | None) -> str:
    """With its sign if that is claimed."""
    return f"{value:+.4g}" if value is not None and claim is Claim.SIGNS_AND_ORDER else number(value)


def _ours(claim: Claim, figure: Figure) -> Text:
    if figure.value is None:
        return Text(figure.note, style="red")
    interval = "" if figure.ci95 is None else f" ± {figure.ci95:.2g}"
    seeds = f" (n {figure.n})" if figure.n > 1 else ""
    return Text(f"{_number(claim, figure.value)}{interval}{seeds}")


def _agreement(claim: Claim, figure: Figure) -> Text:
    if figure.agreement is None:
        return Text(_not_judged(claim, figure), style=STYLES[None])
    what = "step size" if claim is Claim.STEP_SIZE else "sign"
    at = "" if figure.eta is None or claim is Claim.STEP_SIZE else f" (at η {number(figure.eta)})"
    why = ": one seed" if figure.agreement is Agreement.UNCLEAR and figure.n == 1 else ""
    return Text.assemble((f"{what} {figure.agreement}{why}", STYLES[figure.agreement]), at)


def _not_judged(claim: Claim, figure: Figure) -> str:
    if figure.status is not Status.COMPUTED:
        return "not judged: no figure of ours"
    if figure.published is None:
        return "not judged: no published figure"
    assert claim is Claim.NONE
    return "not judged: neither sign nor order is claimed"


def _orders(tables: Sequence[Comparison]) -> list[Text]:
    """A line per column: how many pairs of methods agree with the published order, and which do not."""
    lines = []
    for table in tables:
        if table.claim is not Claim.SIGNS_AND_ORDER:
            continue
        if not table.order:
            lines.append(Text(f"order in {table.title}: not judged, fewer than two methods have both figures", "dim"))
            continue
        agree = sum(pair.agreement is Agreement.AGREES for pair in table.order)
        if all(pair.n == 1 for pair in table.order):
            same = sum(pair.difference > 0 for pair in table.order)
            text = f"order in {table.title}: unclear, one seed; {same} of {table.claimed_pairs} pairs are as published"
            lines.append(Text(text, STYLES[Agreement.UNCLEAR]))
            continue
        line = Text(f"order in {table.title}: {agree} of {table.claimed_pairs} pairs agree")
        for verdict, label in ((Agreement.DISAGREES, "published but not ours"), (Agreement.UNCLEAR, "unclear")):
            pairs = [f"{pair.higher} > {pair.lower}" for pair in table.order if pair.agreement is verdict]
            if pairs:
                line.append(f"; {label}: {', '.join(pairs)}", STYLES[verdict])
        if left := table.claimed_pairs - len(table.order):
            line.append(f"; not judged: {left}", STYLES[None])
        lines.append(line)
    return lines


def _failures(sweep: SweepReport) -> list[Text]:
    if sweep.state in RESULT:
        return []
    head = f"sweep {sweep.id} {sweep.state}; for its tracebacks: creditgrid logs {sweep.id}"
    return [Text(head, style="red"), *(Text(f"  {cause}", style="red") for cause in sweep.failures)]
