"""From the text of a spec to named cells: read, validated, its datasets resolved, and expanded.

Nothing here reads the ledger or the store. The service does it in a process of its own, see ``naming_process``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.errors import Fault, ForbiddenError, PluginError, SpecError
from creditgrid.core.experiments.registry import Registry, registry
from creditgrid.core.naming import Chunk, name_cells, resolve_datasets
from creditgrid.core.spec.extension import extended, forms, in_extension
from creditgrid.core.spec.grid import Grid
from creditgrid.core.spec.model import MEASURE, SweepSpec, parse
from creditgrid.core.spec.text import SpecText
from creditgrid.core.spec.validation import validate
from creditgrid.core.wire import Extension

Resolve: TypeAlias = Callable[[str], DatasetRef]
Bring: TypeAlias = Callable[[str], Registry]
"""The experiments with the units of the code that has this SHA-256; it is imported."""


@dataclass(frozen=True, slots=True)
class NamingRequest:
    """Which cells to name.

    Args:
        text: the spec as it arrived, or the JSON of one that was read before.
        extensions: its extensions so far.
        extension: one more; then only the cells that it adds are named.
        only: if given, only the cells with these indices are named.
    """

    text: SpecText | str
    extensions: Sequence[Mapping[str, Any]] = ()
    extension: Mapping[str, Any] | None = None
    only: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of a spec once it is validated.

    ``cells`` is the most cells that it can have, ``document`` its JSON, ``code`` the SHA-256 of its code,
    ``measurements`` what it measures besides.
    """

    name: str
    experiment: str
    priority: int
    cells: int
    document: str
    code: str | None = None
    measurements: tuple[str, ...] = ()


Naming: TypeAlias = Generator[Header | Chunk]
"""A header, then chunks. Closing it early is allowed."""
Namer: TypeAlias = Callable[[NamingRequest, Callable[[], None]], Naming]
"""Names what a request asks for. The second argument raises when nobody wants the answer any more."""


def no_code(sha256: str) -> Any:
    """Refuse the code of a spec.

    Raises:
        ForbiddenError: always.
    """
    raise ForbiddenError(f"the spec brings the code {sha256[:12]}, and no code is taken here")


def name(request: NamingRequest, resolve: Resolve, bring: Bring = no_code) -> Naming:
    """The header and the chunks.

    Raises:
        SpecError: with a pointer to each fault, into the extension if there is one.
        ForbiddenError: the spec brings code, and the service takes none.
        PluginError: the experiment's own code raises.
    """
    document = json.loads(request.text) if isinstance(request.text, str) else request.text.parse()
    found: list[Any] = forms(document, request.extensions) if request.extensions else [document]
    if request.extension is None:
        yield from _name(request, found, resolve, bring)
        return
    extension = Extension.model_validate(request.extension)
    found.append(extended(found[-1], extension))
    try:
        yield from _name(request, found, resolve, bring)
    except SpecError as error:
        raise in_extension(error, found[-2], extension) from error


def _name(request: NamingRequest, found: Sequence[Any], resolve: Resolve, bring: Bring) -> Naming:
    specs = [parse(form) for form in found]
    known = _known(specs[-1].code, bring)
    *earlier, grid = [_grid(spec, known) for spec in specs]
    whole = replace(grid, earlier=tuple(earlier))
    datasets = resolve_datasets(whole, resolve)
    spec = grid.spec
    document, measurements = json.dumps(found[0]), tuple(spec.measurements)
    yield Header(spec.name, spec.experiment, spec.priority, grid.size(), document, spec.code, measurements)
    first = sum(sum(1 for _ in form.cells()) for form in earlier) if request.extension is not None else 0
    kinds = known.kinds_of(grid.experiment)
    yield from name_cells(whole, kinds, datasets, only=request.only, first=first)


def _known(code: str | None, bring: Bring) -> Registry:
    """The experiments, with the units of a spec's code."""
    if code is None:
        return registry()
    try:
        return bring(code)
    except PluginError as error:
        raise SpecError([Fault(str(error), "/code")]) from error


def _grid(spec: SweepSpec, known: Registry) -> Grid:
    experiment = known.experiment(spec.experiment)
    kinds = known.kinds_of(experiment)
    return validate(spec, experiment, (kinds.keys() - {experiment.measure.name}) | {MEASURE})
