"""Units written as functions: ``@rule``, ``@dataset`` and ``@measurement`` make the class from the function.

The class has the function's name, docstring, module and source line. A method and a network are classes: they have
several parts.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

from pydantic.fields import FieldInfo

from creditgrid.core.experiment import Column
from creditgrid.core.units.dataset import Dataset
from creditgrid.core.units.measurement import Measured, Measurement
from creditgrid.core.units.rule import Rule
from creditgrid.core.units.unit import Unit

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Made = TypeVar("Made", bound=Unit)
Value: TypeAlias = float | int | str | bool | None


@overload
def rule(function: Callable[..., Tensor]) -> type[Rule]: ...
@overload
def rule(*, normalises: bool = False, version: int = 1) -> Callable[[Callable[..., Tensor]], type[Rule]]: ...
def rule(
    function: Callable[..., Tensor] | None = None, *, normalises: bool = False, version: int = 1
) -> type[Rule] | Callable[[Callable[..., Tensor]], type[Rule]]:
    """An update rule from a function ``(branch, credit) -> ∂loss_l/∂F``, see `Rule.output_gradient`.

    Further arguments are parameters of the rule, each with a type and a ``Field``:
    ``kappa: float = Field(0.1, gt=0, description="The shift κ.")``.

    Raises:
        TypeError: an argument is not one of these.
    """

    def decorate(function: Callable[..., Tensor]) -> type[Rule]:
        own = _parameters(function, ("branch", "credit"))

        def output_gradient(self: Rule, branch: Tensor, credit: Tensor) -> Tensor:
            return function(branch, credit, **{name: getattr(self, name) for name in own})

        namespace = {"normalises": normalises, "version": version, "output_gradient": output_gradient}
        return _unit(Rule, function, namespace, own)

    return decorate if function is None else decorate(function)


def dataset(
    *,
    fingerprint: str,
    image_shape: tuple[int, int, int],
    num_train: int,
    num_test: int,
    num_classes: int,
    version: int = 1,
) -> Callable[[Callable[[], Mapping[str, np.ndarray[Any, Any]]]], type[Dataset]]:
    """A dataset from a function without arguments that gives the arrays, see `Dataset`.

    Raises:
        TypeError: the function has arguments.
    """

    def decorate(function: Callable[[], Mapping[str, np.ndarray[Any, Any]]]) -> type[Dataset]:
        _parameters(function, (), bare=True)

        def load(self: Dataset) -> Mapping[str, np.ndarray[Any, Any]]:  # noqa: ARG001
            return function()

        namespace = {
            "fingerprint": fingerprint,
            "image_shape": image_shape,
            "num_train": num_train,
            "num_test": num_test,
            "num_classes": num_classes,
            "version": version,
            "load": load,
        }
        return _unit(Dataset, function, namespace)

    return decorate


def measurement(
    *, columns: Mapping[str, Column | str], after_step: bool = False, version: int = 1
) -> Callable[[Callable[[Measured], Mapping[str, Value]]], type[Measurement]]:
    """A measurement from a function of `Measured` that gives the value of each column.

    ``columns`` maps a name to its `Column`; a text alone describes a column of the type float64, with its unit.

    Raises:
        TypeError: the function has another argument.
    """

    def decorate(function: Callable[[Measured], Mapping[str, Value]]) -> type[Measurement]:
        _parameters(function, ("measured",), bare=True)

        def measure(self: Measurement, measured: Measured) -> Mapping[str, Value]:  # noqa: ARG001
            return function(measured)

        described = {
            name: Column("float64", column) if isinstance(column, str) else column for name, column in columns.items()
        }
        namespace = {"columns": described, "after_step": after_step, "version": version, "measure": measure}
        return _unit(Measurement, function, namespace)

    return decorate


def _parameters(function: Callable[..., Any], given: tuple[str, ...], *, bare: bool = False) -> dict[str, Any]:
    """The arguments after the first ``len(given)``: {name: (type, default)}, as fields of a model."""
    name = getattr(function, "__name__", repr(function))
    arguments = list(inspect.signature(function).parameters.values())
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    positional = [argument for argument in arguments[: len(given)] if argument.kind is plain[0]]
    if len(positional) < len(given) or (bare and len(arguments) > len(given)):
        raise TypeError(f"{name} takes {', '.join(given) or 'no arguments'}, in this order; it has {_list(arguments)}")
    fields = {}
    for argument in arguments[len(given) :]:
        if argument.kind not in plain or argument.annotation is argument.empty:
            raise TypeError(
                f"{name}: the parameter {argument.name} needs a type, as in {argument.name}: float = Field(…)"
            )
        annotation = argument.annotation
        if isinstance(annotation, str):  # of a file with `from __future__ import annotations`
            annotation = eval(annotation, getattr(function, "__globals__", {}))  # noqa: S307 (the author's own text)
        default = FieldInfo() if argument.default is argument.empty else argument.default
        fields[argument.name] = (annotation, default)
    return fields


def _list(arguments: list[inspect.Parameter]) -> str:
    return ", ".join(argument.name for argument in arguments) or "none"


def _unit(
    base: type[Made],
    function: Callable[..., Any],
    namespace: Mapping[str, Any],
    fields: Mapping[str, Any] | None = None,
) -> type[Made]:
    """The class that stands for the function. `inspect` finds its source by ``__wrapped__``."""
    fields = fields or {}
    body = {
        **namespace,
        **{name: default for name, (_, default) in fields.items()},
        "__annotations__": {name: annotation for name, (annotation, _) in fields.items()},
        "__doc__": function.__doc__,
        "__module__": function.__module__,
        "__qualname__": function.__qualname__,
        "__wrapped__": staticmethod(function),
        "name": function.__name__,
    }
    for name in fields:
        if hasattr(base, name) or name in base.__class_vars__:
            raise TypeError(f"{function.__name__}: every unit has {name!r} already: rename the parameter")
    made: Any = types.new_class(function.__name__, (base,), exec_body=lambda namespace: namespace.update(body))
    unit: type[Made] = made
    return unit
