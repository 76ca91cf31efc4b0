"""Reading a sweep spec from a file or from standard input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from creditgrid.core.errors import Fault, SpecError
from creditgrid.core.spec.text import parse_text
from creditgrid.core.wire import MAX_SPEC_BYTES

STDIN = "-"


def load_spec(path: str | Path) -> dict[str, Any]:
    """The spec in a YAML or JSON file, or on standard input for ``-``; not yet validated.

    Datasets written as ``./folder`` or ``../folder`` become absolute paths, from the file's folder on (from the current
    one for standard input): the service does not know where the file was.

    Raises:
        SpecError: for a file that is missing, unreadable, too large, or no mapping in YAML or JSON.
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


def resolve_datasets(spec: dict[str, Any], folder: Path) -> None:
    """Make the paths of datasets in ``spec`` that are written as ``./folder`` or ``../folder`` absolute."""
    for part in (spec.get("fixed"), *_entries(spec.get("include")), *_entries(spec.get("exclude"))):
        if isinstance(part, dict) and "dataset" in part:
            part["dataset"] = _resolved(part["dataset"], folder)
    axes = spec.get("axes")
    if isinstance(axes, dict) and isinstance(axes.get("dataset"), list):
        axes["dataset"] = [_resolved(name, folder) for name in axes["dataset"]]


def _entries(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _resolved(name: Any, folder: Path) -> Any:
    if isinstance(name, str) and name.startswith(("./", "../")):
        return str((folder / name).resolve())
    return name
