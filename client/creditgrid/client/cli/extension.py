"""The extension of a sweep as command-line options: values of axes, cells, and a file with both."""

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
        axes: ``eta=0.1,0.3``, ``method=vec`` or ``eta={logspace: [1e-5, 1e-2, 4]}``; values are YAML. Several options
            for one axis are joined.
        include: cells as YAML or JSON mappings.
        file: a mapping with ``axes`` and ``include``, which come before the options'; ``-`` is standard input.

    Raises:
        BadSetting: for an option that cannot be read.
        SpecError: for a file that cannot be read, or that has other keys.
    """
    found: dict[str, Any] = {"axes": {}, "include": []}
    if file is not None:
        found |= _loaded(file)
    for text in axes:
        name, separator, values = text.partition("=")
        if not separator or not name.strip() or not values.strip():
            raise BadSetting(f"--axis {text}: write it as --axis eta=0.1,0.3")
        _add(found["axes"], name.strip(), _axis(text, values.strip()))
    for text in include:
        cell = _yaml(f"--include {text}", text)
        if not isinstance(cell, dict):
            raise BadSetting(f"--include {text}: write a cell as '{{method: vec, eta: 0.1}}'")
        found["include"].append(cell)
    resolve_datasets(found, Path.cwd())  # those of a file are absolute already
    return found["axes"], found["include"]


def _loaded(file: str) -> dict[str, Any]:
    more = load_spec(file)
    faults = [
        Fault(f"{file}: an extension has {' and '.join(PARTS)}, not {name!r}", f"/{name}")
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
        raise BadSetting(f"--axis {name}: a generator cannot be joined with other values; give all of them as a list")


def _yaml(option: str, text: str) -> Any:
    try:
        return parse_text(text.encode(errors="surrogateescape"))
    except SpecError as error:
        raise BadSetting(f"{option}: {error.faults[0].detail}") from error
