"""The artifact store: an artifact is complete or absent, and never differs from what was written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, load_file

from creditgrid.core.errors import ArtifactCorrupt, ArtifactError, ArtifactMissing
from creditgrid.workers.artifacts import RECORD, TEMPORARY, TENSORS, ArtifactStore
from creditgrid.workers.temporary_names import temporary_name

KEY = hashlib.sha256(b"a key").hexdigest()
OTHER = hashlib.sha256(b"another").hexdigest()
ARRAYS = {
    "embed.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "transposed": np.arange(12, dtype=np.int64).reshape(3, 4).T,
    "pixels": np.arange(24, dtype=np.uint8).reshape(2, 3, 4)[:, ::2],
    "num_classes": np.asarray(10),
    "empty": np.zeros((0, 3), np.float32),
}
PAYLOAD = {"kind": "toy", "version": 1, "params": {"a": 1}, "parents": {}}


def saved(store: ArtifactStore, key: str = KEY) -> int:
    return store.save(key, PAYLOAD, ARRAYS, {"host": "here"})


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")} if root.exists() else set()


def test_what_is_saved_is_loaded(store: ArtifactStore) -> None:
    assert not store.has(KEY)
    size = saved(store)
    assert store.has(KEY)
    back = store.load(KEY)
    assert set(back) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)
    assert size == len(store.read(KEY)) == store.record(KEY)["bytes"]


def test_the_layout_is_as_documented(store: ArtifactStore) -> None:
    saved(store)
    place = store.root / KEY[:2] / KEY
    assert store.path(KEY) == place
    assert sorted(path.name for path in place.iterdir()) == [RECORD, TENSORS]
    np.testing.assert_array_equal(load_file(place / TENSORS)["embed.weight"], ARRAYS["embed.weight"])
    record = json.loads((place / RECORD).read_text())
    assert record["key"] == KEY
    assert record["payload"] == PAYLOAD
    assert record["provenance"] == {"host": "here"}
    assert record["sha256"] == hashlib.sha256((place / TENSORS).read_bytes()).hexdigest()
    assert record["tensors"]["transposed"] == {"shape": [4, 3], "dtype": "int64"}
    assert store.record(KEY) == record


def test_saving_twice_keeps_the_first(store: ArtifactStore) -> None:
    saved(store)
    before = (store.path(KEY) / RECORD).stat().st_ino
    store.save(KEY, PAYLOAD, ARRAYS, {"host": "elsewhere"})
    assert (store.path(KEY) / RECORD).stat().st_ino == before
    assert store.record(KEY)["provenance"] == {"host": "here"}


def test_keys_lists_artifacts_alone(store: ArtifactStore) -> None:
    assert list(store.keys()) == []
    for key in (KEY, OTHER):
        saved(store, key)
    (store.path(KEY).with_name(f"{TEMPORARY}{KEY}-x")).mkdir()
    (store.root / "corrupt").mkdir()
    assert sorted(store.keys()) == sorted([KEY, OTHER])


@pytest.mark.parametrize(
    "key", ["", "ab", "../" * 20, KEY.upper(), KEY[:-1], KEY + "0", "../" + KEY[3:], KEY[:-1] + "\n"]
)
def test_a_string_that_is_no_key_gets_no_path(store: ArtifactStore, key: str) -> None:
    for ask in (store.path, store.has, store.record, store.read, store.load):
        with pytest.raises(ArtifactMissing, match="is not an artifact key"):
            ask(key)


def test_an_absent_artifact_is_missing(store: ArtifactStore) -> None:
    for ask in (store.record, store.read, store.load):
        with pytest.raises(ArtifactMissing, match=KEY[:12]):
            ask(KEY)


# -- atomic and durable --------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process dies here."""


STEPS = [
    *[("mkdir", at) for at in range(3)],
    *[("open", at) for at in range(2)],
    *[("fsync", at) for at in range(5)],
    ("rename", 0),
    ("fsync", 5),
]


@pytest.mark.parametrize(("step", "at"), STEPS)
def test_a_writer_that_dies_leaves_no_artifact(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, step: str, at: int
) -> None:
    left = at
    owner = os if step == "fsync" else Path
    original = getattr(owner, step)

    def dying(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        if left == 0:
            raise Crash
        left -= 1
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, dying)
        with pytest.raises(Crash):
            saved(store)
    assert store.has(KEY) == ((step, at) == STEPS[-1])  # after the rename the artifact is complete
    if store.has(KEY):
        assert set(store.load(KEY)) == set(ARRAYS)
    else:
        assert list(store.keys()) == []
        with pytest.raises(ArtifactMissing):
            store.load(KEY)
    saved(store)  # what is left does not disturb the next writer
    np.testing.assert_array_equal(store.load(KEY)["embed.weight"], ARRAYS["embed.weight"])


def test_everything_is_synced_before_the_rename(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def spy_fsync(handle: int) -> None:
        events.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    def spy_rename(self: Path, target: Path) -> Path:
        events.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "rename", spy_rename)
    saved(store)
    assert events[:2] == [
        store.root.name,
        store.root.parent.name,
    ]  # both directories are new
    assert events[2:4] == [TENSORS, RECORD]
    assert events[4].startswith(TEMPORARY)
    assert events[5:] == ["rename", KEY[:2]]
    events.clear()
    saved(store, KEY[:2] + OTHER[2:])
    assert events[:2] == [TENSORS, RECORD]


def test_many_writers_of_one_key_leave_one_artifact(store: ArtifactStore) -> None:
    start = threading.Barrier(8)
    troubles: list[BaseException] = []

    def write() -> None:
        start.wait()
        try:
            saved(store)
        except BaseException as error:
            troubles.append(error)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert troubles == []
    assert everything(store.root) == {
        KEY[:2],
        f"{KEY[:2]}/{KEY}",
        f"{KEY[:2]}/{KEY}/{RECORD}",
        f"{KEY[:2]}/{KEY}/{TENSORS}",
    }
    assert set(store.load(KEY)) == set(ARRAYS)


def test_a_full_disk_is_an_artifact_error_and_leaves_nothing(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    message = f"{KEY[:12]} cannot be written below {store.root}.*No space left.*free some space, or let `creditgrid gc`"
    (store.root / KEY[:2]).mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ArtifactError, match=message) as caught:
            saved(store)
    assert isinstance(caught.value.__cause__, OSError)
    assert everything(store.root) == {KEY[:2]}


def test_a_read_only_store_is_an_artifact_error(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    saved(store)
    (store.path(KEY) / TENSORS).write_bytes(b"")
    monkeypatch.setattr(Path, "mkdir", refuse)
    message = "Read-only file system.*; whoever runs the workers must be able to write there"
    with pytest.raises(ArtifactError, match=f"cannot be written below {store.root}: .*{message}"):
        saved(store, OTHER)
    with pytest.raises(ArtifactCorrupt, match=f"SHA-256 differs.*cannot be moved out of the way: .*{message}"):
        store.load(KEY)


def test_a_root_that_is_a_file_is_an_artifact_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    store = ArtifactStore(tmp_path / "file")
    assert not store.has(KEY)
    with pytest.raises(ArtifactError, match="cannot be written"):
        saved(store)
    with pytest.raises(ArtifactError, match="cannot be read"):
        store.load(KEY)


@pytest.mark.parametrize("provenance", [{"loss": float("nan")}, {"what": object()}])
def test_a_record_that_is_not_json_is_refused_before_anything_is_written(
    store: ArtifactStore, provenance: dict[str, Any]
) -> None:
    with pytest.raises((ValueError, TypeError)):
        store.save(KEY, PAYLOAD, ARRAYS, provenance)
    assert everything(store.root) == set()


# -- corrupt -------------------------------------------------------------------------------------------------------


@settings(max_examples=25)  # each writes to the disk
@given(st.data())
def test_any_changed_byte_is_detected(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    store = ArtifactStore(tmp_path_factory.mktemp("corrupt"))
    saved(store)
    path = store.path(KEY) / TENSORS
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(ArtifactCorrupt, match="is not what was written: its SHA-256 differs"):
        store.load(KEY)


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        (TENSORS, b"", "SHA-256 differs"),
        (TENSORS, None, "is gone, but its record is there"),
        (RECORD, b"", "is not what was written"),
        (RECORD, b"{\xff", "is not what was written"),
        (RECORD, b"[]", "is not the record of"),
        (RECORD, b"{}", "is not the record of"),
        (RECORD, json.dumps({"key": OTHER, "sha256": ""}).encode(), "is not the record of"),
    ],
)
def test_a_corrupt_artifact_is_set_aside_and_can_be_made_again(
    store: ArtifactStore, caplog: pytest.LogCaptureFixture, file: str, content: bytes | None, complaint: str
) -> None:
    saved(store)
    path = store.path(KEY) / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ArtifactCorrupt, match=f"{complaint}.*was moved to .*computed again"):
        store.load(KEY)
    assert not store.has(KEY)
    (aside,) = store.corrupt()
    assert any(KEY in message and str(aside) in message for message in caplog.messages)
    assert aside.name.startswith(KEY)
    assert list(store.keys()) == []
    saved(store)
    assert set(store.load(KEY)) == set(ARRAYS)


def test_a_file_that_is_no_safetensors_is_corrupt_even_with_the_right_checksum(store: ArtifactStore) -> None:
    saved(store)
    place = store.path(KEY)
    record = store.record(KEY)
    (place / TENSORS).write_bytes(b"no tensors")
    (place / RECORD).write_text(json.dumps(record | {"sha256": hashlib.sha256(b"no tensors").hexdigest()}))
    with pytest.raises(ArtifactCorrupt, match="is not a safetensors file"):
        store.load(KEY)


def test_reading_for_a_download_sets_nothing_aside(store: ArtifactStore) -> None:
    saved(store)
    (store.path(KEY) / TENSORS).write_bytes(b"")
    with pytest.raises(ArtifactCorrupt):
        store.read(KEY)
    assert store.path(KEY).is_dir()


def test_an_incomplete_artifact_is_replaced(store: ArtifactStore) -> None:
    saved(store)
    (store.path(KEY) / RECORD).unlink()
    assert not store.has(KEY)
    saved(store)
    assert set(store.load(KEY)) == set(ARRAYS)


def test_an_artifact_that_replaced_a_corrupt_one_is_not_set_aside(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(store)
    (store.path(KEY) / TENSORS).write_bytes(b"")
    original = store.read

    def slow(key: str) -> bytes:
        """A slow reader: when it sees the damage, another one has repaired it already."""
        try:
            return original(key)
        finally:
            monkeypatch.setattr(store, "read", original)
            with pytest.raises(ArtifactCorrupt):
                store.load(key)
            saved(store)

    monkeypatch.setattr(store, "read", slow)
    with pytest.raises(ArtifactCorrupt):
        store.load(KEY)
    assert len(store.corrupt()) == 1
    assert set(store.load(KEY)) == set(ARRAYS)


# -- what may go ---------------------------------------------------------------------------------------------------


def aged(path: Path, seconds: float) -> None:
    at = time.time() - seconds
    os.utime(path, (at, at))


def test_a_removal_is_complete_or_does_nothing(store: ArtifactStore) -> None:
    saved(store)
    with store.open(KEY) as file:
        away = store.remove(KEY)
        assert not store.has(KEY)
        assert list(store.keys()) == []
        assert store.leftovers() == [away]
        shutil.rmtree(away)
        assert set(load(file.read())) == set(ARRAYS)  # a download that has started
    for ask in (store.record, store.read, store.load, store.remove):
        with pytest.raises(ArtifactMissing):
            ask(KEY)
    saved(store)
    assert store.has(KEY)


def test_an_artifact_that_is_removed_while_it_is_read_is_missing_and_not_corrupt(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(store)
    original = store.record

    def record(key: str) -> dict[str, Any]:
        found = original(key)
        store.remove(key)
        return found

    monkeypatch.setattr(store, "record", record)
    with pytest.raises(ArtifactMissing):
        store.load(KEY)
    assert store.corrupt() == []


def test_stored_lists_size_and_last_use(store: ArtifactStore) -> None:
    saved(store)
    record, tensors = store.path(KEY) / RECORD, store.path(KEY) / TENSORS
    (found,) = store.stored()
    assert (found.key, found.bytes) == (KEY, record.stat().st_size + tensors.stat().st_size)
    assert abs(found.used_at - time.time()) < 60
    for seconds in (7200, -7200):  # the clock was set back
        aged(record, seconds)
        (found,) = store.stored()
        assert found.used_at == pytest.approx(time.time() - seconds, abs=60)
        store.read(KEY)
        store.has(KEY)
        assert next(store.stored()) == found
        store.load(KEY)
        assert next(store.stored()).used_at == pytest.approx(time.time(), abs=60)
    aged(record, 1800)
    found = next(store.stored())
    store.load(KEY)
    assert next(store.stored()) == found  # recorded once an hour
    (store.path(KEY) / TENSORS).unlink()
    assert list(store.stored()) == []


def test_leftovers_of_dead_writers_are_distinguished_from_live_writes(store: ArtifactStore) -> None:
    saved(store)
    shelf = store.path(KEY).parent
    here, dead = temporary_name(TEMPORARY, KEY), temporary_name(TEMPORARY, KEY).split("@")
    with subprocess.Popen(["true"]) as process:
        process.wait()
        dead[-2] = str(process.pid)
    elsewhere = ["other.host" if part == socket.gethostname() else part for part in dead]
    names = {"alive": here, "dead": "@".join(dead), "elsewhere": "@".join(elsewhere), "unknown": f"{TEMPORARY}{KEY}-x"}
    for name in names.values():
        (shelf / name).mkdir()

    def left() -> set[str]:
        found = {path.name for path in store.leftovers()}
        return {what for what, name in names.items() if name in found}

    assert left() == {"dead"}
    for name in names.values():
        aged(shelf / name, -7200)
    assert left() == {"dead"}
    for name in names.values():
        aged(shelf / name, 7200)
    assert left() == set(names) - {"alive"}  # its writer may be slow


def test_an_old_incomplete_artifact_is_a_leftover(store: ArtifactStore) -> None:
    saved(store)
    (store.path(KEY) / RECORD).unlink()
    assert store.leftovers() == []
    aged(store.path(KEY), 7200)
    assert store.leftovers() == [store.path(KEY)]
