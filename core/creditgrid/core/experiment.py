"""An experiment: parameters, tasks, columns, summary and charts, declared in one file.

A package registers an experiment by an entry point in the group ``creditgrid.experiments``. Planning, caching, retries,
results, summary, CLI and API then work for it. Its file must not import torch at module level: plans are also made on
machines without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeAlias

from pydantic import BaseModel, ConfigDict
from pydantic.dataclasses import dataclass as pydantic_dataclass

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.errors import did_you_mean
from creditgrid.core.task import Task, TaskKind


class Params(BaseModel):
    """Base of an experiment's parameters: every field may be fixed, an axis, or left at its default.

    Fields are validated strictly (no strings for numbers) and unknown names are refused. A field that names a dataset
    must be called ``dataset``: the dataset is resolved before tasks are named.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    measurements: ClassVar[Mapping[str, int]] = {}
    """The measurements that the sweep asks for, with their versions: part of the identity of its cells."""
    added_columns: ClassVar[Mapping[str, Column]] = {}
    """The columns that these measurements add to the rows."""
    owned: ClassVar[frozenset[str]] = frozenset()
    """The parameters that belong to units (``core.units``) which a cell may choose, such as its method."""

    @classmethod
    def settle(cls, values: dict[str, Any], given: Iterable[str]) -> Sequence[tuple[str, str]]:  # noqa: ARG003
        """Set what a cell's units own, and clear what others own; returns conflicts. See ``core.units.choice``."""
        return ()

    @classmethod
    def unused(
        cls,
        given: Iterable[str],  # noqa: ARG003
        chosen: Callable[[str], Iterable[Any]],  # noqa: ARG003
    ) -> Iterable[tuple[str, str]]:
        """The parameters that a spec gives and that no unit of any cell owns. See ``core.units.choice``."""
        return ()

    @classmethod
    def completed(cls, identity: Mapping[str, Any]) -> Mapping[str, Any]:
        """The parameters of a cell from those in its key. See ``core.units.choice``."""
        return identity

    @classmethod
    def unit_versions(cls, values: Mapping[str, Any]) -> Mapping[str, int]:  # noqa: ARG003
        """What a key says of the versions of the units that these values choose. See ``core.units.choice``."""
        return {}

    @classmethod
    def of_valid(cls, values: dict[str, Any]) -> Self:
        """The parameters with these values, one for each field, each already validated alone."""
        params = object.__new__(cls)
        # As BaseModel.model_construct does, without its search for defaults and aliases.
        object.__setattr__(params, "__dict__", values)
        object.__setattr__(params, "__pydantic_fields_set__", _all_fields(cls))
        object.__setattr__(params, "__pydantic_extra__", None)
        object.__setattr__(params, "__pydantic_private__", None)
        return params

    def conflicts(self, dataset: DatasetRef | None) -> Iterable[tuple[str, str]]:  # noqa: ARG002
        """Values that are valid alone and make no sense together, as (field to blame, what is wrong).

        ``dataset`` is the resolved dataset; None if the experiment has none, or before datasets are resolved.
        """
        return ()


@lru_cache
def _all_fields(params: type[Params]) -> set[str]:
    return set(params.model_fields)


ColumnType: TypeAlias = Literal["float64", "int64", "string", "bool", "timestamp"]


@pydantic_dataclass(frozen=True, slots=True)
class Column:
    """One measured column of the results table: its type, and a sentence with its unit."""

    type: ColumnType
    description: str


@pydantic_dataclass(frozen=True, slots=True)
class Verdict:
    """A conclusion: a word or two, a sentence, and the numbers that support it. ``warning`` asks for attention."""

    name: str
    text: str
    numbers: Mapping[str, float]
    warning: bool = False


@pydantic_dataclass(frozen=True, slots=True)
class Summary:
    """A small table for a person, and the verdicts."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    verdicts: Sequence[Verdict]


Row: TypeAlias = Mapping[str, Any]
Measurable: TypeAlias = Literal["checkpoint", "step"]


class KnownMeasurement(NamedTuple):
    """A measurement (``core.units.measurement``) as a plan knows it."""

    version: int
    columns: Mapping[str, Column]
    after_step: bool


@pydantic_dataclass(frozen=True, slots=True)
class Axis:
    """What a chart shows along one direction: one column of the rows, or several, and a title with the unit.

    Several columns of a measure have a panel each, on one scale. Several columns along x are one label, as in
    "target_shift, kappa = 0.1"; a line takes the first of them that is not null. ``symlog`` is a log scale on both
    sides of 0, and linear near 0.
    """

    columns: Sequence[str]
    title: str
    scale: Literal["linear", "log", "symlog"] = "linear"


@pydantic_dataclass(frozen=True, slots=True)
class Chart:
    """A picture of a sweep's rows, declared so that the client can draw it from the rows alone.

    Every column of every measure has its own panels, and so has every other parameter that varies in the sweep. A
    ``line`` or ``bar`` is the mean over the seeds with its 95 % interval: one line, or one bar of a group, for each
    value of ``series``. A ``heatmap`` shows ``series`` upwards and the mean as colour. A column that is the same on all
    rows of a cell, such as a mean over its layers, counts once.
    """

    name: str
    title: str
    mark: Literal["line", "bar", "heatmap"]
    x: Axis
    measures: Sequence[Axis]
    series: Sequence[str]


@dataclass(frozen=True)
class Experiment:
    """A kind of sweep.

    ``cell(params, dataset)`` names the measure task of one grid point, and all tasks that it depends on, parents before
    children. Its ``dataset`` is the DatasetRef that the parameter of that name was resolved to; None for an experiment
    without that parameter. ``measure.run`` yields one Output with rows for every cell. ``kinds`` are the experiment's
    own task kinds, beside the shared ones. ``charts`` declare what its rows look like. ``summarise`` takes the rows; if
    it has a parameter ``params``, it also gets the parameter model that the spec was checked against, which has the
    parameters of all units that a cell may choose.

    ``measurable`` says what measurements of a sweep see: a checkpoint, or also the update of a step; None: it takes
    none. ``datasets`` and ``measurements`` are those of the units that exist, by name; the registry sets them.
    """

    name: str
    title: str
    params: type[Params]
    columns: Mapping[str, Column]
    measure: TaskKind
    cell: Callable[[Any, Any], tuple[Task, Sequence[Task]]]
    summarise: Callable[..., Summary]
    kinds: Sequence[TaskKind] = ()
    charts: Sequence[Chart] = ()
    measurable: Measurable | None = None
    datasets: Mapping[str, DatasetRef] = field(default_factory=dict)
    measurements: Mapping[str, KnownMeasurement] = field(default_factory=dict)

    def measuring(self, names: Iterable[str]) -> Experiment:
        """The experiment with the columns of measurements.

        Raises:
            ValueError: one cannot be measured here; the text says why.
        """
        names = list(dict.fromkeys(names))
        if not names:
            return self
        if self.measurable is None:
            raise ValueError(f"the experiment {self.name} takes no measurements")
        added: dict[str, Column] = {}
        for name in names:
            known = self.measurements.get(name)
            if known is None:
                hint = did_you_mean(name, self.measurements) or "; there are " + (
                    ", ".join(self.measurements) or "none"
                )
                raise ValueError(f"there is no measurement {name!r}{hint}")
            if known.after_step and self.measurable == "checkpoint":
                raise ValueError(f"{name} measures the update of a local step, and {self.name} takes none")
            if taken := sorted(known.columns.keys() & (self.columns.keys() | self.params.model_fields.keys())):
                raise ValueError(f"{name} adds {', '.join(taken)}, which {self.name} has already: rename the column")
            added |= known.columns
        versions = {name: self.measurements[name].version for name in sorted(names)}
        params = type(self.params.__name__, (self.params,), {"measurements": versions, "added_columns": added})
        summarise = self.summarise
        if isinstance(summarise, partial):
            summarise = partial(summarise.func, **{**summarise.keywords, "params": params})
        return replace(self, params=params, columns={**self.columns, **added}, summarise=summarise)
