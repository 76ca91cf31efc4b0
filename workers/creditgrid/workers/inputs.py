"""The inputs of a call: all of them, or a failure that names the missing ones."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TypeVar

from creditgrid.core.errors import ArtifactCorrupt, ArtifactError, ArtifactMissing
from creditgrid.workers.runner import Call, Failed

Loaded = TypeVar("Loaded")


def load_inputs(call: Call, load: Callable[[str], Loaded]) -> list[Loaded] | Failed:
    """``load`` of each of the call's inputs, in their order.

    ``Failed.missing`` names every input that the store does not hold complete: these must be made again. An input that
    merely cannot be read now (an ``OSError``) makes a transient failure.
    """
    loaded: list[Loaded] = []
    missing: dict[str, str] = {}
    for key in call.inputs:
        try:
            loaded.append(load(key))
        except (ArtifactMissing, ArtifactCorrupt) as error:
            missing[key] = str(error)
        except (OSError, ArtifactError) as error:
            return Failed(call.id, str(error), traceback.format_exc(), transient=True)
    if missing:
        return Failed(call.id, "; ".join(missing.values()), "", transient=False, missing=tuple(missing))
    return loaded
