from __future__ import annotations

import contextlib
import io
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from creditgrid.core.datasets import resolve
from creditgrid.core.errors import DatasetError

ACCEPTED = "Accepted: cifar10, cifar100, mnist, fashion_mnist, svhn, digits, or the absolute path of a directory"
CLOCK = itertools.count(1)
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _encoded(format_: str = "PNG", value: int = 7) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((2, 3, 3), value, dtype=np.uint8)).save(file, format_)
    return file.getvalue()


def _table(
    images: Sequence[bytes | None], labels: Sequence[int | None], image: str = "image", label: str = "label"
) -> pa.Table:
    rows = [None if content is None else {"bytes": content, "path": "x.png"} for content in images]
    return pa.table({image: pa.array(rows, IMAGE), label: pa.array(labels, pa.int64())})


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A good set: three training images of classes 0 to 2 and two test images."""
    pq.write_table(
        _table([_encoded("PNG"), _encoded("JPEG"), _encoded("PNG", 9)], [0, 2, 1]), tmp_path / "train.parquet"
    )
    pq.write_table(_table([_encoded("JPEG"), _encoded("PNG")], [3, 0]), tmp_path / "test.parquet")
    return tmp_path


def _refused(dataset: str | Path) -> str:
    with pytest.raises(DatasetError) as caught:
        resolve(str(dataset))
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "counts", "shape"),
    [
        ("cifar10", (50_000, 10_000, 10), (3, 32, 32)),
        ("cifar100", (50_000, 10_000, 100), (3, 32, 32)),
        ("mnist", (60_000, 10_000, 10), (1, 28, 28)),
        ("fashion_mnist", (60_000, 10_000, 10), (1, 28, 28)),
        ("svhn", (73_257, 26_032, 10), (3, 32, 32)),
        ("digits", (1_437, 360, 10), (1, 8, 8)),
    ],
)
def test_public_sets(
    name: str, counts: tuple[int, int, int], shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDITGRID_DATASETS", "/somewhere")
    ref = resolve(name)
    assert (ref.name, ref.image_shape) == (name, shape)
    assert (ref.num_train, ref.num_test, ref.num_classes) == counts
    packaged = {"package": "scikit-learn", "name": name}
    assert ref.source in (packaged, {"package": "torchvision", "name": name, "root": "/somewhere"})
    monkeypatch.delenv("CREDITGRID_DATASETS")
    assert resolve(name).fingerprint == ref.fingerprint
    assert resolve(name).source.get("root", "/x/.cache/creditgrid/datasets").endswith("/.cache/creditgrid/datasets")


def test_fingerprints_are_golden_and_distinct(directory: Path) -> None:
    """Every key depends on them: a change by accident would discard every cached result."""
    golden = {
        "cifar10": "fae1ff2f90deac09834aaeb79a49cede47d6efe641357e0f3021b9e420da471d",
        "digits": "da0581422b4f90931f2d9177ffba799fd0cc9009e980af8e68ff67e31f897a4b",
    }
    names = ["cifar10", "cifar100", "mnist", "fashion_mnist", "svhn", "digits", str(directory)]
    fingerprints = {name: resolve(name).fingerprint for name in names}
    assert golden.items() <= fingerprints.items()
    assert len(set(fingerprints.values())) == len(names)
    assert {len(fingerprint) for fingerprint in fingerprints.values()} == {64}


@pytest.mark.parametrize(
    ("name", "meant"), [("cifer10", "cifar10"), ("MNIST", "mnist"), ("fashionmnist", "fashion_mnist")]
)
def test_an_unknown_name_gets_a_suggestion_and_the_accepted_names(name: str, meant: str) -> None:
    message = _refused(name)
    assert message.startswith(f"unknown dataset {name!r}; did you mean {meant!r}?")
    assert ACCEPTED in message


@pytest.mark.parametrize("name", ["imagenet21k-winter", ""])
def test_an_unknown_name_like_no_other_gets_no_suggestion(name: str) -> None:
    assert _refused(name).startswith(f"unknown dataset {name!r}. {ACCEPTED}")


@pytest.mark.parametrize("path", ["data/cifar", "./cifar", "~/cifar", "parquet:cifar", "parquet:", ".."])
def test_a_relative_path_is_refused(path: str) -> None:
    message = _refused(path)
    assert "is relative" in message
    assert "give the absolute path of a directory with train*.parquet and test*.parquet" in message


@pytest.mark.parametrize("prefix", ["", "parquet:"])
def test_a_directory_of_parquet_tables(directory: Path, prefix: str) -> None:
    ref = resolve(f"{prefix}{directory}")
    assert (ref.num_train, ref.num_test, ref.num_classes, ref.image_shape) == (3, 2, 4, (3, 2, 3))
    assert ref.source == {"package": "parquet", "path": str(directory), "fingerprint": ref.fingerprint}
    assert str(directory) not in ref.fingerprint


def test_the_fingerprint_depends_on_the_content_and_not_on_the_path(directory: Path, tmp_path_factory: Any) -> None:
    fingerprint = resolve(str(directory)).fingerprint
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name in ("train.parquet", "test.parquet"):
        (elsewhere / name).write_bytes((directory / name).read_bytes())
    assert resolve(str(elsewhere)).fingerprint == fingerprint
    swapped = tmp_path_factory.mktemp("swapped")
    (swapped / "train.parquet").write_bytes((directory / "test.parquet").read_bytes())
    (swapped / "test.parquet").write_bytes((directory / "train.parquet").read_bytes())
    assert resolve(str(swapped)).fingerprint != fingerprint


def test_a_change_of_a_file_is_seen_at_once_and_planning_again_is_quick(cifar_or: Path, directory: Path) -> None:
    resolve(str(cifar_or))
    start = time.perf_counter()
    for _ in range(100):
        resolve(str(cifar_or))
    assert (time.perf_counter() - start) / 100 < 0.01
    before = resolve(str(directory)).fingerprint
    pq.write_table(_table([_encoded()], [0]), directory / "test.parquet")
    after = resolve(str(directory))
    assert after.fingerprint != before
    assert after.num_test == 1


@pytest.fixture
def cifar_or(request: pytest.FixtureRequest, directory: Path) -> Path:
    """The real CIFAR-10 if it is installed; the small set otherwise."""
    try:
        found: Path = request.getfixturevalue("cifar_dir")
    except pytest.skip.Exception:
        return directory
    return found


def test_cifar10_from_parquet(cifar_dir: Path) -> None:
    ref = resolve(str(cifar_dir))
    assert (ref.num_train, ref.num_test, ref.num_classes) == (50_000, 10_000, 10)


def test_shards_are_one_split_and_the_hugging_face_column_name_is_accepted(directory: Path) -> None:
    (directory / "train.parquet").unlink()
    for shard, labels in enumerate([[0, 1], [4]]):
        table = _table([_encoded()] * len(labels), labels, image="img")
        pq.write_table(table, directory / f"train-{shard:05}-of-00002.parquet")
    ref = resolve(str(directory))
    assert (ref.num_train, ref.num_test, ref.num_classes) == (3, 2, 5)


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00002.parquet"],
        ["train-00000-of-00001.parquet", "train.parquet"],
        ["train-00000-of-00001.parquet", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
    ],
)
def test_a_split_that_is_not_one_whole_set_of_shards_is_refused(directory: Path, names: list[str]) -> None:
    content = (directory / "train.parquet").read_bytes()
    (directory / "train.parquet").unlink()
    for name in names:
        (directory / name).write_bytes(content)
    message = _refused(directory)
    assert f"the train split in {directory} is not one whole set of shards" in message
    assert all(name in message for name in names)


def test_missing_directories_and_files(directory: Path) -> None:
    assert "cannot be read (No such file or directory)" in _refused(directory / "nowhere")
    assert "is not a directory" in _refused(directory / "train.parquet")
    assert "cannot be read (embedded null byte)" in _refused("/a\0b")
    assert "cannot be read (File name too long)" in _refused("/" + "a" * 300)
    (directory / "test.parquet").unlink()
    assert _refused(directory).startswith(f"dataset directory {directory} holds no test*.parquet")
    (directory / "test.parquet").symlink_to(directory / "nowhere")
    assert _refused(directory) == f"{directory / 'test.parquet'} cannot be read: No such file or directory"
    (directory / "test.parquet").unlink()
    (directory / "test.parquet").mkdir()
    assert str(directory / "test.parquet") in _refused(directory)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (_table([None], [0]), "row 0: the image is null; expected JPEG or PNG bytes"),
        (_table([_encoded(), b""], [0, 1]), "row 1: the image is empty; expected JPEG or PNG bytes"),
        (_table([_encoded(), b"GIF89a"], [0, 1]), "row 1: the image starts with neither a JPEG nor a PNG signature"),
        (_table([b"\x89PN"], [0]), "row 0: the image starts with neither a JPEG nor a PNG signature"),
        (_table([_encoded()] * 3, [0, 1, None]), "row 2: the label is null; expected a class from 0"),
        (_table([_encoded()] * 3, [0, -1, -2]), "row 1: the label is -1; expected a class from 0"),
        (_table([_encoded()] * 2, [0, 65_536]), "row 1: the label is 65536; expected a class below 65536"),
        (_table([_encoded()] * 1500, [0] * 1400 + [-1] * 100), "row 1400: the label is -1"),
    ],
)
def test_bad_rows_are_named(directory: Path, table: pa.Table, message: str) -> None:
    pq.write_table(table, directory / "test.parquet")
    assert _refused(directory).startswith(f"{directory / 'test.parquet'}, {message}")


@pytest.mark.parametrize("type_", [pa.int8(), pa.uint8(), pa.int32(), pa.uint32(), pa.uint64()], ids=str)
def test_labels_of_any_integer_type(directory: Path, type_: pa.DataType) -> None:
    table = _table([_encoded()] * 2, [5, 0])
    pq.write_table(table.set_column(1, "label", table["label"].cast(type_)), directory / "test.parquet")
    assert resolve(str(directory)).num_classes == 6


def test_a_label_beyond_64_bits_with_a_sign(directory: Path) -> None:
    table = _table([_encoded()] * 2, [5, 0])
    labels = pa.array([5, 2**64 - 1], pa.uint64())
    pq.write_table(table.set_column(1, "label", labels), directory / "test.parquet")
    assert "row 1: the label is 18446744073709551615; expected" in _refused(directory)


def test_null_bytes_inside_an_image_that_is_not_null(directory: Path) -> None:
    images = pa.array([{"bytes": None, "path": "x.png"}], IMAGE)
    pq.write_table(pa.table({"image": images, "label": [0]}), directory / "test.parquet")
    assert "row 0: the image is null" in _refused(directory)


@pytest.mark.parametrize(
    ("table", "expected", "columns"),
    [
        (_table([_encoded()], [0], image="picture"), "image (or img), a struct with", "picture: struct<bytes: binary"),
        (_table([_encoded()], [0], label="fine_label"), "label, an integer", "fine_label: int64"),
        (pa.table({"image": [_encoded()], "label": [0]}), "image (or img), a struct with", "image: binary"),
        (pa.table({"image": [{"bytes": "text"}], "label": [0]}), "image (or img), a struct with", "bytes: string"),
        (pa.table({"image": [{"path": "x"}], "label": [0]}), "image (or img), a struct with", "path: string"),
        (pa.table({"image": [{"bytes": _encoded()}], "label": [0.5]}), "label, an integer", "label: double"),
        (pa.table({}), "image (or img), a struct with", "its columns are none"),
    ],
)
def test_missing_columns(directory: Path, table: pa.Table, expected: str, columns: str) -> None:
    pq.write_table(table, directory / "train.parquet")
    message = _refused(directory)
    assert message.startswith(f"{directory / 'train.parquet'} has no column {expected}")
    assert columns in message


def test_an_empty_table(directory: Path) -> None:
    pq.write_table(_table([], []), directory / "test.parquet")
    assert _refused(directory) == f"{directory / 'test.parquet'} holds no rows; expected at least one labelled image"


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"no table",
        lambda content: content[:-1],
        lambda content: content[:200],
        lambda content: content.replace(b"label", b"l\xffbel"),
    ],
    ids=["empty", "text", "last byte cut", "first 200 bytes", "column name not UTF-8"],
)
def test_files_that_are_not_parquet_or_cut_short(directory: Path, damage: Callable[[bytes], bytes]) -> None:
    path = directory / "train.parquet"
    path.write_bytes(damage(path.read_bytes()))
    assert _refused(directory).startswith(f"{path} is not a readable Parquet file, or is damaged: ")


def test_a_page_that_does_not_match_its_checksum(directory: Path) -> None:
    path = directory / "train.parquet"
    pq.write_table(_table([_encoded()] * 2, [0, 1]), path, compression="none", write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[content.index(_encoded()) + 20] ^= 1
    path.write_bytes(content)
    assert _refused(directory).startswith(f"{path} is not a readable Parquet file, or is damaged: ")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_still_a_good_table(directory: Path, data: st.DataObject) -> None:
    """Only DatasetError is raised, whatever bytes are overwritten or cut off."""
    path = directory / "train.parquet"
    good = path.read_bytes()
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    damaged_at = next(CLOCK)
    try:
        path.write_bytes(content)
        os.utime(path, ns=(damaged_at, damaged_at))  # the file system's own clock is too coarse for this many writes
        resolve(str(directory))
    except DatasetError as error:
        assert str(path) in str(error)  # noqa: PT017 (most damage is refused, some is harmless)
    finally:
        path.write_bytes(good)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_pipe_is_refused_and_not_waited_for(directory: Path, split: str) -> None:
    path = directory / f"{split}.parquet"
    path.unlink()
    os.mkfifo(path)
    assert _refused(directory) == f"{path} is not a regular file; expected a Parquet file"


def test_devices_and_sockets_are_refused(directory: Path) -> None:
    (directory / "test.parquet").unlink()
    (directory / "test.parquet").symlink_to("/dev/zero")
    assert "is not a regular file" in _refused(directory)
    (directory / "test.parquet").unlink()
    with socket.socket(socket.AF_UNIX) as bound, contextlib.chdir(directory):
        bound.bind("test.parquet")
        assert "is not a readable Parquet file" in _refused(directory)


# -- roots ---------------------------------------------------------------------------------------------------------


def _outside(dataset: str | Path, roots: Sequence[Path]) -> str:
    with pytest.raises(DatasetError) as caught:
        resolve(str(dataset), [str(root) for root in roots])
    return str(caught.value).replace(repr(str(dataset)), "PATH")


def test_a_dataset_below_a_root_is_read(directory: Path, tmp_path_factory: Any) -> None:
    plain = resolve(str(directory))
    other = tmp_path_factory.mktemp("other")
    assert resolve(str(directory), [str(other), str(directory)]) == plain
    assert resolve(f"parquet:{directory}", [str(directory.parent)]).fingerprint == plain.fingerprint
    (other / "link").symlink_to(directory.parent)
    assert resolve(f"{other}/link/{directory.name}", [f"{other}/link"]).fingerprint == plain.fingerprint
    assert resolve("digits", []).name == "digits"


def test_what_is_outside_of_the_roots_is_not_described(directory: Path, tmp_path_factory: Any) -> None:
    root = tmp_path_factory.mktemp("root")
    (root / "inside").symlink_to(directory)
    (root / "shards").mkdir()
    for split in ("train", "test"):
        (root / "shards" / f"{split}.parquet").symlink_to(directory / f"{split}.parquet")
    found = {
        _outside(path, [root])
        for path in (
            directory,
            directory / "nowhere",
            directory / "train.parquet",
            "/",
            "/proc/1/root",
            "/a\0b",
            f"{root}/../{directory.name}",
            f"{root}-next",
            root / "inside",
        )
    }
    assert len(found) == 1
    assert f"or a folder below {root}" in found.pop()
    assert "is not below a folder that this service reads" in _outside(root / "shards", [root])
    assert "cannot be read (No such file or directory)" in _outside(root / "nowhere", [root])
    assert "none of a path" in _outside(directory, [])


def test_planning_imports_neither_torch_nor_a_decoder(directory: Path) -> None:
    script = f"""
import sys
from creditgrid.core.datasets import resolve
resolve("digits")
assert "pyarrow" not in sys.modules
resolve({str(directory)!r})
print([name for name in ("torch", "torchvision", "PIL", "sklearn", "pandas", "ray", "fastapi") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
