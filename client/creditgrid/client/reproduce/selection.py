"""The rows of existing sweeps that stand beside the published figures, and the conditions in which they differ.

A run may have more than the published settings: further axes, checkpoints and seeds, another dataset, other numbers of
epochs. Of each parameter the published value is taken. Where no row has it, all rows must agree on another value, which
is then named as a condition. So methods are compared under equal settings, and never at a mixture of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from creditgrid.client.display.quantities import number
from creditgrid.client.errors import BadSetting
from creditgrid.client.reproduce.comparison import Row, belongs_to
from creditgrid.client.reproduce.published import FIT_EPOCHS, PUBLISHED, SEED
from creditgrid.client.reproduce.runs import Choice, example
from creditgrid.core.experiment import Experiment
from creditgrid.core.experiments import credit_recovery, exploitability, linesearch, snapshot_time
from creditgrid.core.experiments.registry import with_units
from creditgrid.core.experiments.stages import FIT
from creditgrid.core.units.known import installed
from creditgrid.core.units.network import DEFAULT
from creditgrid.core.units.unit import parameters_of

_EXPERIMENTS: Mapping[str, Experiment] = {
    module.EXPERIMENT.name: with_units(module.EXPERIMENT, installed())
    for module in (linesearch, exploitability, credit_recovery, snapshot_time)
}
_NUMBERS = {"exploitability": 2, "credit_recovery": 2}
"""The versions that changed the numbers of a measurement last; later ones changed its keys alone."""
_FLAGS = {"dataset": "--dataset", "train_epochs": "--epochs", "fit_epochs": "--fit-epochs"}


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows of one experiment, one for each number that is shown; ``conditions`` are lines for a person."""

    experiment: str
    rows: Sequence[Row]
    seeds: Sequence[int]
    etas: Sequence[float]
    conditions: Sequence[str]


def select(experiment: str, rows: Iterable[Row], choice: Choice) -> Selection:
    """Choose among all rows of an experiment.

    Raises:
        BadSetting: rows differ in a parameter, and none has its published value.
    """
    columns = [column for column in PUBLISHED if column.experiment == experiment]
    kept = [row for row in rows if any(row["method"] in c.figures and belongs_to(c, row) for c in columns)]
    kept = [row for row in kept if _chosen(row, choice)]
    published, axes = _published(experiment)
    notes: list[str] = []
    for name, value in published.items():
        if name not in axes and name not in _EXPERIMENTS[experiment].params.owned:
            kept = _narrowed(experiment, kept, name, value, notes)
    by_method = []
    for method in dict.fromkeys(row["method"] for row in kept):
        own = [row for row in kept if row["method"] == method]
        for name in _relevant(method):
            wanted = _default(name, method) if published[name] is None else published[name]
            own = _narrowed(f"{method} in {experiment}", own, name, wanted, notes)
        by_method += own
    kept = _newest(by_method)
    seeds = choice.seeds or sorted({row["seed"] for row in kept}) or [SEED]
    found = {row["eta"] for row in kept} if "eta" in axes else set()
    wanted = set(axes.get("eta", ()))
    etas = sorted(wanted if not found or wanted <= found else found)
    if found and not wanted <= found:
        notes.append(f"the best of {len(etas)} step sizes: {', '.join(number(eta) for eta in etas)}")
    return Selection(experiment, kept, seeds, etas, [_settings(experiment, kept, seeds), *notes, *_old(kept)])


def _chosen(row: Row, choice: Choice) -> bool:
    fits = (
        choice.fit_epochs is None
        or "fit_epochs" not in _relevant(row["method"])
        or _value(row, "fit_epochs") == choice.fit_epochs
    )
    return (
        fits
        and choice.dataset in (None, row["dataset"])
        and choice.epochs in (None, row["train_epochs"])
        and (choice.seeds is None or row["seed"] in choice.seeds)
    )


def _published(experiment: str) -> tuple[dict[str, Any], Mapping[str, Sequence[Any]]]:
    """The published value of every parameter, and the parameters that vary in the published run with their values."""
    spec = example(experiment)
    fields = _EXPERIMENTS[experiment].params.model_fields
    values = {name: field.default for name, field in fields.items()} | spec["fixed"]
    return values, {**spec["axes"], "checkpoint_epoch": (), "seed": ()}


def _narrowed(what: str, rows: list[Row], name: str, published: Any, notes: list[str]) -> list[Row]:
    """The rows with the published value of a parameter; all rows if they agree on another one, which is noted."""
    values = list(dict.fromkeys(_value(row, name) for row in rows))
    if published in values or not values:
        return [row for row in rows if _value(row, name) == published]
    if len(values) > 1:
        some = ", ".join(_text(value) for value in values[:5]) + (", …" if len(values) > 5 else "")
        advice = f"choose one with {_FLAGS[name]}" if name in _FLAGS else "give sweeps that have one of them"
        raise BadSetting(
            f"the rows of {what} have {name} {some}, and none has the published {_text(published)}: {advice}"
        )
    if name not in _FLAGS:  # the others are shown in any case
        notes.append(f"{what} has {name} {_text(values[0])}, published {_text(published)}")
    return rows


def _relevant(method: str) -> Sequence[str]:
    """The parameters of the method itself."""
    known = installed().of("methods")
    return tuple(parameters_of(known[method])) if method in known else ()


def _value(row: Row, name: str) -> Any:
    """Null is the default of the method, and of a choice: rows did not always have it written out."""
    value = row.get(name)
    if value is not None:
        return value
    if name in _relevant(row["method"]):
        return _default(name, row["method"])
    return {"rule": "inner_product", "network": DEFAULT}.get(name)


def _default(name: str, method: str) -> Any:
    return parameters_of(installed().of("methods")[method])[name].default


def _newest(rows: Iterable[Row]) -> list[Row]:
    """Of rows with equal settings, such as those of two versions, the newest."""
    newest: dict[tuple[Any, ...], Row] = {}
    identity = ("method", "seed", "eta", "norm_mode", "rule", "kappa", "layer")
    for row in sorted(rows, key=lambda row: (*_versions(row), row["cell"])):
        newest[tuple(row.get(name) for name in identity)] = row
    return list(newest.values())


def _versions(row: Row) -> tuple[int, int]:
    """Those of the measurement and of the estimator; rows from before versions were recorded are of version 1."""
    parents = json.loads(row.get("parent_versions") or "{}")
    return row.get("kind_version") or 1, parents.get("estimator", 1)


def _old(rows: Sequence[Row]) -> list[str]:
    """A line for each measurement and each fit that this version of CreditGrid would compute in another way."""
    lines = []
    for row in rows:
        measured, fitted = _versions(row)
        experiment, method = row["experiment"], row["method"]
        if measured < (now := _NUMBERS.get(experiment, 1)):
            lines.append(f"{experiment} was measured by version {measured}, which is now {now}: see the CHANGELOG")
        now = FIT.version_of({"estimator": method})
        if "fit_epochs" in _relevant(method) and fitted < now:
            lines.append(f"{method} was fitted by version {fitted}, which is now {now}: see the CHANGELOG")
    return list(dict.fromkeys(lines))


def _settings(experiment: str, rows: Sequence[Row], seeds: Sequence[int]) -> str:
    """What was run, in one line."""
    if not rows:
        return f"{experiment}: no row at the end of a training by a published method"

    def all_of(value: Callable[[Row], Any], some: Iterable[Row]) -> str:
        return ", ".join(_text(one) for one in dict.fromkeys(value(row) for row in some))

    fits = [
        f"{all_of(lambda row: _value(row, 'fit_epochs'), own)} for {method}"
        for method in dict.fromkeys([*FIT_EPOCHS, *sorted({row["method"] for row in rows})])
        if "fit_epochs" in _relevant(method) and (own := [row for row in rows if row["method"] == method])
    ]
    fitting = f", of fitting {' and '.join(fits)}" if fits else ""
    dataset, epochs = all_of(lambda row: row["dataset"], rows), all_of(lambda row: row["train_epochs"], rows)
    return f"{experiment}: {dataset}, {epochs} epochs of training{fitting}; {seeds_text(seeds)}"


def seeds_text(seeds: Sequence[int]) -> str:
    """The seeds of a run, for a heading."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    whole = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    named = f"{seeds[0]} to {seeds[-1]}" if whole else ", ".join(str(seed) for seed in seeds)
    return f"seeds {named} (mean ± 95 % half-width)"


def _text(value: Any) -> str:
    if value is None:
        return "null"
    return f"{value:,}" if type(value) is int else number(value) if isinstance(value, float) else str(value)
