"""The conditions under which a number was made: software versions, source revision, machine, device."""

from __future__ import annotations

import contextlib
import platform
import socket
import subprocess
from datetime import datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def provenance(attempt: int, started_at: datetime, seconds: float, device: Any) -> dict[str, Any]:
    """What the record of an artifact, and each row, says about how it was made; JSON."""
    return {
        **software(),
        "attempt": attempt,
        "started_at": started_at.isoformat(),
        "seconds": seconds,
        "device": device_name(device),
        "host": host(),
    }


@lru_cache(1)
def software() -> dict[str, Any]:
    """``torch`` and ``version`` (of CreditGrid); ``commit`` and ``dirty`` if the source is a git checkout."""
    file = Path(__file__).resolve()
    commit = dirty = None
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # no git, or no checkout that holds this file
        # site-packages may be inside another project's checkout, which says nothing about this code
        _git(file.parent, "ls-files", "--error-unmatch", file.name)
        commit = _git(file.parent, "rev-parse", "HEAD")
        dirty = bool(_git(file.parent, "status", "--porcelain", "--untracked-files=no"))
    return {"torch": _version("torch"), "version": _version("creditgrid"), "commit": commit, "dirty": dirty}


@lru_cache(1)
def host() -> str:
    """The machine's name."""
    return socket.gethostname()


def device_name(device: Any) -> str:
    """A readable name: ``cpu (x86_64)`` or ``cuda (NVIDIA H100)``."""
    if device.type == "cuda":
        import torch

        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({platform.machine()})"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # a source tree that is not installed
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    answer = subprocess.run(command, capture_output=True, timeout=10, check=True, text=True)
    return answer.stdout.strip()
