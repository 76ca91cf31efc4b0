"""Import of checkpoints: the state dict in a ``.pt`` file becomes an artifact, which sweeps use instead of training.

``python -m creditgrid.workers.importing FILE ROOT`` imports FILE (``-`` for standard input, which must be a file) into
the artifacts below ROOT and prints one line of JSON: a ``CheckpointView`` with ``created`` (false if the artifact was
there already), or ``error``. The exit status is 0, 2 when the file is refused, or 1. It is a process of its own because
the file is not trusted: it is read with ``weights_only``, which runs no code of it, and within a limit of memory.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import resource
import sys
import time
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import torch

from creditgrid.core.errors import ArtifactError, CheckpointError
from creditgrid.core.experiments.stages import checkpoint_task
from creditgrid.core.science.imported import SHOWN, check
from creditgrid.core.task import Arrays
from creditgrid.core.wire import CheckpointView
from creditgrid.workers.artifacts import ArtifactStore
from creditgrid.workers.provenance import provenance

REFUSED = 2
"""Exit status when the file is not the state dict of a residual MLP, or takes too much memory to read."""
MEMORY = 5 * 2**30
"""Bytes that the process may use: for the state dict of the largest accepted file, and for copies that are written."""
MAX_DIRECTORY_BYTES = 4 * 2**20
MAX_PICKLE_BYTES = 4 * 2**20
"""The longest lists of members and of tensors; those of the largest accepted network have some 200 KB."""
CPU_S = 5.0
RATE = 32 * 2**20
"""CPU seconds for reading and writing a checkpoint, and the bytes for which it may take one more."""
ADVICE = "save the state dict alone, by torch.save(model.state_dict(), FILE)"


_STRANGE = f"torch.save writes no such file: {ADVICE}"


def import_checkpoint(file: BinaryIO, store: ArtifactStore) -> tuple[CheckpointView, bool]:
    """Store the state dict in ``file`` as an artifact; the flag says whether the artifact is new.

    Raises:
        CheckpointError: when the file is not the state dict of a residual MLP.
        ArtifactError: when the artifact cannot be written.
        MemoryError: when the file takes more memory than there is.
    """
    started, started_at = time.perf_counter(), datetime.now(UTC)
    state = read_state_dict(file)
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()})
    _check_sizes(state, file.seek(0, os.SEEK_END))
    arrays = _arrays(state)
    name = check(arrays)
    task = checkpoint_task(str(name))
    created = not store.has(task.key)
    if created:
        origin = provenance(1, started_at, time.perf_counter() - started, torch.device("cpu"))
        store.save(task.key, task.payload(), arrays, origin | {"info": {"imported_from": dtypes}})
    return CheckpointView(name=str(name), key=task.key, **asdict(name), bytes=store.size(task.key)), created


def read_state_dict(file: BinaryIO) -> dict[str, torch.Tensor]:
    """The tensors by name of a state dict that ``torch.save`` wrote; no code in the file is run.

    Raises:
        CheckpointError: when the file holds anything else; the message says what.
        MemoryError: when the file takes more memory than there is.
    """
    try:
        _check_archive(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about formats and layouts that are refused below
            found = torch.load(file, map_location="cpu", weights_only=True)
    except (MemoryError, CheckpointError):
        raise
    except EOFError as error:
        raise CheckpointError(f"the file is empty or cut off: {ADVICE}") from error
    except Exception as error:  # torch.load raises many kinds of errors for files that are not trusted
        if isinstance(error, RuntimeError) and "alloc" in str(error):  # raised by torch's allocator
            raise MemoryError from error
        raise _refusal(error, file) from error
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise CheckpointError(f"the file holds {_describe(found)}, not a state dict: {ADVICE}")
    if strange := [name for name in found if not isinstance(name, str)]:
        raise CheckpointError(f"the file holds tensors whose names are not text, such as {strange[0]!r}: {ADVICE}")
    return dict(found)


def _check_archive(file: BinaryIO) -> None:
    """Check what a zip archive declares, then its checksums, because torch.load does not, and go back to the start."""
    if zipfile.is_zipfile(file):
        size = file.seek(0, os.SEEK_END)
        if (listed := _directory_bytes(file, size)) > MAX_DIRECTORY_BYTES:
            raise CheckpointError(f"the file's list of members has {listed:,} bytes, and {_STRANGE}")
        with zipfile.ZipFile(file) as archive:
            _check_members(archive.infolist(), size)
            if (damaged := archive.testzip()) is not None:
                raise CheckpointError(f"the file is damaged, the checksum of {damaged} in it is wrong: copy it again")
    file.seek(0)


def _directory_bytes(file: BinaryIO, size: int) -> int:
    """The length of a zip archive's list of members, as the end of the file declares it: zipfile reads all of it."""
    file.seek(max(0, size - 2**16 - 98))  # the end with the longest comment, and its 64-bit form before it
    tail = file.read()
    end = tail.rfind(b"PK\5\6")
    if end >= 76 and tail[end - 20 : end - 16] == b"PK\6\7":
        return int.from_bytes(tail[end - 36 : end - 28], "little")
    return int.from_bytes(tail[end + 12 : end + 16], "little")


def _check_members(members: Sequence[zipfile.ZipInfo], size: int) -> None:
    """Refuse members that torch.save would not write, by what the archive of ``size`` bytes declares."""
    if compressed := [member for member in members if member.compress_type != zipfile.ZIP_STORED]:
        raise CheckpointError(f"{compressed[0].filename:.80} in the file is compressed, and {_STRANGE}")
    if (declared := sum(max(member.file_size, member.compress_size) for member in members)) > size:
        raise CheckpointError(f"the file has {size:,} bytes, declares members of {declared:,}, and {_STRANGE}")
    if len({member.filename for member in members}) < len(members):
        raise CheckpointError(f"two members of the file have one name, and {_STRANGE}")
    for member in members:
        if member.filename.startswith("/") or ".." in member.filename.split("/"):
            raise CheckpointError(f"{member.filename!r:.80} in the file is no name of a member, and {_STRANGE}")
        if member.filename.endswith(".pkl") and member.file_size > MAX_PICKLE_BYTES:
            raise CheckpointError(f"{member.filename:.80} in the file has {member.file_size:,} bytes, and {_STRANGE}")


def _refusal(error: Exception, file: BinaryIO) -> CheckpointError:
    file.seek(0)
    start = file.read(2)
    if isinstance(error, pickle.UnpicklingError) and (start == b"PK" or start[:1] == b"\x80" or "GLOBAL" in str(error)):
        called = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({called[1]:.80})" if called else ""
        return CheckpointError(f"the file holds code or pickled objects{what}, which are not loaded: {ADVICE}")
    if "TorchScript" in str(error):
        return CheckpointError(f"the file is a TorchScript archive, which holds code: {ADVICE}")
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if start in (b"PK", b"\x80\x02"):
        return CheckpointError(f"the file is damaged, or was not written by torch.save ({reason:.200}): {ADVICE}")
    return CheckpointError(f"the file was not written by torch.save: {ADVICE}")


def _describe(found: object) -> str:
    if not isinstance(found, Mapping):
        return f"a single object of type {type(found).__name__}"
    entries = []
    for name, value in list(found.items())[:SHOWN]:
        kind = f"a dict of {len(value):,}" if isinstance(value, Mapping) else type(value).__name__
        entries.append(f"{name!r:.80} ({kind})")
    more = f" and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
    return f"a dict of {', '.join(entries)}{more}"


def _check_sizes(state: Mapping[str, torch.Tensor], size: int) -> None:
    """Refuse tensors that have more values than a file of ``size`` bytes holds: views that repeat or share values."""
    dense = [tensor for tensor in state.values() if tensor.layout == torch.strided and not tensor.is_meta]
    if (total := sum(tensor.numel() * tensor.element_size() for tensor in dense)) > size:
        raise CheckpointError(
            f"the tensors have {total:,} bytes, and the file {size:,}: some of them repeat or share values; "
            "save copies, by torch.save({name: tensor.clone() for name, tensor in model.state_dict().items()}, FILE)"
        )


def _arrays(state: dict[str, torch.Tensor]) -> Arrays:
    """The tensors as float32 arrays; ``state`` is emptied meanwhile, so that few tensors are in memory twice."""
    arrays = {}
    for name in list(state):
        tensor = state.pop(name).detach()
        if tensor.layout != torch.strided or tensor.is_meta:
            what = "has no values (device meta)" if tensor.is_meta else f"is sparse ({tensor.layout})"
            raise CheckpointError(f"{name:.80} {what}, but a dense tensor of floats was expected")
        if not tensor.is_floating_point():
            raise CheckpointError(f"{name:.80} is of type {tensor.dtype}, but floating-point numbers were expected")
        arrays[name] = tensor.to(torch.float32).numpy()
    return arrays


def main(arguments: Sequence[str]) -> int:
    """Import, print one line of JSON, and return the exit status."""
    name, root = arguments
    limit_memory()
    status, outcome = 0, dict[str, Any]()
    try:
        with nullcontext(sys.stdin.buffer) if name == "-" else Path(name).open("rb") as file:
            limit_time(os.fstat(file.fileno()).st_size)
            view, created = import_checkpoint(file, ArtifactStore(Path(root).absolute()))
        outcome = view.model_dump() | {"created": created}
    except CheckpointError as error:
        status, outcome = REFUSED, {"error": str(error)}
    except MemoryError:
        reason = f"reading the file takes more than {MEMORY >> 30} GiB of memory"
        status, outcome = REFUSED, {"error": f"{reason}: it is too large for a checkpoint, or damaged"}
    except (ArtifactError, OSError) as error:
        status, outcome = 1, {"error": str(error)}
    sys.stdout.write(json.dumps(outcome) + "\n")
    return status


def limit_memory() -> None:
    """Limit the memory of this process to ``MEMORY``, or to a lower limit that it already has."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def limit_time(size: int) -> None:
    """Let the kernel end this process when it has used too much time for a file of ``size`` bytes.

    An unpickler can be kept busy in one step for ever: by a key of the dict, (a, a) with a = (b, b), and so on.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    limits = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    limit = math.ceil(time.process_time() + CPU_S + size / RATE)
    resource.setrlimit(resource.RLIMIT_CPU, (min([limit, *limits]), hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
