"""Resume states: saved from time to time, complete or absent, and deleted when the call has finished."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from creditgrid.core.task import Arrays, Saved
from creditgrid.workers import resume_state as module
from creditgrid.workers.resume_state import EVERY_S, FOLDER, SHARE, ResumeState, abandoned_resume_states, resume_states

GROUP, LAST, OTHER = "a" * 64, "c" * 64, "b" * 64


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module.time, "monotonic", clock)
    return clock


def state(value: float, spend: Callable[[], None] = lambda: None) -> Saved:
    def copy() -> Arrays:
        spend()
        return {"w": np.full((2, 3), value, dtype=np.float32), "epoch": np.asarray(int(value))}

    return Saved(copy)


def kept(root: Path, last: str = LAST) -> Mapping[str, Any] | None:
    """What a new attempt at the group restores."""
    given = {"k": {"x": np.ones(1)}}
    offered = ResumeState(root, GROUP, last).restore(given)
    assert offered["k"] is given["k"]
    return offered.get(GROUP)


def value(root: Path, last: str = LAST) -> float | None:
    found = kept(root, last)
    return None if found is None else float(found["w"][0, 0])


def files(root: Path) -> list[str]:
    return sorted(path.name for path in (root / FOLDER).iterdir()) if (root / FOLDER).exists() else []


def saved(root: Path, number: float, last: str = LAST) -> ResumeState:
    resume = ResumeState(root, GROUP, last)
    resume.save_next()
    resume.save(state(number))
    return resume


def test_the_next_attempt_restores_what_was_saved_bit_for_bit(tmp_path: Path) -> None:
    arrays = {
        "f32": np.array([[1 / 3, -0.0], [np.nan, np.inf]], dtype=np.float32),
        "lr": np.asarray(1e-3 / 7, dtype=np.float64),
        "epoch": np.asarray(3, dtype=np.int64),
        "none": np.zeros((0, 4), dtype=np.float32),
    }
    resume = ResumeState(tmp_path, GROUP, LAST)
    resume.save_next()
    resume.save(Saved(lambda: arrays))
    found = kept(tmp_path)
    assert found is not None
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def test_nothing_is_restored_if_nothing_was_saved(tmp_path: Path) -> None:
    given = {"k": {"x": np.ones(1)}}
    assert ResumeState(tmp_path, GROUP, LAST).restore(given) is given
    assert files(tmp_path) == []


def test_each_call_has_its_own_resume_state(tmp_path: Path) -> None:
    saved(tmp_path, 1.0)
    assert value(tmp_path, OTHER) is None
    saved(tmp_path, 2.0, OTHER)
    assert (value(tmp_path), value(tmp_path, OTHER)) == (1.0, 2.0)
    ResumeState(tmp_path, GROUP, OTHER).delete()
    assert (value(tmp_path), value(tmp_path, OTHER)) == (1.0, None)


def test_a_later_save_replaces_the_earlier_and_leaves_no_other_file(tmp_path: Path) -> None:
    resume = saved(tmp_path, 1.0)
    resume.save_next()
    resume.save(state(2.0))
    assert value(tmp_path) == 2.0
    assert files(tmp_path) == [LAST]


# -- how often -----------------------------------------------------------------------------------------------------


def test_there_are_at_least_so_many_seconds_between_saves(tmp_path: Path, clock: Clock) -> None:
    resume = ResumeState(tmp_path, GROUP, LAST)
    times = []
    for number in range(100):
        before = value(tmp_path)
        resume.save(state(float(number)))
        if value(tmp_path) != before:
            times.append(clock.now - 1000)
        clock.now += 0.25
    assert times[0] == EVERY_S  # a short run is never saved
    assert {later - earlier for earlier, later in itertools.pairwise(times)} == {EVERY_S}


def test_a_slow_save_takes_no_more_than_its_share_of_the_time(tmp_path: Path, clock: Clock) -> None:
    def spend() -> None:
        clock.now += 3.0

    resume = ResumeState(tmp_path, GROUP, LAST)
    resume.save_next()
    resume.save(state(1.0, spend))
    after = clock.now
    for _ in range(1000):
        clock.now += 0.5
        resume.save(state(2.0))
        if value(tmp_path) == 2.0:
            break
    assert clock.now - after == pytest.approx(3.0 / SHARE)


def test_the_state_is_not_copied_before_it_is_time(tmp_path: Path, clock: Clock) -> None:
    def copied() -> None:
        raise AssertionError("a copy costs time")

    resume = ResumeState(tmp_path, GROUP, LAST)
    resume.save(state(1.0, copied))
    clock.now += EVERY_S - 0.01
    resume.save(state(1.0, copied))
    assert files(tmp_path) == []


def test_after_an_artifact_the_next_save_is_due_once(tmp_path: Path, clock: Clock) -> None:
    resume = ResumeState(tmp_path, GROUP, LAST)
    resume.save_next()
    resume.save(state(1.0))
    resume.save(state(2.0))
    assert value(tmp_path) == 1.0


# -- damage --------------------------------------------------------------------------------------------------------


def flipped(content: bytes) -> bytes:
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


def no_tensors(content: bytes) -> bytes:
    return hashlib.sha256(b"no tensors").hexdigest().encode() + b"no tensors"


@pytest.mark.parametrize(
    "damage",
    [
        flipped,
        no_tensors,
        lambda content: content[:-1],
        lambda content: content[:100],
        lambda content: content[:64],
        lambda content: content + b"x",
        lambda content: b"",
        lambda content: b"0" * 64 + content[64:],
        lambda content: content[64:],
    ],
    ids=["flipped", "no tensors", "cut", "short", "digest alone", "longer", "empty", "other digest", "no digest"],
)
def test_a_damaged_resume_state_is_deleted(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    saved(tmp_path, 1.0)
    path = tmp_path / FOLDER / LAST
    path.write_bytes(damage(path.read_bytes()))
    given = {"k": {"x": np.ones(1)}}
    assert ResumeState(tmp_path, GROUP, LAST).restore(given) == given
    assert files(tmp_path) == []
    saved(tmp_path, 2.0)
    assert value(tmp_path) == 2.0


def test_a_failed_write_leaves_the_previous_save_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    resume = saved(tmp_path, 1.0)
    resume.save_next()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    resume.save(state(2.0))
    assert "No space left" in caplog.text
    assert value(tmp_path) == 1.0
    assert files(tmp_path) == [LAST]


def test_a_failed_copy_leaves_the_previous_save_complete(tmp_path: Path) -> None:
    resume = saved(tmp_path, 1.0)
    resume.save_next()

    def lost() -> Iterator[None]:
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        resume.save(Saved(lost))  # type: ignore[arg-type]
    assert value(tmp_path) == 1.0
    assert files(tmp_path) == [LAST]


# -- the end -------------------------------------------------------------------------------------------------------


def test_a_resume_state_can_be_deleted_twice(tmp_path: Path) -> None:
    resume = saved(tmp_path, 1.0)
    resume.delete()
    assert files(tmp_path) == []
    assert value(tmp_path) is None
    resume.delete()
    ResumeState(tmp_path / "never", GROUP, LAST).delete()


def test_resume_states_and_files_of_dead_writers_are_listed_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (resume_states(tmp_path), abandoned_resume_states(tmp_path)) == ({}, [])
    saved(tmp_path, 1)

    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        patch.setattr(Path, "unlink", killed)  # so that nothing is cleaned up
        with pytest.raises(Killed):
            saved(tmp_path, 2)
    folder = tmp_path / FOLDER
    (draft,) = (path for path in folder.iterdir() if path.name != LAST)
    assert resume_states(tmp_path) == {LAST: folder / LAST}
    assert abandoned_resume_states(tmp_path) == []  # this process is alive
    assert abandoned_resume_states(tmp_path, grace_s=-1.0) == []  # however long it takes
    with subprocess.Popen(["true"]) as process:
        process.wait()
    parts = draft.name.split("@")
    parts[-2] = str(process.pid)
    draft = draft.rename(draft.with_name("@".join(parts)))
    assert abandoned_resume_states(tmp_path) == [draft]
    assert value(tmp_path) == 1
