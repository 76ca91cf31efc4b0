"""Uploads that are no checkpoint of ours: bombs, code, lies and damage. Each is answered by a 4xx within seconds."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

Upload: TypeAlias = bytes | Callable[[Path], None]
"""The bytes, or a function that writes the file."""
GLOBALS = {
    "os.system": b"cposix\nsystem\n(S'touch /tmp/creditgrid-attacked'\ntR.",
    "subprocess": b"csubprocess\nPopen\n((lS'touch'\naS'/tmp/creditgrid-attacked'\natR.",
    "eval": b"cbuiltins\neval\n(S'1+1'\ntR.",
    "exec": b"cbuiltins\nexec\n(S'import os'\ntR.",
    "open": b"cbuiltins\nopen\n(S'/etc/passwd'\ntR.",
    "getattr": b"cbuiltins\ngetattr\n(cos\nsystem\nS'x'\ntR.",
    "import": b"cbuiltins\n__import__\n(S'os'\ntR.",
    "torch.load": b"ctorch\nload\n(S'/etc/passwd'\ntR.",
    "torch.hub": b"ctorch.hub\nload\n(S'x'\ntR.",
    "numpy": b"cnumpy\nfromfile\n(S'/etc/passwd'\ntR.",
}
"""Pickles that call a function."""


def uploads() -> dict[str, Upload]:
    """Uploads by name."""
    return {**_formats(), **_pickles(), **_archives(), **_tensors(), **_damaged()}


def _formats() -> dict[str, Upload]:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    return {
        "nothing": b"",
        "one byte": b"\x80",
        "zeros": bytes(100_000),
        "text": b"embed.weight = 1\n",
        "JSON": b'{"embed.weight": [1, 2]}',
        "a picture": b"\x89PNG\r\n\x1a\n" + bytes(1000),
        "gzip": b"\x1f\x8b\x08\x00" + bytes(1000),
        "ELF": b"\x7fELF" + bytes(1000),
        "a script": b"#!/bin/sh\ntouch /tmp/creditgrid-attacked\n",
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(1000),
        "NumPy": b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(118),
        "Parquet": b"PAR1" + bytes(1000) + b"PAR1",
        "safetensors": struct.pack("<Q", 2) + b"{}",
        "safetensors with a huge header": struct.pack("<Q", 2**62) + b"{",
        "safetensors with a huge tensor": struct.pack("<Q", len(header)) + header,
        "safetensors with a deep header": struct.pack("<Q", 100_000) + b"[" * 100_000,
        "the end of a zip": b"PK\x05\x06" + bytes(18),
        "the start of a zip": b"PK\x03\x04" + bytes(1000),
        "the magic of torch": pickle.dumps(0x1950A86A20F9469CFC6C, 2),
        "a tar": b"sys_info".ljust(257, b"\0") + b"ustar\x0000" + bytes(1000),
        "a large hole": _hole,
    }


def _hole(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(50 * 2**20)


def _pickles() -> dict[str, Upload]:
    found: dict[str, Upload] = {}
    for name, code in GLOBALS.items():
        found[f"a pickle that calls {name}"] = code
        found[f"an archive that calls {name}"] = archive({"a/data.pkl": code, "a/version": b"3\n"})
        found[f"the old form that calls {name}"] = _old_form(code)
    nested = b"]" + b"]" * 100_000 + b"a" * 100_000 + b"."
    doubled = b"(lp0\n" + b"(lp1\n(g1\ng1\nl" * 50 + b"."
    pairs = b"\x80\x02)q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60)) + b"}h\x3cNs."
    for name, code in {
        "nested lists": nested,
        "lists of lists": doubled,
        "pairs of pairs as a key": pairs,
        "a long number": b"\x80\x02\x8b" + struct.pack("<i", 2**20) + b"\xff" * 2**20 + b".",
        "a negative length": b"\x80\x02\x8b" + struct.pack("<i", -1) + b".",
        "a huge string": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b".",
        "a huge frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b".",
        "a missing memo": b"h\x05.",
        "an empty stack": b".",
        "only marks": b"(" * 100_000 + b".",
        "protocol 255": b"\x80\xff.",
        "a persistent id": b"Pevil\n.",
        "an extension": b"\x80\x02\x82\x01.",
        "a list": pickle.dumps([1, 2, 3], 2),
        "None": pickle.dumps(None, 2),
        "an empty dict": pickle.dumps({}, 2),
    }.items():
        found[f"pickle: {name}"] = archive({"a/data.pkl": code, "a/version": b"3\n"})
    return found


def _archives() -> dict[str, Upload]:
    checkpoint = _saved(_state())
    zeros = bytes(2**20)
    many = {f"a/{number}": b"" for number in range(60_000)}
    inner = archive({"a/data.pkl": b".", "zeros": zeros}, zipfile.ZIP_DEFLATED)
    return {
        "an empty archive": archive({}),
        "a compressed bomb": _bomb,
        "an unused bomb in a checkpoint": _checkpoint_with_bomb,
        "bzip2": archive({"a/data.pkl": zeros}, zipfile.ZIP_BZIP2),
        "LZMA": archive({"a/data.pkl": zeros}, zipfile.ZIP_LZMA),
        "an archive in an archive": archive({"a/data.pkl": inner, "a/version": b"3\n"}),
        "archives in archives": _nested(30),
        "many members": archive(many),
        "a huge list of members": _listed,
        "one name twice": _with(checkpoint, {"archive/data.pkl": b"."}),
        "a path above": _with(checkpoint, {"../../../../tmp/creditgrid-attacked": b"x"}),
        "an absolute path": _with(checkpoint, {"/tmp/creditgrid-attacked": b"x"}),
        "a declared size of 4 GiB": _declared(checkpoint, 2**32 - 2),
        "a declared size of 2 GiB": _declared(checkpoint, 2**31),
        "TorchScript": archive({"a/constants.pkl": b".", "a/code/x.py": b"import os", "a/data.pkl": b"}."}),
        "no version": archive({"a/data.pkl": b"}."}),
        "version 999": archive({"a/data.pkl": b"}.", "a/version": b"999\n"}),
        "a version of text": archive({"a/data.pkl": b"}.", "a/version": b"x" * 10_000}),
        "a strange byte order": archive({"a/data.pkl": b"}.", "a/version": b"3\n", "a/byteorder": b"middle"}),
        "a long pickle": archive({"a/data.pkl": b"N0" * (3 * 2**20) + b"}.", "a/version": b"3\n"}),
        "text before the archive": b"x" * 1000 + checkpoint,
    }


def _bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made, made.open("a/data.pkl", "w") as member:
        for _ in range(200):
            member.write(bytes(2**20))


def _checkpoint_with_bomb(path: Path) -> None:
    path.write_bytes(_saved(_state()))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as made, made.open("archive/unused", "w") as member:
        for _ in range(200):
            member.write(bytes(2**20))


def _listed(path: Path) -> None:
    """An archive whose list names one member half a million times."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    number = 500_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, number * len(entry), 0, 0)
    path.write_bytes(entry * number + end)


def _nested(depth: int) -> bytes:
    data = b"}."
    for _ in range(depth):
        data = archive({"a/data.pkl": data, "a/version": b"3\n"})
    return data


def _declared(data: bytes, size: int) -> bytes:
    """The archive with another size of its first member, in the list of members."""
    at = data.index(b"PK\x01\x02")
    return data[: at + 20] + struct.pack("<2L", size, size) + data[at + 28 :]


def _with(data: bytes, members: Mapping[str, bytes]) -> bytes:
    import warnings

    file = io.BytesIO(data)
    with zipfile.ZipFile(file, "a") as made, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a name that is there already
        for name, content in members.items():
            made.writestr(name, content)
    return file.getvalue()


def _tensors() -> dict[str, Upload]:
    import torch

    state = _state()
    first = next(iter(state))
    tensor = state[first]

    def changed(name: str, value: Any) -> bytes:
        return _saved({**state, name: value})

    found: dict[str, Upload] = {
        "NaN": changed(first, torch.full_like(tensor, float("nan"))),
        "infinity": changed(first, torch.full_like(tensor, float("inf"))),
        "another name": changed("evil.weight", tensor),
        "an empty name": changed("", tensor),
        "a long name": changed("x" * 100_000, tensor),
        "a prefix": _saved({f"module.{name}": value for name, value in state.items()}),
        "a missing tensor": _saved(dict(list(state.items())[1:])),
        "a scalar": changed(first, torch.tensor(1.0)),
        "an empty tensor": changed(first, torch.empty(0, 0)),
        "tensors that share their values": _saved({name: _view(value, tensor) for name, value in _state(256).items()}),
        "another shape": changed(first, tensor.T.contiguous()),
        "a fourth dimension": changed(first, tensor[None, None]),
        "sparse": changed(first, tensor.to_sparse()),
        "meta": changed(first, tensor.to("meta")),
        "a tensor that repeats one value": changed(first, torch.zeros(1).expand(2**16, 2**16)),
        "block 10^9": _saved({name.replace("blocks.0", "blocks.999999999"): value for name, value in state.items()}),
        "numbers as names": _saved(dict(enumerate(state.values()))),
        "one tensor": _saved(tensor),
        "a list of tensors": _saved(list(state.values())),
        "nested dicts": _saved({"model": state, "optimizer": {"lr": 1}}),
        "an empty state dict": _saved({}),
        "text as a tensor": changed(first, "x"),
        "NaN in the old form": _saved(
            {**state, first: torch.full_like(tensor, float("nan"))}, _use_new_zipfile_serialization=False
        ),
    }
    for dtype in (torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64):
        found[f"{dtype}"] = changed(first, tensor.to(dtype))
    return found


def _view(value: Any, shared: Any) -> Any:
    """A view of ``shared`` with the shape of ``value``."""
    import torch

    return torch.as_strided(shared, value.shape, (0,) * value.dim())


def _damaged() -> dict[str, Upload]:
    found: dict[str, Upload] = {}
    for form, new in (("the new form", True), ("the old form", False)):
        data = _saved(_state(), _use_new_zipfile_serialization=new)
        for share in (1, 10, 25, 50, 75, 90, 99):
            found[f"{form}, cut off at {share} %"] = data[: len(data) * share // 100]
    state = _state()
    data = _saved(state)
    for name in ("embed.weight", "blocks.0.w1.weight", "out_head.weight"):
        place = data.index(state[name].numpy().tobytes())
        found[f"a changed bit of {name}"] = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    found["a changed name"] = data.replace(b"embed.weight", b"embed.w_ight", 1)
    return found


def archive(members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive of these members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as made:
        for name, content in members.items():
            made.writestr(name, content)
    return file.getvalue()


def _old_form(code: bytes) -> bytes:
    return pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + code


def _state(width: int = 4) -> dict[str, Any]:
    import torch

    from creditgrid.core.science.network import ResidualMLP

    torch.manual_seed(0)
    return dict(ResidualMLP(12, width, 3, 1).state_dict())


def _saved(value: object, **options: Any) -> bytes:
    import torch

    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()
