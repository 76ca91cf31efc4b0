"""Lines of a summary: means over seeds, with their spread and the number of seeds.

The means are over ``seed`` and ``probe_seed``: where seeds vary, probes of one seed are averaged first, because they
are not independent runs. Each setting of the other axes has lines of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, TypeAlias

from creditgrid.core.experiment import Params, Row
from creditgrid.core.statistics import mean_std_ci
from creditgrid.core.units.choice import ChoosingParams
from creditgrid.core.units.known import installed
from creditgrid.core.units.method import Method

SEEDS = ("seed", "probe_seed")

Line: TypeAlias = dict[str, Any]


def varied(params: type[Params], rows: Sequence[Row], besides: Iterable[str] = ()) -> list[str]:
    """The parameters that take more than one value in the rows, except the seeds and those in ``besides``.

    A parameter of units, such as methods, must do so for one unit: null for another method is no value of it.
    """
    known = {*SEEDS, *besides}
    return [name for name in params.model_fields if name not in known and _varies(params, rows, name)]


def _varies(params: type[Params], rows: Sequence[Row], name: str) -> bool:
    owners = params.choices.items() if issubclass(params, ChoosingParams) else ()
    units = [choice for choice, chosen in owners if name in chosen.all]
    return len({(*(row[choice] for choice in units), row[name]) for row in rows}) > len(
        {tuple(row[choice] for choice in units) for row in rows}
    )


def methods_of(params: type[Params]) -> Mapping[str, type[Method]]:
    """The credit methods that a cell may choose, by name."""
    assert issubclass(params, ChoosingParams)
    units = params.choices["method"].units if params.choices else installed().of("methods")
    return {name: method for name, method in units.items() if issubclass(method, Method)}


def added(params: type[Params]) -> list[str]:
    """The columns of numbers that the sweep's measurements add to the rows."""
    return [name for name, column in params.added_columns.items() if column.type in ("float64", "int64")]


def grouped(rows: Sequence[Row], by: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Rows with equal values of ``by``, in the order of those values; null comes first."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in by)].append(row)
    return dict(sorted(groups.items(), key=lambda item: [(value is not None, value) for value in item[0]]))


def over_seeds(rows: Sequence[Row], by: Sequence[str], metrics: Iterable[str]) -> list[Line]:
    """One line for each distinct value of ``by``: the statistics of each metric over the rows, which differ in seeds.

    ``n`` is the number of seeds in the means. Rows that diverged are not in the means; ``diverged`` counts them.
    """
    lines = []
    for values, some in grouped(rows, by).items():
        whole = [row for row in some if not row["diverged"]]
        line: Line = dict(zip(by, values, strict=True))
        line |= {"n": len(_by_seed(whole)), "diverged": len(some) - len(whole)}
        lines.append(line | statistics(whole, metrics))
    return lines


def statistics(rows: Sequence[Row], metrics: Iterable[str]) -> Line:
    """The mean of each metric under its own name, and the rest with ``_std``, ``_ci95`` (half-width) and ``_n``.

    Null where no row has the metric; the spread is null for a single value.
    """
    line: Line = {}
    runs = _by_seed(rows)
    for metric in metrics:
        values = [fmean(some) for run in runs if (some := [row[metric] for row in run if row[metric] is not None])]
        n, mean, std, ci95 = mean_std_ci(values) if values else (0, None, None, None)
        line |= {metric: mean, f"{metric}_std": std, f"{metric}_ci95": ci95, f"{metric}_n": n}
    return line


def _by_seed(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each independent run: those of one seed, or each row alone if the seed does not vary."""
    runs: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        runs[row.get("seed")].append(row)
    return list(runs.values()) if len(runs) > 1 else [[row] for row in rows]


def setting_prefix(line: Row, names: Sequence[str], params: type[Params] = Params) -> str:
    """The line's values of ``names`` before a sentence about it: "num_blocks 4, lr 0.001: ", or nothing.

    Parameters of units that the line has not chosen are left out.
    """
    shown = ", ".join(f"{name} {line[name]}" for name in names if line[name] is not None or name not in params.owned)
    return f"{shown}: " if shown else ""
