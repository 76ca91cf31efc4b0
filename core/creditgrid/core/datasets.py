"""Which datasets a sweep may name, and what identifies them.

A dataset is a public set by name, or a directory of Parquet image tables by absolute path. Planning needs its
fingerprint, its counts and where to load it from. Planning reads each Parquet table once from end to end, so that a
missing, damaged or mislabelled table is refused before anything runs. Of the images it reads one header, and it imports
no torch. The fingerprint identifies the content and never the path: results stay valid when a table is copied to
another place.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeAlias

from creditgrid.core.errors import DatasetError, did_you_mean

SPLITS = ("train", "test")
# Raise it when the same bytes would be loaded differently: other pixels, order, labels or statistics.
LOADER_VERSION = 1
MAX_CLASSES = 65_536

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_SHARD = re.compile(r"(?P<set>.*-of-(?P<total>\d+))\.parquet$")
_File: TypeAlias = tuple[str, str, int, int]  # split, path, size in bytes, time of modification in ns
_Shape: TypeAlias = tuple[int, int, int]
_Read: TypeAlias = tuple[str, int, int, int, _Shape | None]
Tables: TypeAlias = tuple[tuple[_File, ...], _Read]
"""The files of a dataset, and what reading them has shown: fingerprint, training and test images, classes, shape."""
TABLES_KEPT = 64
_PARQUET = "the absolute path of a directory with train*.parquet and test*.parquet"


@dataclass(frozen=True)
class DatasetRef:
    """A dataset as a plan knows it; `source` is where a worker loads it from, and is not part of its identity."""

    name: str
    fingerprint: str  # 64 hexadecimal digits
    num_train: int
    num_test: int
    num_classes: int | None
    image_shape: tuple[int, int, int] | None  # (C, H, W); None if the first image does not say
    source: Mapping[str, str] = field(compare=False)  # not part of equality or hash either
    code: str | None = None  # SHA-256 of the code that gives its arrays, if a sweep brings it

    def __hash__(self) -> int:
        return hash(self.fingerprint)  # of the whole content; stages are looked up by dataset for each cell


@dataclass(frozen=True)
class _PublicSet:
    package: str
    num_train: int
    num_test: int
    num_classes: int
    image_shape: tuple[int, int, int]


PUBLIC_SETS = {
    "cifar10": _PublicSet("torchvision", 50_000, 10_000, 10, (3, 32, 32)),
    "cifar100": _PublicSet("torchvision", 50_000, 10_000, 100, (3, 32, 32)),
    "mnist": _PublicSet("torchvision", 60_000, 10_000, 10, (1, 28, 28)),
    "fashion_mnist": _PublicSet("torchvision", 60_000, 10_000, 10, (1, 28, 28)),
    "svhn": _PublicSet("torchvision", 73_257, 26_032, 10, (3, 32, 32)),
    "digits": _PublicSet("scikit-learn", 1_437, 360, 10, (1, 8, 8)),
}


def resolve(dataset: str, roots: Sequence[str] | None = None) -> DatasetRef:
    """The dataset of this name: a public set's name, or a directory's absolute path with or without `parquet:`.

    Args:
        dataset: the name or the path.
        roots: the folders that directories must be in, symbolic links included; None for any folder.

    Raises:
        DatasetError: for an unknown name, and for a table that is missing, damaged or not of labelled images. For what
            is outside of the roots, the message is the same whether it exists or not.
    """
    if dataset in PUBLIC_SETS:
        return _public(dataset)
    path = dataset.removeprefix("parquet:")
    if path.startswith("/"):
        return _parquet(dataset, path, roots)
    if path != dataset or path.startswith(("~", ".")) or "/" in path:
        raise DatasetError(f"dataset path {path!r:.200} is relative, and workers run elsewhere; give {_PARQUET}")
    hint = did_you_mean(dataset.lower(), PUBLIC_SETS, "; did you mean {!r}?") or "."
    raise DatasetError(f"unknown dataset {dataset!r:.200}{hint} Accepted: {', '.join(PUBLIC_SETS)}, or {_PARQUET}")


def _public(name: str) -> DatasetRef:
    public = PUBLIC_SETS[name]
    source = {"package": public.package, "name": name}
    if public.package == "torchvision":
        root = os.environ.get("CREDITGRID_DATASETS") or "~/.cache/creditgrid/datasets"
        source["root"] = str(Path(root).expanduser().absolute())
    # The name identifies the content: torchvision verifies its files by MD5, and scikit-learn ships the digits.
    fingerprint = hashlib.sha256(f"creditgrid public image set\0{name}\0{LOADER_VERSION}".encode()).hexdigest()
    return DatasetRef(
        name, fingerprint, public.num_train, public.num_test, public.num_classes, public.image_shape, source
    )


def _parquet(name: str, path: str, roots: Sequence[str] | None) -> DatasetRef:
    if roots is not None:
        _refuse_outside(path, roots)
    split = parquet_files(path)
    if roots is not None:
        for file in itertools.chain(*split.values()):
            _refuse_outside(str(file), roots)
    files = [_signed(split, file) for split, paths in split.items() for file in paths]
    fingerprint, num_train, num_test, num_classes, shape = _known(tuple(files))
    source = {"package": "parquet", "path": path, "fingerprint": fingerprint}
    return DatasetRef(name, fingerprint, num_train, num_test, num_classes, shape, source)


def _refuse_outside(path: str, roots: Sequence[str]) -> None:
    """Refuse a path that is outside of the roots, or that a symbolic link leads out of them."""
    # As text first: nothing outside is looked at. A NUL is refused below, with the other names that no file can have.
    plain = os.path.normpath(path)
    real = [os.path.realpath(root) for root in roots]
    if _inside(plain, (*roots, *real)) and "\0" not in plain and _inside(os.path.realpath(plain), real):
        return
    accepted = f"a folder below {', '.join(roots)}" if roots else "none of a path (CREDITGRID_DATASET_ROOTS names none)"
    raise DatasetError(
        f"the dataset path {path!r:.200} is not below a folder that this service reads datasets from; accepted: "
        f"{', '.join(PUBLIC_SETS)}, or {accepted}"
    )


def _inside(path: str, roots: Iterable[str]) -> bool:
    return any(path == root or path.startswith(root.rstrip("/") + "/") for root in roots)


def parquet_files(directory: str | Path) -> dict[str, list[Path]]:
    """The files of "train" and "test" in name order, such as `train.parquet` or all of `train-00000-of-00002.parquet` …

    Raises:
        DatasetError: for a directory that cannot be read, a split without a file, and an incomplete set of shards.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(directory))
    except NotADirectoryError as error:
        raise DatasetError(f"{directory} is not a directory; give {_PARQUET}") from error
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"dataset directory {directory} cannot be read ({_reason(error)}); give {_PARQUET}"
        ) from error
    files = {split: [name for name in names if fnmatch(name, f"{split}*.parquet")] for split in SPLITS}
    for split, found in files.items():
        if not found:
            raise DatasetError(f"dataset directory {directory} holds no {split}*.parquet; give {_PARQUET}")
        shards = [int(match["total"]) for name in found if (match := _SHARD.match(name))]
        if shards and {len(found)} != set(shards):
            raise DatasetError(
                f"the {split} split in {directory} is not one whole set of shards: it has {', '.join(found[:100])}; "
                f"expected all {max(shards)} files of one set and no others"
            )
    return {split: [Path(directory) / name for name in found] for split, found in files.items()}


def parquet_fingerprint(files: Mapping[str, Sequence[Path]]) -> str:
    """SHA-256 over the loader's version, the splits' names and every file's bytes in order; never over paths."""
    digest = hashlib.sha256(f"creditgrid parquet image tables\0{LOADER_VERSION}\n".encode())
    for split, paths in files.items():
        for path in paths:
            try:
                with _open_regular(path) as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise DatasetError(f"{path} cannot be read: {_reason(error)}") from error
            digest.update(f"{split} {content}\n".encode())
    return digest.hexdigest()


def labelled_images(path: Path) -> Iterator[tuple[int, list[bytes], list[int]]]:
    """Batches of one Parquet file in row order: (number of the first row, encoded images, labels).

    Every row of a batch has been checked: JPEG or PNG bytes by their signature, and a label from 0 to 65,535.

    Raises:
        DatasetError: naming the file, and the row (from 0) that is not so.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    row = 0
    try:
        with _open_regular(path) as opened, pq.ParquetFile(opened, page_checksum_verification=True) as file:
            image, label = _columns(path, file.schema_arrow)
            for batch in file.iter_batches(1024, columns=[f"{image}.bytes", label]):
                # Plain Python from here: pyarrow imports pandas when it compares a column with a number.
                images = pc.struct_field(batch.column(image), "bytes").to_pylist()
                labels = batch.column(label).to_pylist()
                for offset, pair in enumerate(zip(images, labels, strict=True)):
                    if fault := _fault(*pair):
                        raise DatasetError(f"{path}, row {row + offset}: {fault}")
                yield row, images, labels
                row += len(batch)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last from a damaged column name
        raise DatasetError(f"{path} is not a readable Parquet file, or is damaged: {_reason(error)}") from error
    if row == 0:
        raise DatasetError(f"{path} holds no rows; expected at least one labelled image")


def _open_regular(path: Path) -> BufferedReader:
    """The file, opened to read. A pipe, socket or device is refused: it could keep its reader waiting for ever.

    Raises:
        OSError: when it cannot be opened.
        DatasetError: for anything but a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DatasetError(f"{path} is not a regular file; expected a Parquet file")
    return os.fdopen(descriptor, "rb")


def _columns(path: Path, schema: Any) -> tuple[str, str]:
    """The names of the image and the label column, after checking their types."""
    import pyarrow as pa

    types = {field.name: field.type for field in schema}
    image = "image" if "image" in types else "img"
    for name, fits, expected in (
        (image, _is_image_column, "image (or img), a struct with a binary field `bytes`"),
        ("label", pa.types.is_integer, "label, an integer"),
    ):
        if name not in types or not fits(types[name]):
            columns = ", ".join(f"{column}: {type_}" for column, type_ in types.items())
            raise DatasetError(f"{path} has no column {expected}; its columns are {columns or 'none'}")
    return image, "label"


def _is_image_column(column: Any) -> bool:
    import pyarrow as pa

    if not pa.types.is_struct(column) or column.get_field_index("bytes") < 0:
        return False
    content = column.field("bytes").type
    return bool(pa.types.is_binary(content) or pa.types.is_large_binary(content))


def _fault(image: bytes | None, label: int | None) -> str | None:
    """What is wrong with a row; None if nothing is."""
    if image is None:
        return "the image is null; expected JPEG or PNG bytes"
    if not image:
        return "the image is empty; expected JPEG or PNG bytes"
    if not image.startswith((_JPEG, _PNG)):
        return "the image starts with neither a JPEG nor a PNG signature"
    if label is None:
        return "the label is null; expected a class from 0"
    if label < 0:
        return f"the label is {label}; expected a class from 0"
    if label >= MAX_CLASSES:
        return f"the label is {label}; expected a class below {MAX_CLASSES}"
    return None


def _signed(split: str, path: Path) -> _File:
    try:
        found = path.stat()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {_reason(error)}") from error
    return split, str(path), found.st_size, found.st_mtime_ns


_tables: dict[tuple[_File, ...], _Read] = {}


def known_tables() -> list[Tables]:
    """What this process has read of datasets, the latest last; another process can ``remember_tables``."""
    return list(_tables.items())


def remember_tables(found: Iterable[Tables]) -> None:
    """Know tables that another process has read. Sizes and times of modification tell when a file has changed."""
    _tables.update(found)
    for files in list(_tables)[:-TABLES_KEPT]:
        del _tables[files]


def _known(files: tuple[_File, ...]) -> _Read:
    """What ``_inspect`` returns, from memory if these files were read before; a changed file is read again."""
    if files not in _tables:
        remember_tables([(files, _inspect(files))])
    return _tables[files]


def _inspect(files: tuple[_File, ...]) -> _Read:
    """Read every file to its end: what `Tables` say of it."""
    rows, largest, shape = dict.fromkeys(SPLITS, 0), 0, None
    paths: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for split, name, *_ in files:
        path = Path(name)
        paths[split].append(path)
        for first_row, images, labels in labelled_images(path):
            if split == "train" and first_row == 0 and shape is None:
                shape = _shape(images[0])
            rows[split] += len(images)
            largest = max(largest, *labels)
    return parquet_fingerprint(paths), rows["train"], rows["test"], largest + 1, shape


def _shape(image: bytes) -> _Shape | None:
    """(C, H, W) from the header of a JPEG or PNG, as decoding it would give; None if the header does not say.

    The task that decodes the image reports what is wrong with it.
    """
    if image.startswith(_PNG):
        if image[12:16] != b"IHDR" or len(image) < 26:
            return None
        width, height, depth, colour = struct.unpack(">IIBB", image[16:26])
        channels = {0: 1, 2: 3, 3: 3}.get(colour) if depth <= 8 else None
        return None if channels is None else (channels, height, width)
    at = 2
    while at + 9 < len(image) and image[at] == 0xFF:
        marker, (length,) = image[at + 1], struct.unpack(">H", image[at + 2 : at + 4])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame: precision, height, width, components
            height, width, components = struct.unpack(">HHB", image[at + 5 : at + 10])
            return (components, height, width) if components in (1, 3) else None
        at += 2 + length
    return None


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
