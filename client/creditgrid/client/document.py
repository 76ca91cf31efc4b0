"""A spec as the JSON document that is sent: plain values only, and none that JSON cannot carry."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import BaseModel

from creditgrid.client.spec_file import load_spec
from creditgrid.core.errors import Fault, SpecError

Spec: TypeAlias = Mapping[str, Any] | BaseModel | str | Path
"""A sweep spec: a mapping, a core.spec.model.SweepSpec, or the path of a YAML or JSON file."""


def document(spec: Spec) -> dict[str, Any]:
    """``spec`` as plain JSON values; NumPy's numbers and tuples become Python's.

    Raises:
        SpecError: pointing at each value that JSON cannot carry (NaN, infinities, arrays, objects).
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
        faults.append(Fault(f"a spec is a mapping, a SweepSpec or a path; got {_shown(spec)}", ""))
    if faults:
        raise SpecError(faults)
    return dict(plain)


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
            Fault(f"the key {_shown(key)} is not a string", where) for key in value if not isinstance(key, str)
        )
        return {key: _plain(item, f"{where}/{_escaped(str(key))}", faults) for key, item in value.items()}
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(item, f"{where}/{index}", faults) for index, item in enumerate(value)]
    else:
        hint = ": use .tolist()" if hasattr(value, "tolist") else ": use str()" if isinstance(value, Path) else ""
        faults.append(Fault(f"a spec holds plain values, not {type(value).__name__}{hint}", where))
    return None


def _escaped(step: str) -> str:
    return step.replace("~", "~0").replace("/", "~1")


def _shown(value: object) -> str:
    return f"{value!r:.80}"
