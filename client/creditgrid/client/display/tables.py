"""Tables of the wire models, for a person."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from creditgrid.client.display.quantities import duration, moment, number, size
from creditgrid.client.display.untrusted_text import harmless
from creditgrid.core.rows import RESERVED
from creditgrid.core.states import State

if TYPE_CHECKING:
    from creditgrid.client.result import Result
    from creditgrid.core.wire import (
        AuditView,
        CodeView,
        ExperimentView,
        FailureView,
        PlanKind,
        PlanView,
        RetentionView,
        SummaryView,
        SweepView,
        TaskDocument,
        TokenView,
    )

STYLES: Mapping[State, str] = {
    State.SUCCEEDED: "green",
    State.CACHED: "cyan",
    State.RUNNING: "yellow",
    State.QUEUED: "blue",
    State.PENDING: "bright_black",
    State.FAILED: "red",
    State.CANCELLED: "magenta",
    State.SKIPPED: "magenta",
}
"""The colour of each state, in the order in which the states are shown."""
LOG_LINES = 10
"""At most this many lines of a failed task's output are shown without its traceback."""
MAX_ROWS = 100
"""At most this many rows of a query are shown; files have all."""


def finished(counts: Mapping[State, int]) -> int:
    """How many of these cells or tasks are finished."""
    return sum(n for state, n in counts.items() if state.finished)


def state_text(state: State, paused: bool = False) -> Text:
    """A state, and whether an unfinished sweep is paused."""
    return Text.assemble((state.value, STYLES[state]), (" (paused)", "yellow") if paused and not state.finished else "")


def counts_text(counts: Mapping[State, int]) -> Text:
    """``cached 84 · succeeded 126``, each in its colour, without zeros."""
    parts = [Text(f"{state} {counts[state]:,}", style=style) for state, style in STYLES.items() if counts.get(state)]
    return Text(" · ").join(parts)


def plan_table(plan: PlanView) -> RenderableType:
    """One line for each kind of task, then the cells; below the table, why the new tasks are not cached."""
    columns = ("total", "cached", "shared", "new", "unneeded", "calls")
    title = Text.assemble((plan.name, "bold"), f"  {plan.experiment}")
    table = headed_table(title, "kind", right=(*columns, "time", "size"))
    for name, kind in plan.tasks.items():
        table.add_row(name, *(f"{getattr(kind, column):,}" for column in columns), *_estimates(kind))
    table.add_section()
    table.add_row("cells", *(f"{getattr(plan.cells, column):,}" for column in columns), *_estimates(plan.cells))
    lines: list[RenderableType] = [table]
    lines += [Text(f"{miss.kind}: {miss.count:,} × {miss.reason}") for miss in plan.misses]
    lines.append(
        Text(f"{plan.cells.total:,} cells, measured in {plan.groups:,} {'call' if plan.groups == 1 else 'calls'}")
    )
    if plan.cells.new or any(kind.new for kind in plan.tasks.values()):
        lines.append(Text(_estimate(plan)))
    lines += [Text(f"note: {harmless(note)}", style="yellow") for note in plan.notes]
    return Group(*lines)


def _estimate(plan: PlanView) -> str:
    """``about 75 min 02 s on 2 CPUs (2 h 30 min of compute), 209 MB``."""
    where = ""
    if plan.cpus is not None:
        where = f" on {plan.cpus:g} CPU{'' if plan.cpus == 1 else 's'}"
        where += f" and {plan.gpus:g} GPU{'' if plan.gpus == 1 else 's'}" if plan.gpus else ""
    time = f"time unknown{where}"
    if plan.estimated_seconds is not None:
        compute = "" if plan.compute_seconds is None else f" ({duration(plan.compute_seconds)} of compute)"
        time = f"about {duration(plan.estimated_seconds)}{where}{compute}"
    return f"{time}, {'size unknown' if plan.estimated_bytes is None else size(plan.estimated_bytes)}"


def _estimates(kind: PlanKind) -> tuple[str, str]:
    seconds, stored = kind.estimated_seconds, kind.estimated_bytes
    return ("" if seconds is None else duration(seconds), "" if stored is None else size(stored))


def sweeps_table(views: Sequence[SweepView]) -> RenderableType:
    """One line per sweep; without an owner's column where no sweep has one."""
    owned = any(view.owner is not None for view in views)
    owner = ("owner",) if owned else ()
    table = headed_table(None, "id", "name", *owner, "experiment", "state", right=("cells", "failed"))
    table.add_column("created")
    table.add_column("took", justify="right")
    for view in views:
        took = (view.finished_at - view.created_at).total_seconds() if view.finished_at else None
        table.add_row(
            view.id,
            view.name,
            *((view.owner or "",) if owned else ()),
            view.experiment,
            state_text(view.state, view.paused),
            f"{finished(view.counts):,}/{view.cells:,}",
            f"{view.counts.get(State.FAILED, 0):,}",
            moment(view.created_at),
            "" if took is None else duration(took),
        )
    return table


def sweep_view(view: SweepView) -> RenderableType:
    """A sweep's view without the spec."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_row("sweep", view.id)
    grid.add_row("name", view.name)
    if view.owner is not None:
        grid.add_row("owner", view.owner)
    grid.add_row("experiment", view.experiment)
    if view.code is not None:
        grid.add_row("code", f"{view.code.file}: {', '.join(view.code.units)} ({view.code.sha256})")
    grid.add_row("state", state_text(view.state, view.paused))
    grid.add_row("cells", Text.assemble(f"{view.cells:,}: ", counts_text(view.counts)))
    for kind, counts in view.tasks.items():
        grid.add_row(kind, Text.assemble(f"{sum(counts.values()):,}: ", counts_text(counts)))
    grid.add_row("created", moment(view.created_at))
    if view.finished_at:
        grid.add_row(
            "finished", f"{moment(view.finished_at)} ({duration((view.finished_at - view.created_at).total_seconds())})"
        )
    if view.remaining_s is not None and not view.state.finished and not view.paused:
        grid.add_row("left", f"about {duration(view.remaining_s)}")
    for condition in view.conditions:
        grid.add_row("note", Text(f"{condition.type}: {condition.message}", style="yellow"))
    for activity in view.active:
        total = f" {activity.done:,}/{activity.total:,}" if activity.total else ""
        text = f"{activity.kind}, call {activity.call}, {activity.tasks:,} tasks{total} {activity.note}"
        grid.add_row("running", harmless(text.rstrip()))
    return grid


def code_view(view: CodeView) -> RenderableType:
    """The files and units of code."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_row("code", view.sha256)
    grid.add_row("sent", f"{moment(view.created_at)}{'' if view.owner is None else f' by {view.owner}'}")
    for path, length in view.files.items():
        grid.add_row("file", f"{path} ({length:,} bytes)")
    for unit in view.units:
        names = ", ".join(unit.parameters) or "no parameters"
        grid.add_row(
            unit.group.removesuffix("s"), harmless(f"{unit.name}: {unit.title} ({names}; {unit.file}:{unit.line})")
        )
    return grid


def summary_table(summary: SummaryView) -> RenderableType:
    """The summary's table and verdicts; means have the half-widths of their 95 % intervals."""
    title = summary.title if summary.complete else f"{summary.title} (incomplete: cells are missing)"
    table = headed_table(Text(title, style="bold"), right=[column.replace("_", " ") for column in summary.columns])
    for column, name in zip(table.columns, summary.columns, strict=True):
        if any(isinstance(row.get(name), str) for row in summary.rows):
            column.justify = "left"
    for row in summary.rows:
        table.add_row(*(_with_interval(row, name) for name in summary.columns))
    verdicts = [
        Text.assemble((verdict.name, "bold yellow" if verdict.warning else "bold green"), f": {verdict.text}")
        for verdict in summary.verdicts
    ]
    return Group(table, *verdicts)


def _with_interval(row: Mapping[str, Any], name: str) -> str:
    half_width = row.get(f"{name}_ci95")
    text = number(row.get(name))
    return text if half_width is None else f"{text} ± {half_width:.2g}"


def failures_text(failures: Sequence[FailureView], tracebacks: bool, option: str = "") -> RenderableType:
    """Each cause with its count, its traceback if wanted, and the command that computes one of its tasks here.

    ``option`` ends the commands: the service's URL if it is not the usual one.
    """
    lines = []
    for failure in failures:
        skipped = f", {failure.skipped:,} skipped because of it" if failure.skipped else ""
        where = f" on {failure.host}" if failure.host else ""
        head = f"{failure.kind}: {failure.cause} ({failure.count:,} failed{skipped}; attempt {failure.attempt}{where})"
        lines.append(Text(harmless(head), style="red"))
        if tracebacks and failure.traceback:
            lines.append(Text(harmless(failure.traceback.rstrip())))
        lines += _log_end(failure, tracebacks=tracebacks)
        lines.append(Text(f"  run it here: {failure.command}{option}", style="dim"))
        lines += [Text()] if tracebacks else []
    return Group(*lines)


def _log_end(failure: FailureView, *, tracebacks: bool) -> list[Text]:
    """The end of the failed task's log, unless the traceback, which a dead process did not write, is that log."""
    log = harmless(failure.log.rstrip())
    if not log or (tracebacks and log.splitlines()[-1] in harmless(failure.traceback)):
        return []
    shown = log.splitlines() if tracebacks else log.splitlines()[-LOG_LINES:]
    return [Text("  its output ends with:", style="dim"), *(Text(f"  | {line}") for line in shown)]


def rows_table(result: Result) -> RenderableType:
    """The first rows of a result."""
    table = headed_table(None, *result.table.column_names)
    rows = result.table.slice(0, MAX_ROWS).to_pylist()
    for column, name in zip(table.columns, result.table.column_names, strict=True):
        if any(isinstance(row[name], int | float) for row in rows):
            column.justify = "right"
    for row in rows:
        table.add_row(*(number(value) for value in row.values()))
    more = len(result) - len(rows)
    if more > 0:
        return Group(
            table, Text(f"{more:,} more rows: write all of them with -o csv, or with --file rows.parquet", style="dim")
        )
    return table


def task_rows_table(result: Result, task: TaskDocument) -> RenderableType:
    """A cell's measured columns, without its parameters and provenance."""
    others = RESERVED - {"diverged"} | task.params.keys() | task.source.keys()
    measured = result.table.select([name for name in result.table.column_names if name not in others])
    return rows_table(type(result)(measured))


def tensors_table(tensors: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    """One line per tensor of an artifact."""
    table = headed_table(None, "tensor", "dtype", right=("shape",))
    for name, tensor in tensors.items():
        table.add_row(name, tensor["dtype"], " × ".join(map(str, tensor["shape"])) or "scalar")
    return table


def retention_table(view: RetentionView) -> RenderableType:
    """What was removed or would be, and what is kept."""
    table = Table("", box=None, pad_edge=False)
    for name in ("number", "size"):
        table.add_column(name, justify="right")
    would = "would be removed" if view.dry_run else "removed"
    table.add_row(f"artifacts {would}", f"{view.removed:,}", size(view.removed_bytes))
    table.add_row(f"leftovers {would}", f"{view.leftovers:,}", size(view.leftover_bytes))
    table.add_row("artifacts kept", f"{view.kept:,}", size(view.kept_bytes))
    table.add_row("of these, needed by open sweeps", f"{view.in_use:,}", "")
    return table


def tokens_table(views: Sequence[TokenView]) -> RenderableType:
    """One line per token."""
    table = headed_table(
        None, "name", "role", "created", "expires", "last used", "revoked", right=("open cells", "priority")
    )
    for view in views:
        limits = (view.max_open_cells, view.max_priority)
        table.add_row(
            view.name,
            view.role,
            moment(view.created_at),
            "never" if view.expires_at is None else moment(view.expires_at),
            "" if view.last_used_at is None else moment(view.last_used_at),
            "" if view.revoked_at is None else moment(view.revoked_at),
            *("" if limit is None else f"≤ {limit:,}" for limit in limits),
        )
    return table


def audit_table(views: Sequence[AuditView]) -> RenderableType:
    """One line per entry of the audit log."""
    table = headed_table(None, "when", "who", "what", "target", "outcome", "detail", "request")
    for view in views:
        style = "yellow" if view.outcome != "done" else ""
        table.add_row(
            moment(view.at),
            view.actor or "",
            view.action,
            view.target,
            Text(view.outcome, style=style),
            view.detail,
            view.request or "",
        )
    return table


def experiments_table(views: Sequence[ExperimentView]) -> RenderableType:
    """One line per experiment."""
    table = headed_table(None, "experiment", "title", "columns")
    for view in views:
        note = Text(f"cannot be used: {view.problem}", style="red") if view.problem else Text(", ".join(view.columns))
        table.add_row(view.name, view.title, note)
    return table


def experiment_view(view: ExperimentView) -> RenderableType:
    """An experiment's parameters and columns."""
    parameters = headed_table(
        Text.assemble((view.name, "bold"), f"  {view.title}"), "parameter", "values", "default", "meaning"
    )
    required = view.parameters.get("required", ())
    for name, schema in view.parameters.get("properties", {}).items():
        default = "required" if name in required else json.dumps(schema.get("default"))
        parameters.add_row(name, _values(schema), default, schema.get("description", ""))
    columns = headed_table(Text("columns", style="bold"), "column", "type", "meaning")
    for name, column in view.columns.items():
        columns.add_row(name, column.type, column.description)
    problem = [Text(f"cannot be used: {view.problem}", style="red")] if view.problem else []
    return Group(parameters, columns, *problem)


def _values(schema: Mapping[str, Any]) -> str:
    """The values that a parameter's JSON Schema accepts, in a few words."""
    if "anyOf" in schema:
        return " or ".join(_values(option) for option in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[name]:g}" for name, sign in signs.items() if name in schema]
    return " ".join([str(schema.get("const", schema.get("type", "any"))), *bounds])


def headed_table(title: Text | None, *left: str, right: Sequence[str] = ()) -> Table:
    """An empty table with these columns, aligned left or right; long values are broken into lines."""
    table = Table(
        title=title, title_justify="left", title_style="", header_style="bold", box=SIMPLE_HEAD, pad_edge=False
    )
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", overflow="fold")
    return table
