"""The sweep spec: what a researcher writes, validated whole and expanded once into cells.

A spec is refused with a JSON pointer to each fault and what would be accepted. Values are validated one by one
against the experiment's own parameter model where they stand (``/axes/eta/3``); then every cell is checked for values
that make no sense together. A cell is a complete, concrete set of parameters; no placeholder reaches a task.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.errors import Fault, PluginError, SpecError
from creditgrid.core.experiment import Experiment, Params
from creditgrid.core.fingerprint import canonical_json
from creditgrid.core.spec.axes import expand

MAX_CELLS = 1_000_000
"""The most cells of one sweep."""
MAX_FAULTS = 20
"""Faults are reported up to this many; the last one says how many more there are."""
MAX_RULES = 1000
"""The most exclude rules: every cell is held against each."""
MEASURE = "measure"
"""What a spec's ``resources`` and ``timeout_s`` call the task kind that measures cells, whichever the experiment."""
SMALLEST_SHARE = 0.0001
"""The smallest share of a CPU or GPU that a cluster can account for."""


class ResourceSpec(BaseModel):
    """CPUs and GPUs for each call of a task kind; a GPU may be shared, more than one are whole."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    cpu: float | None = Field(None, ge=SMALLEST_SHARE, le=1024)
    gpu: float | None = Field(None, ge=0, le=64)

    @field_validator("gpu")
    @classmethod
    def _accountable(cls, gpu: float | None) -> float | None:
        if gpu is not None and (0 < gpu < SMALLEST_SHARE or (gpu > 1 and gpu != int(gpu))):
            raise PydanticCustomError("gpu", f"a call takes 0, a share of {SMALLEST_SHARE:g} to 1, or whole GPUs")
        return gpu


class RetrySpec(BaseModel):
    """How often a call is tried again after a lost worker, memory trouble or failed I/O, and the first pause."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    max: int = Field(3, ge=0, le=100)
    backoff_s: float = Field(2.0, ge=0, le=3600)


class SweepSpec(BaseModel):
    """One sweep as it is written, before expansion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    name: str = Field(min_length=1, max_length=200, description="What the sweep is called; need not be unique.")
    experiment: str = Field(description="The kind of sweep, such as linesearch.")
    fixed: dict[str, Any] = Field(default_factory=dict, description="Parameters that are the same in every cell.")
    axes: dict[str, Any] = Field(default_factory=dict, description="Parameters that vary: a list, or a generator.")
    zip: list[list[str]] = Field(default_factory=list, description="Groups of axes that advance together.")
    exclude: list[dict[str, Any]] = Field(
        default_factory=list, max_length=MAX_RULES, description="Cells with all these values are left out."
    )
    include: list[dict[str, Any]] = Field(default_factory=list, description="Extra cells, on top of `fixed`.")
    resources: dict[str, ResourceSpec] = Field(
        default_factory=dict, description="CPUs and GPUs by task kind (data, probe, feedback, train, fit, measure, …)."
    )
    retry: RetrySpec = Field(default_factory=RetrySpec)
    timeout_s: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="Seconds that a call of a task kind may take, by kind as in `resources`."
    )
    max_failed: int | None = Field(None, ge=0, description="Stop the sweep when more cells than this have failed.")
    fail_fast: bool = Field(False, description="Stop the sweep at the first failure.")
    priority: int = Field(0, ge=-1000, le=1000, description="Higher runs first.")


def parse(document: Any) -> SweepSpec:
    """The spec that a JSON document holds.

    Raises:
        SpecError: with a pointer to each fault.
    """
    if not isinstance(document, dict):
        raise SpecError([Fault(f"a sweep spec is an object with name, experiment, axes; got {_shown(document)}", "")])
    try:
        return SweepSpec.model_validate(document)
    except ValidationError as error:
        raise SpecError(_bounded([_spec_fault(item) for item in error.errors(include_url=False)])) from error


@dataclass(frozen=True, slots=True)
class Grid:
    """A validated spec: every value checked alone, the number of cells known, nothing expanded yet."""

    spec: SweepSpec
    experiment: Experiment
    fixed: dict[str, Any]
    axes: Mapping[str, Sequence[Any]]
    factors: Sequence[Sequence[str]]  # axes that advance together, in the order of the spec
    exclude: Sequence[Mapping[str, Any]]
    include: Sequence[dict[str, Any]]
    before: Sequence[Grid] = ()  # of an extended sweep: the grids it was, whose cells come first

    def cells(self, datasets: Mapping[str, DatasetRef] | None = None) -> Iterator[Params]:
        """Each cell's parameters once, in the order of the axes (the last one fastest), then the included ones.

        An extended grid's cells are those of what it was, and then its own, which are all of these and the new ones.

        Args:
            datasets: what the grid's datasets were resolved to; without it, cells are not held against them.

        Raises:
            SpecError: for cells whose values make no sense together.
            PluginError: when the experiment's own code raises.
        """
        for grid in self.before:
            yield from grid.cells(datasets)
        faults: dict[str, Fault] = {}
        points = [set(self._points(factor)) for factor in self.factors] if self.include else []
        seen_included: set[str] = set()
        count = 0
        for origin, values in itertools.chain(self._product(), self._included()):
            params = self.experiment.params.of_valid(values)
            for blamed, detail in self._conflicts(params, datasets[values["dataset"]] if datasets else None):
                fault = Fault(detail, self._where(blamed, values, origin))
                faults.setdefault(fault.pointer, fault)
            if faults:
                if len(faults) > MAX_FAULTS:
                    break
                continue
            if origin is not None:  # an included cell that the grid or an earlier entry holds already is no new cell
                text = canonical_json(values)
                if text in seen_included or self._in_product(values, points):
                    continue
                seen_included.add(text)
            count += 1
            yield params
        if faults:
            raise SpecError(_bounded(list(faults.values())))
        if count == 0:
            raise SpecError([Fault("the spec leaves no cells: every one is excluded", "/exclude")])

    def _conflicts(self, params: Params, dataset: DatasetRef | None) -> list[tuple[str, str]]:
        try:
            return list(params.conflicts(dataset))
        except Exception as error:
            raise PluginError(f"{self.experiment.name}: conflicts() raised {type(error).__name__}: {error}") from error

    def _product(self) -> Iterator[tuple[int | None, dict[str, Any]]]:
        if self.spec.include and not self.axes:
            return
        base = _defaults(self.experiment.params) | self.fixed
        columns = [list(self._points(factor)) for factor in self.factors]
        names = [name for factor in self.factors for name in factor]
        for point in itertools.product(*columns):
            values = base | dict(zip(names, itertools.chain.from_iterable(point), strict=True))
            if not any(_matches(values, rule) for rule in self.exclude):
                yield None, values

    def _included(self) -> Iterator[tuple[int | None, dict[str, Any]]]:
        base = _defaults(self.experiment.params) | self.fixed
        for index, entry in enumerate(self.include):
            yield index, base | entry

    def _points(self, factor: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        return zip(*(self.axes[name] for name in factor), strict=True)

    def _in_product(self, values: Mapping[str, Any], points: Sequence[set[tuple[Any, ...]]]) -> bool:
        if self.spec.include and not self.axes:
            return False
        base = _defaults(self.experiment.params) | self.fixed
        on_axes = (tuple(values[n] for n in f) in there for f, there in zip(self.factors, points, strict=True))
        rest = all(values[name] == value for name, value in base.items() if name not in self.axes)
        return all(on_axes) and rest and not any(_matches(values, rule) for rule in self.exclude)

    def _where(self, name: str, values: Mapping[str, Any], included: int | None) -> str:
        if included is not None and name in self.include[included]:
            return pointer("include", included, name)
        if name in self.fixed:
            return pointer("fixed", name)
        if included is not None:  # two defaults, or a default and another of the entry's values
            return pointer("include", included)
        if name in self.axes:
            return _on_axis(self.spec, name, self.axes[name].index(values[name]))
        return _fixed(self.spec)

    def naming(self, name: str, value: Any) -> str:
        """The first place where the spec gives the parameter ``name`` this value, or could have given it."""
        if self.fixed.get(name) == value:
            return pointer("fixed", name)
        if value in self.axes.get(name, ()):
            return _on_axis(self.spec, name, self.axes[name].index(value))
        for index, entry in enumerate(self.include):
            if entry.get(name) == value:
                return pointer("include", index, name)
        return _fixed(self.spec)


def validate(spec: SweepSpec, experiment: Experiment, kinds: Iterable[str]) -> Grid:
    """Check every value of ``spec`` against the experiment's parameters; ``kinds`` are the task kinds it may run.

    Raises:
        SpecError: with a pointer to each fault.
    """
    faults: list[Fault] = []
    fields = _Fields(experiment, faults)
    fixed = {name: fields.value(name, value, pointer("fixed", name)) for name, value in spec.fixed.items()}
    axes = {name: fields.axis(name, axis) for name, axis in spec.axes.items()}
    for name in sorted(axes.keys() & fixed.keys()):
        faults.append(Fault(f"{name} is both fixed and an axis: give it in one place", pointer("axes", name)))
    factors = _factors(spec, axes, faults)
    exclude = [
        {name: fields.value(name, value, pointer("exclude", i, name)) for name, value in rule.items()}
        for i, rule in enumerate(spec.exclude)
    ]
    include = [
        {name: fields.value(name, value, pointer("include", i, name)) for name, value in entry.items()}
        for i, entry in enumerate(spec.include)
    ]
    faults.extend(
        Fault("an empty rule would leave out every cell", pointer("exclude", i))
        for i, rule in enumerate(exclude)
        if not rule
    )
    for name in sorted(_required(experiment.params) - fixed.keys()):
        if name not in axes and (axes or not include):
            faults.append(Fault(f"{experiment.name} needs {name}: give it in fixed or as an axis", _fixed(spec)))
        faults.extend(
            Fault(f"{experiment.name} needs {name}: give it here or in fixed", pointer("include", i))
            for i, entry in enumerate(include)
            if name not in entry
        )
    known = sorted(kinds)
    faults.extend(
        Fault(
            f"there is no task kind {kind!r}{_did_you_mean(kind, known)}; {experiment.name} runs {', '.join(known)}",
            pointer(part, kind),
        )
        for part, asked in (("resources", spec.resources), ("timeout_s", spec.timeout_s))
        for kind in asked
        if kind not in known
    )
    size = math.prod(len(axes[factor[0]]) for factor in factors) + len(include) if not faults else 0
    if size > MAX_CELLS:
        faults.append(
            Fault(f"the axes multiply to {size:,} cells; a sweep has at most {MAX_CELLS:,}: split it", "/axes")
        )
    if faults:
        raise SpecError(_bounded(faults))
    return Grid(spec, experiment, fixed, axes, factors, exclude, include)


def pointer(*parts: str | int) -> str:
    """The RFC 6901 JSON pointer of these steps."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def _on_axis(spec: SweepSpec, name: str, index: int) -> str:
    """Where a value of an axis stands: a generator's values stand nowhere but in the generator."""
    return pointer("axes", name, index) if isinstance(spec.axes[name], list) else pointer("axes", name)


def _fixed(spec: SweepSpec) -> str:
    """Where a missing parameter may be given."""
    return "/fixed" if "fixed" in spec.model_fields_set else ""


class _Fields:
    """Validates single values against one field of the parameter model, collecting faults."""

    def __init__(self, experiment: Experiment, faults: list[Fault]) -> None:
        self._experiment, self._faults = experiment, faults
        config = ConfigDict(strict=True, allow_inf_nan=False)
        self._adapters: dict[str, TypeAdapter[Any]] = {}
        for name, field in experiment.params.model_fields.items():
            constrained: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
            self._adapters[name] = TypeAdapter(constrained, config=config)

    def value(self, name: str, value: Any, where: str) -> Any:
        adapter = self._adapters.get(name)
        if adapter is None:
            known = sorted(self._adapters)
            close = _did_you_mean(name, known)
            detail = f"{self._experiment.name} has no parameter {name!r}{close}; it has {', '.join(known)}"
            self._faults.append(Fault(detail, where))
            return None
        try:
            valid = adapter.validate_python(value)
        except ValidationError as error:
            details = "; ".join(item["msg"] for item in error.errors(include_url=False))
            self._faults.append(Fault(f"{name}: {details}; got {_shown(value)}", where))
            return None
        if type(valid) is int and not -(2**63) <= valid < 2**63:
            self._faults.append(Fault(f"{name}: a whole number has at most 64 bits; got {_shown(value)}", where))
            return None
        return 0.0 if type(valid) is float and valid == 0 else valid  # -0.0 equals 0.0 and would have another key

    def axis(self, name: str, axis: Any) -> list[Any]:
        where = pointer("axes", name)
        try:
            raw = expand(axis)
        except ValueError as error:
            self._faults.append(Fault(str(error), where))
            return [None]
        if name not in self._adapters:
            return [self.value(name, None, where)]
        before = len(self._faults)
        values = []
        for index, item in enumerate(raw):
            values.append(self.value(name, item, where if isinstance(axis, dict) else pointer("axes", name, index)))
            if len(self._faults) > before + (0 if isinstance(axis, dict) else MAX_FAULTS):
                break
        return values


def _factors(spec: SweepSpec, axes: Mapping[str, Sequence[Any]], faults: list[Fault]) -> list[list[str]]:
    """The axes in order, those of one zip group together at the place of the first."""
    group_of: dict[str, list[str]] = {}
    sound = not faults  # an axis that was refused has no length to hold the others against
    for index, group in enumerate(spec.zip):
        where = pointer("zip", index)
        for name in group:
            if name not in axes:
                faults.append(Fault(f"{name!r} is not an axis of this spec{_did_you_mean(name, list(axes))}", where))
            elif name in group_of:
                faults.append(Fault(f"{name!r} advances with more than one group", where))
            else:
                group_of[name] = [other for other in group if other in axes]
        lengths = {name: len(axes[name]) for name in group if name in axes}
        if len(group) < 2:
            faults.append(Fault("a zip group names at least two axes", where))
        elif sound and len(set(lengths.values())) > 1:
            shown = ", ".join(f"{name} has {n}" for name, n in lengths.items())
            faults.append(Fault(f"axes that advance together have one length; {shown}", where))
    factors: list[list[str]] = []
    for name in axes:
        factor = group_of.get(name, [name])
        if factor not in factors:
            factors.append(factor)
    if not faults:
        for factor in factors:
            _refuse_repeats(spec, axes, factor, faults)
    return factors


def _refuse_repeats(
    spec: SweepSpec, axes: Mapping[str, Sequence[Any]], factor: Sequence[str], faults: list[Fault]
) -> None:
    first: dict[str, int] = {}
    for index, point in enumerate(zip(*(axes[name] for name in factor), strict=True)):
        earlier = first.setdefault(canonical_json(point), index)
        if earlier != index:
            shown = _shown(point[0]) if len(factor) == 1 else f"{' with '.join(factor)} = {_shown(point)}"
            detail = f"{shown} stands twice on the axis (also at {earlier})"
            faults.append(Fault(detail, _on_axis(spec, factor[0], index)))
            return


def _defaults(params: type[Params]) -> dict[str, Any]:
    return {
        name: field.get_default(call_default_factory=True)
        for name, field in params.model_fields.items()
        if not field.is_required()
    }


def _required(params: type[Params]) -> set[str]:
    return {name for name, field in params.model_fields.items() if field.is_required()}


def _matches(values: Mapping[str, Any], rule: Mapping[str, Any]) -> bool:
    return all(values[name] == value for name, value in rule.items())


def _spec_fault(item: Any) -> Fault:
    where = pointer(*item["loc"])
    if item["type"] == "extra_forbidden":
        known = sorted(SweepSpec.model_fields)
        last = str(item["loc"][-1])
        hint = f"{_did_you_mean(last, known)}; a spec has {', '.join(known)}" if len(item["loc"]) == 1 else ""
        return Fault(f"unknown key {last!r}{hint}", where)
    if item["type"] == "missing":
        return Fault(f"{item['loc'][-1]} is missing", where)
    return Fault(f"{item['msg']}; got {_shown(item['input'])}", where)


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _bounded(faults: list[Fault]) -> list[Fault]:
    if len(faults) <= MAX_FAULTS:
        return faults
    more = len(faults) - MAX_FAULTS
    return [*faults[:MAX_FAULTS], Fault(f"and {more} more", "")]
