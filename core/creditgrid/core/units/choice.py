"""Choices: a parameter of an experiment whose value is the name of a unit, and the parameters that come with it.

An experiment declares ``method: Annotated[str, Choice("methods")]``. ``composed`` makes the parameter model that specs
are checked against: its values are the names of the units that exist, and it also has the parameters of all of them.
In a cell, those of its own units have a value, and those of others are null: they are not part of its identity. So a
method may be added without a change of any key.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeAlias, TypeVar

from pydantic import create_model
from pydantic.fields import FieldInfo

from creditgrid.core.errors import TaskError
from creditgrid.core.experiment import Params
from creditgrid.core.units.known import Units, installed
from creditgrid.core.units.method import Method, is_fitted
from creditgrid.core.units.unit import Unit, parameters_of

Conflict: TypeAlias = tuple[str, str]
Model = TypeVar("Model", bound=Params)


@dataclass(frozen=True)
class Choice:
    """Marks a parameter whose values are the names of the units of a group."""

    group: str


@dataclass(frozen=True)
class Chosen:
    """A choice of a composed model: its units by name, and by unit what a cell needs of its parameters."""

    group: str
    units: Mapping[str, type[Unit]]
    own: Mapping[str, tuple[str, ...]] = field(init=False)
    """The names of its parameters in specs."""
    values: Mapping[str, Callable[[Mapping[str, Any]], tuple[Any, ...]]] = field(init=False)
    """Its values among those of a cell, in the order of ``own``."""
    foreign: Mapping[str, tuple[str, ...]] = field(init=False)
    """The parameters of the other units that it does not have."""
    defaults: Mapping[str, tuple[tuple[str, Any], ...]] = field(init=False)
    """Its parameters with their defaults, or with ``REQUIRED``."""
    default_values: Mapping[str, tuple[Any, ...]] = field(init=False)
    """The defaults alone."""
    all: frozenset[str] = field(init=False)
    """The names of the parameters of all units."""

    def __post_init__(self) -> None:
        own = {name: tuple(parameters_of(unit)) for name, unit in self.units.items()}
        everything = frozenset[str]().union(*own.values())
        found = {
            "own": own,
            "values": {name: _picker(names) for name, names in own.items()},
            "foreign": {name: tuple(sorted(everything.difference(names))) for name, names in own.items()},
            "defaults": {name: _defaults_of(unit) for name, unit in self.units.items()},
            "default_values": {
                name: tuple(default for _, default in _defaults_of(unit)) for name, unit in self.units.items()
            },
            "all": everything,
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)


class _Scheme(NamedTuple):
    """What follows from the units that a cell has chosen."""

    foreign: Mapping[str, tuple[Chosen, str]]
    """The parameters of other units: the choice, and the parameter that makes it."""
    cleared: Mapping[str, None]
    """Null for each of them."""
    defaults: Sequence[tuple[str, Any]]
    """The parameters of its own units, with their defaults."""
    versions: Mapping[str, int]
    """What the key says of the units' versions."""

    @classmethod
    def of(cls, params: type[ChoosingParams], names: Any) -> _Scheme:
        """That of the units with these names, one for each choice."""
        foreign: dict[str, tuple[Chosen, str]] = {}
        defaults: list[tuple[str, Any]] = []
        versions: dict[str, int] = {}
        for name, (parameter, chosen) in zip(_each(names), params.choices.items(), strict=True):
            unit = chosen.units[name]
            foreign |= dict.fromkeys(chosen.foreign[name], (chosen, parameter))
            defaults += chosen.defaults[name]
            of_fit = issubclass(unit, Method) and is_fitted(unit)
            if unit.version > 1 and unit not in params.known.brought and not of_fit:
                versions[_version_name(parameter)] = unit.version
        return cls(foreign, dict.fromkeys(foreign), defaults, versions)


class ChoosingParams(Params):
    """Base of parameter models with choices: in a composed one, a cell knows its units."""

    known: ClassVar[Units]
    choices: ClassVar[Mapping[str, Chosen]] = {}
    """By parameter."""
    chosen_names: ClassVar[Callable[[Mapping[str, Any]], Any]]
    """The names of the units that a cell has chosen, from its values."""
    schemes: ClassVar[dict[Any, _Scheme]]
    """By these names."""

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """A cell of a model that is not composed chooses among the units of this installation."""
        return super().__new__(cls if cls.choices else _with_installed(cls))

    @classmethod
    def settle(cls, values: dict[str, Any], given: Iterable[str]) -> Sequence[Conflict]:
        """Set the parameters of a cell's own units, and clear those of others; returns what is wrong.

        Args:
            values: all values of the cell; null stands for the default. They are changed.
            given: names of owned parameters that the cell itself gives, rather than all cells. For a unit that does not
                have the parameter, null and the default are the only values that can be given.
        """
        if not cls.choices:
            return ()
        scheme = cls._scheme(values)
        conflicts: list[Conflict] = []
        for other in given:
            if other in scheme.foreign and (value := values[other]) is not None:
                chosen, parameter = scheme.foreign[other]
                if value not in _defaults(chosen, other):
                    conflicts.append((other, _foreign(chosen, other, parameter, values[parameter])))
        if not conflicts:  # a cell with a conflict keeps its values, so that its place can be found
            values.update(scheme.cleared)
        for other, default in scheme.defaults:
            if values[other] is None:
                if default is REQUIRED:
                    conflicts.append((other, _missing(cls.choices, values, other)))
                else:
                    values[other] = default
        return conflicts

    @classmethod
    def unused(cls, given: Iterable[str], chosen: Callable[[str], Iterable[Any]]) -> Iterable[Conflict]:
        """Parameters that a spec gives and that no unit of any cell has.

        Args:
            given: the owned parameters that the spec gives.
            chosen: the values that the spec's cells have of a choice.
        """
        for parameter, choice in cls.choices.items():
            mine = [name for name in given if name in choice.all]
            names = [name for name in dict.fromkeys(chosen(parameter)) if name in choice.own] if mine else []
            for name in mine:
                if not any(name in choice.own[unit] for unit in names):
                    yield name, f"{_whose(choice, name, parameter, *names)}: leave it out"

    def model_post_init(self, _context: Any) -> None:
        """A cell that is made from its values, and not by a grid, is settled too: values of other units are cleared.

        Raises:
            ValueError: it lacks a value that its unit needs.
        """
        if self.choices and (faults := self.settle(self.__dict__, ())):
            raise ValueError("; ".join(detail for _, detail in faults))

    def unit(self, parameter: str) -> type[Unit]:
        """The unit that the cell has chosen."""
        values = self.__dict__
        return self.choices[parameter].units[values[parameter]]

    def setting(self, parameter: str) -> Unit:
        """The chosen unit, with the cell's values of its parameters."""
        values = self.__dict__
        name = values[parameter]
        chosen = self.choices[parameter]
        return _setting(chosen.units[name], chosen.values[name](values))

    @classmethod
    def completed(cls, identity: Mapping[str, Any]) -> Mapping[str, Any]:
        """The parameters of a cell from those in its key, which may leave out a default unit and its defaults."""
        lacking = {name: cls.model_fields[name].default for name in cls.choices if name not in identity}
        chosen = {**identity, **lacking} if lacking else identity
        own = [item for item in cls._scheme(chosen).defaults if item[0] not in identity]
        return {**chosen, **dict(own)} if own else chosen

    def own_values(self) -> dict[str, Any]:
        """All values besides those of other units, and the versions of the units that have one above 1.

        A fitted method's version is that of its fit, which has a key of its own.
        """
        values = self.__dict__.copy()
        scheme = self._scheme(values)
        for name in scheme.foreign:
            del values[name]
        if scheme.versions:
            values.update(scheme.versions)
        return values

    @classmethod
    def unit_versions(cls, values: Mapping[str, Any]) -> Mapping[str, int]:
        """What a key says of the versions of the units that these values choose; one that is left out is the default.

        Raises:
            TaskError: a unit is not known here.
        """
        chosen = {name: values.get(name, cls.model_fields[name].default) for name in cls.choices}
        for name, choice in cls.choices.items():
            if chosen[name] not in choice.units:
                raise TaskError(
                    f"the {choice.group[:-1]} {chosen[name]!r} is not known here: is its package installed?"
                )
        return cls._scheme(chosen).versions if chosen else {}

    @classmethod
    def _scheme(cls, values: Mapping[str, Any]) -> _Scheme:
        """What follows from the units that a cell has chosen; a grid has few combinations of them."""
        chosen = cls.chosen_names(values)
        try:
            return cls.schemes[chosen]
        except KeyError:
            return cls.schemes.setdefault(chosen, _Scheme.of(cls, chosen))


def composed(params: type[Model], units: Units) -> type[Model]:
    """The parameter model of an experiment with the units that exist; ``params`` itself if it has no choice.

    Raises:
        TypeError: a unit's parameter has the name of one of the experiment's own.
    """
    marks = [(name, mark) for name, info in params.model_fields.items() for mark in info.metadata]
    found = {name: mark.group for name, mark in marks if isinstance(mark, Choice)}
    if not found or not issubclass(params, ChoosingParams):
        return params
    choices = {name: Chosen(group, units.of(group)) for name, group in found.items()}
    identity = {"measurements", *map(_version_name, choices)}
    fields: dict[str, Any] = {}
    for name, chosen in choices.items():
        fields[name] = (Literal[tuple(chosen.units)], _choosing(params.model_fields[name], chosen))
    for chosen in choices.values():
        for owned in sorted(chosen.all):
            if owned in params.model_fields:
                raise TypeError(f"the parameter {owned!r} of a unit is one of {params.__name__} as well: rename it")
            if owned in identity:
                raise TypeError(f"the parameter {owned!r} of a unit has the name of something else in keys: rename it")
            fields[owned] = _owned_field(chosen, owned)
    everything = frozenset[str]().union(*(chosen.all for chosen in choices.values()))
    pick = staticmethod(operator.itemgetter(*choices))
    own = {"known": units, "choices": choices, "owned": everything, "chosen_names": pick, "schemes": {}}
    base: Any = type(params.__name__, (params,), own)
    made: Any = create_model
    model: type[Model] = made(params.__name__, __base__=base, __module__=__name__, **fields)
    return model


@cache
def _with_installed(params: type[Model]) -> type[Model]:
    return composed(params, installed())


def _choosing(info: FieldInfo, chosen: Chosen) -> FieldInfo:
    titles = "; ".join(f"{name}: {unit.title()}" for name, unit in chosen.units.items())
    merged: FieldInfo = FieldInfo(default=info.default, description=f"{info.description} {titles}")
    return merged


def _owned_field(chosen: Chosen, name: str) -> tuple[Any, FieldInfo]:
    """A parameter of one unit or several, as a field of the composed model: it may be null."""
    owners = {unit: parameters_of(chosen.units[unit])[name] for unit, own in chosen.own.items() if name in own}
    first = next(iter(owners.values()))
    defaults = {unit: info.default for unit, info in owners.items() if not info.is_required()}
    same = len(set(map(repr, defaults.values()))) == 1 and len(defaults) == len(owners)
    described = f"{', '.join(owners)}: {first.description}"
    extra: dict[str, Any] = {f"x-{chosen.group}": list(owners)}
    if same:
        extra["default"] = first.default
    elif defaults:
        described += f" Default: {', '.join(f'{unit} {default}' for unit, default in defaults.items())}."
    annotation: Any = first.annotation
    # The bounds belong to the value and not to null, so they stay inside.
    inner: Any = annotation if not first.metadata else _annotated(annotation, first.metadata)
    return inner | None, FieldInfo(default=None, description=described, json_schema_extra=extra)


def _annotated(annotation: Any, metadata: Sequence[Any]) -> Any:
    return Annotated[(annotation, *metadata)]


def _version_name(parameter: str) -> str:
    """What a key calls the version of a chosen unit."""
    return f"{parameter}_version"


REQUIRED = object()
"""Stands for the default of a parameter that must be given."""


def _defaults_of(unit: type[Unit]) -> tuple[tuple[str, Any], ...]:
    own = parameters_of(unit).items()
    return tuple((name, REQUIRED if info.is_required() else info.default) for name, info in own)


def _defaults(chosen: Chosen, name: str) -> list[Any]:
    return [
        parameters_of(unit)[name].default
        for unit in chosen.units.values()
        if name in parameters_of(unit) and not parameters_of(unit)[name].is_required()
    ]


def _foreign(chosen: Chosen, name: str, parameter: str, unit: str) -> str:
    return f"{_whose(chosen, name, parameter, unit)}: leave it out, or give null"


def _whose(chosen: Chosen, name: str, parameter: str, *units: str) -> str:
    owners = [unit for unit, own in chosen.own.items() if name in own]
    here = " and ".join(units) or "none"
    cells = f"this cell's {parameter} is {here}" if len(units) == 1 else f"the cells have {here}"
    return f"{name} is a parameter of the {parameter} {' and '.join(owners)}, and {cells}"


def _missing(choices: Mapping[str, Chosen], values: Mapping[str, Any], name: str) -> str:
    parameter, chosen = next(item for item in choices.items() if name in item[1].all)
    unit = values[parameter]
    description = parameters_of(chosen.units[unit])[name].description
    return f"the {chosen.group[:-1]} {unit} needs its {name}: {description}"


def _picker(names: tuple[str, ...]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    if len(names) > 1:
        return operator.itemgetter(*names)
    if names:
        return lambda values: (values[names[0]],)
    return lambda _: ()


@lru_cache(4096)
def _setting(unit: type[Unit], values: tuple[Any, ...]) -> Unit:
    return unit.of(dict(zip(parameters_of(unit), values, strict=True)))


def _each(names: Any) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names
