"""Checks of measurements."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from creditgrid.core.contract import tiny
from creditgrid.core.contract.checks import Checks, Violation
from creditgrid.core.contract.random_state import seeded, watched
from creditgrid.core.experiment import Column
from creditgrid.core.rows import RESERVED
from creditgrid.core.science.measuring import plain
from creditgrid.core.science.random_streams import generator
from creditgrid.core.units.measurement import Measured, Measurement
from creditgrid.core.units.unit import NAME

TYPES: Mapping[str, tuple[type, ...]] = {
    "float64": (numbers.Real,),
    "int64": (numbers.Integral,),
    "string": (str,),
    "bool": (bool,),
}


class AppliedMeasurement:
    """A measurement, and what it measures on a small network."""

    group = "measurements"

    def __init__(self, written: type[Measurement], device: torch.device | str = "cpu") -> None:
        self.written, self.name, self.device = written, written.name, torch.device(device)

    def measured(self, *, update: bool = True, residual_add: bool = True) -> Measured:
        """What it sees: a network, a batch, and with ``update`` the changes of the last block and the head."""
        network = tiny.network(self.device, residual_add=residual_add)
        x, y = tiny.batch(network)
        draws = generator(4, "contract/update")
        moved = {
            name: (1e-3 * torch.randn(p.shape, generator=draws)).to(p)
            for name, p in network.named_parameters()
            if not name.startswith("embed")
        }
        return Measured(network, x, y, moved if update else None)

    def values(self, measured: Measured) -> Mapping[str, Any]:
        """Its columns.

        Raises:
            Violation: they are not those that it declares.
        """
        found = self.written().measure(measured)
        if not isinstance(found, Mapping):
            raise Violation(f"measure() gave a {type(found).__name__}, and must give a mapping of its columns")
        if found.keys() != self.written.columns.keys():
            raise Violation(
                f"measure() gave the columns {', '.join(map(str, found)) or 'none'}, and it declares "
                f"{', '.join(self.written.columns)}"
            )
        return {name: plain(value) for name, value in found.items()}

    def situations(self) -> Iterator[tuple[str, Measured]]:
        """Where it may be asked: after a step, and at a checkpoint unless it needs a step."""
        yield "after a step", self.measured()
        if not self.written.after_step:
            yield "at a checkpoint", self.measured(update=False)
        yield "without a residual path", self.measured(residual_add=False)


CHECKS: Checks[AppliedMeasurement] = Checks()


@CHECKS.add("its columns are declared well", why="They become columns of the rows.", basic=True)
def columns(subject: AppliedMeasurement) -> Iterator[str]:
    declared = getattr(subject.written, "columns", None)
    if not isinstance(declared, Mapping) or not declared:
        yield "it declares no columns"
        return
    for name, column in declared.items():
        if not re.fullmatch(NAME, str(name)):
            yield f"the column {name!r} is not lower_case_with_underscores"
        elif name in RESERVED:
            yield f"the column {name!r} is one of every row: choose another name"
        if not isinstance(column, Column) or column.type not in TYPES or not column.description:
            yield f"the column {name!r} needs a Column with a type and a description with its unit"


@CHECKS.add("it gives its columns", why="A column that it declares is in every row.", of="measure", basic=True)
def gives(subject: AppliedMeasurement) -> Iterator[str]:
    for where, measured in subject.situations():
        for name, value in subject.values(measured).items():
            column = subject.written.columns[name]
            if value is None:
                continue
            fits = isinstance(value, TYPES[column.type]) and (column.type == "bool" or not isinstance(value, bool))
            if not fits:
                yield f"{where} {name} is {value!r:.100} ({type(value).__name__}), and its type is {column.type}"
            elif isinstance(value, numbers.Real) and not math.isfinite(value):
                yield f"{where} {name} is {value}: give None where there is no number"


@CHECKS.add(
    "equal inputs give equal values", why="A task that runs again must give the same rows.", of="measure", quick=True
)
def deterministic(subject: AppliedMeasurement) -> Iterator[str]:
    measured, found = subject.measured(), []
    for seed in (1, 2):
        with seeded(seed):
            found.append(subject.values(measured))
    for name, value in found[0].items():
        if value != found[1][name]:
            yield f"two calls give {name} {value!r:.50} and {found[1][name]!r:.50}"


@CHECKS.add(
    "the global random state is left alone",
    why="Every random number has a stream of its own.",
    of="measure",
    quick=True,
)
def global_state(subject: AppliedMeasurement) -> Iterator[str]:
    changed: list[str] = []
    with watched(changed):
        subject.values(subject.measured())
    yield from (f"it changes the global state of {library}" for library in changed)


@CHECKS.add("what it sees does not change", why="The experiment uses the same tensors.", of="measure", quick=True)
def unchanged(subject: AppliedMeasurement) -> Iterator[str]:
    measured = subject.measured()
    assert measured.update is not None
    seen = {"x": measured.x, "y": measured.y, **dict(measured.network.named_parameters())}
    seen |= {f"the update of {name}": tensor for name, tensor in measured.update.items()}
    before = {name: tensor.clone() for name, tensor in seen.items()}
    subject.values(measured)
    for name, tensor in seen.items():
        if not torch.equal(tensor, before[name]):
            yield f"it changes {name}"
        if tensor.grad is not None:
            yield f"it leaves a gradient at {name}"
