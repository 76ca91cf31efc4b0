"""What a sweep is extended by, as it is written on a command line: values of axes, cells, and a file with both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from creditgrid.client.errors import BadSetting
from creditgrid.client.spec import load_spec, resolve_datasets
from creditgrid.core.errors import Fault, SpecError
from creditgrid.core.spec.text import parse_text

PARTS = ("axes", "include")


def extension(
    axes: Sequence[str], include: Sequence[str], file: str | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Axes by name and included cells.

    Args:
        axes: ``eta=0.1,0.3``, ``method=vec`` or ``eta={logspace: [1e-5, 1e-2, 4]}``; values are read as YAML. More
            values of one axis are added to the earlier ones.
        include: cells as YAML or JSON mappings.
        file: of a mapping with ``axes`` and ``include``; ``-`` is standard input. It comes first.

    Raises:
        BadSetting: for an option that cannot be read.
        SpecError: for a file that cannot be read, or that holds anything else.
    """
    found: dict[str, Any] = {"axes": {}, "include": []}
    if file is not None:
        found |= _loaded(file)
    for text in axes:
        name, separator, values = text.partition("=")
        if not separator or not name.strip() or not values.strip():
            raise BadSetting(f"--axis {text}: write it like --axis eta=0.1,0.3")
        _add(found["axes"], name.strip(), _axis(text, values.strip()))
    for text in include:
        cell = _yaml(f"--include {text}", text)
        if not isinstance(cell, dict):
            raise BadSetting(f"--include {text}: write a cell like '{{method: vec, eta: 0.1}}'")
        found["include"].append(cell)
    resolve_datasets(found, Path.cwd())  # a file's are absolute by now
    return found["axes"], found["include"]


def _loaded(file: str) -> dict[str, Any]:
    more = load_spec(file)
    faults = [
        Fault(f"{file}: a sweep is extended by {' and '.join(PARTS)}, not by {name!r}", f"/{name}")
        for name in more
        if name not in PARTS
    ]
    for name, kind, what in (("axes", dict, "a mapping of names to values"), ("include", list, "a list of cells")):
        if not isinstance(more.get(name, kind()), kind):
            faults.append(Fault(f"{file}: {name} is {what}", f"/{name}"))
    if faults:
        raise SpecError(faults)
    return more


def _axis(option: str, values: str) -> Any:
    """A list, or a generator."""
    if values.startswith("{"):
        return _yaml(f"--axis {option}", values)
    return _yaml(f"--axis {option}", values if values.startswith("[") else f"[{values}]")


def _add(axes: dict[str, Any], name: str, values: Any) -> None:
    if name not in axes:
        axes[name] = values
    elif isinstance(axes[name], list) and isinstance(values, list):
        axes[name] = [*axes[name], *values]
    else:
        raise BadSetting(f"--axis {name}: a generator of values stands alone; give the other values as a list")


def _yaml(option: str, text: str) -> Any:
    try:
        return parse_text(text.encode(errors="surrogateescape"))
    except SpecError as error:
        raise BadSetting(f"{option}: {error.faults[0].detail}") from error
