"""Sweep specs as the JSON document that is sent: from a mapping, a model, a YAML or JSON file, or standard input."""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import BaseModel

from creditgrid.core.errors import Fault, SpecError
from creditgrid.core.spec.faults import pointer, shown
from creditgrid.core.spec.text import parse_text
from creditgrid.core.wire import MAX_SPEC_BYTES

Spec: TypeAlias = Mapping[str, Any] | BaseModel | str | Path
"""A sweep spec: a mapping, a core.spec.model.SweepSpec, or the path of a YAML or JSON file."""
STDIN = "-"


def spec_document(spec: Spec) -> dict[str, Any]:
    """``spec`` as plain JSON values; NumPy's numbers and tuples become Python's numbers and lists.

    Raises:
        SpecError: with a pointer to each value that JSON cannot hold (NaN, infinities, arrays, objects).
    """
    if isinstance(spec, str | Path):
        value: Any = load_spec(spec)
    elif isinstance(spec, BaseModel):
        value = spec.model_dump()
    else:
        value = spec
    faults: list[Fault] = []
    plain = _plain(value, "", faults)
    if not faults and not isinstance(plain, dict):
        faults.append(Fault(f"a spec is a mapping, a SweepSpec or a path; got {shown(spec)}", ""))
    if faults:
        raise SpecError(faults)
    return dict(plain)


def load_spec(path: str | Path) -> dict[str, Any]:
    """The spec in a YAML or JSON file, or on standard input for ``-``; not yet validated.

    Datasets written as ``./folder`` or ``../folder`` become absolute paths, because the service does not know where the
    file was. They are relative to the file's folder, or to the current one for standard input.

    Raises:
        SpecError: for a file that is missing, unreadable, too large, or not a mapping in YAML or JSON.
    """
    if str(path) == STDIN:
        data, folder = sys.stdin.buffer.read(MAX_SPEC_BYTES + 1), Path.cwd()
    else:
        data, folder = _read(Path(path)), Path(path).absolute().parent
    try:
        spec = parse_text(data)
    except SpecError as error:
        raise SpecError([Fault(f"{_named(path)}: {f.detail}", f.pointer) for f in error.faults]) from error
    if not isinstance(spec, dict):
        got = "nothing" if spec is None else f"a {type(spec).__name__}"
        raise _refusal(path, f"a sweep spec is a mapping with name, experiment, axes, …; the file holds {got}")
    resolve_datasets(spec, folder)
    return spec


def resolve_datasets(spec: dict[str, Any], folder: Path) -> None:
    """Make the datasets in ``spec`` that are written as ``./folder`` or ``../folder`` absolute paths."""
    for part in (spec.get("fixed"), *_entries(spec.get("include")), *_entries(spec.get("exclude"))):
        if isinstance(part, dict) and "dataset" in part:
            part["dataset"] = _resolved(part["dataset"], folder)
    axes = spec.get("axes")
    if isinstance(axes, dict) and isinstance(axes.get("dataset"), list):
        axes["dataset"] = [_resolved(name, folder) for name in axes["dataset"]]


def _plain(value: Any, where: str, faults: list[Fault]) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        if math.isfinite(number := float(value)):
            return number
        faults.append(Fault(f"{number} is not a finite number", where))
    elif isinstance(value, Mapping):
        faults.extend(
            Fault(f"the key {shown(key)} is not a string", where) for key in value if not isinstance(key, str)
        )
        return {key: _plain(item, where + pointer(str(key)), faults) for key, item in value.items()}
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(item, where + pointer(index), faults) for index, item in enumerate(value)]
    else:
        hint = ": use .tolist()" if hasattr(value, "tolist") else ": use str()" if isinstance(value, Path) else ""
        faults.append(Fault(f"a spec holds plain values, not {type(value).__name__}{hint}", where))
    return None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size > MAX_SPEC_BYTES:
                raise _refusal(path, f"the file is {size:,} bytes long, more than the {MAX_SPEC_BYTES:,} that are read")
            return file.read(MAX_SPEC_BYTES + 1)  # pipes and devices have no size
    except FileNotFoundError as error:
        raise _refusal(path, "there is no such file") from error
    except IsADirectoryError as error:
        raise _refusal(path, "that is a folder; give a YAML or JSON file") from error
    except OSError as error:
        raise _refusal(path, f"cannot be read: {error.strerror}") from error


def _refusal(path: str | Path, detail: str) -> SpecError:
    return SpecError([Fault(f"{_named(path)}: {detail}", "")])


def _named(path: str | Path) -> str:
    return "standard input" if str(path) == STDIN else str(path)


def _entries(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _resolved(name: Any, folder: Path) -> Any:
    if isinstance(name, str) and name.startswith(("./", "../")):
        return str((folder / name).resolve())
    return name
