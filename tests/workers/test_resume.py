"""An interrupted call continues: stored artifacts are not computed again, and training resumes bit for bit."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.experiments.parameters import CreditParams, TrainParams
from creditgrid.core.experiments.stage_runs import run_feedback, run_train
from creditgrid.core.experiments.stages import TRAIN, data_task, feedback_task
from creditgrid.core.science import training
from creditgrid.core.science.data import ImageData, training_batches
from creditgrid.core.task import Arrays, Inputs, Output, Resources, Saved, Task
from creditgrid.core.units.choice import composed
from creditgrid.core.units.known import installed
from creditgrid.workers import resume_state
from creditgrid.workers.artifacts import ArtifactStore
from creditgrid.workers.execute import execute
from creditgrid.workers.runner import Advanced, Call, Failed, Finished

CPU = torch.device("cpu")
TINY = DatasetRef("tiny", "d" * 64, 90, 60, 5, (3, 8, 8), {"package": "none"})
LAST = 6
RULES: list[dict[str, Any]] = [
    {"train_rule": "bp", "random_targets": False},
    {"train_rule": "dfa", "random_targets": False},
    {"train_rule": "dfa", "random_targets": True},
]


@pytest.fixture(autouse=True)
def every_epoch_is_reported_and_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume_state, "EVERY_S", 0.0)
    monkeypatch.setattr(resume_state, "SHARE", float("inf"))
    monkeypatch.setattr("creditgrid.workers.execute.PROGRESS_EVERY_S", 0.0)


class Lost(OSError):
    """The machine was lost."""


class Batches:
    """Counts the epochs that are trained, and loses the machine in the second batch of one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.epochs: list[int] = []
        self.lose: int | None = None
        monkeypatch.setattr(training, "training_batches", self)

    def __call__(self, data: ImageData, size: int, seed: int, epoch: int) -> Iterator[Any]:
        self.epochs.append(epoch)
        for number, batch in enumerate(training_batches(data, size, seed, epoch)):
            if epoch == self.lose and number == 1:
                raise Lost(errno.EIO, "the machine went away")
            yield batch

    def recover(self) -> None:
        """Lose the machine no more, and count from now on."""
        self.lose = None
        self.epochs = []

    def take(self) -> list[int]:
        taken, self.epochs = self.epochs, []
        return taken


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Batches:
    return Batches(monkeypatch)


def checkpoints(epochs: Sequence[int], **changes: Any) -> list[Task]:
    run: dict[str, Any] = {
        "dataset": TINY.name,
        "seed": 3,
        "train_epochs": LAST,
        "num_blocks": 2,
        "d_hidden": 12,
        "w2_std": 0.1,
        "batch_size": 20,
        "lr": 3e-3,
        "weight_decay": 0.1,
    }
    params = composed(TrainParams, installed())(**run | changes)
    return [params.trained(TINY, epoch) for epoch in epochs]


@pytest.fixture
def inputs(tiny_data: ImageData) -> dict[str, Arrays]:
    small = ImageData(
        tiny_data.x_train[:90],
        tiny_data.y_train[:90],
        tiny_data.x_test,
        tiny_data.y_test,
        tiny_data.mean,
        tiny_data.std,
        tiny_data.num_classes,
    )
    data = {data_task(TINY).key: small.to_arrays()}
    feedback = feedback_task(TINY, seed=3, num_blocks=2, d_hidden=12)
    (made,) = run_feedback([feedback], data, CPU)
    assert isinstance(made, Output)
    assert made.arrays is not None
    return {**data, made.key: made.arrays}


Go = Callable[..., list[Any]]


@pytest.fixture
def go(inputs: Inputs, store: ArtifactStore) -> Go:
    def run(wanted: Sequence[Task], into: ArtifactStore = store, attempt: int = 1) -> list[Any]:
        parents = sorted({key for task in wanted for key in task.parents.values()})
        call = Call(1, "train", wanted, parents, Resources(cpu=1), attempt)
        return list(execute(call, {key: inputs[key] for key in parents}, into, CPU))

    return run


def assert_same(store: ArtifactStore, other: ArtifactStore, wanted: Sequence[Task]) -> None:
    for task in wanted:
        found, expected = store.load(task.key), other.load(task.key)
        assert found.keys() == expected.keys()
        for name, array in found.items():
            assert array.tobytes() == expected[name].tobytes(), (task.params["epoch"], name)
        (info, wanted_info) = (s.record(task.key)["provenance"]["info"] for s in (store, other))
        assert info == wanted_info


def notes(items: Sequence[Any]) -> list[str]:
    return [item.note for item in items if isinstance(item, Advanced)]


def kept(store: ArtifactStore) -> list[Path]:
    folder = store.root / resume_state.FOLDER
    return sorted(folder.iterdir()) if folder.exists() else []


@pytest.fixture
def whole(tmp_path: Path) -> ArtifactStore:
    """A store for runs that are not interrupted."""
    return ArtifactStore(tmp_path / "whole")


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_an_interrupted_run_continues_from_its_resume_state_bit_for_bit(
    rule: dict[str, Any], go: Go, batches: Batches, store: ArtifactStore, whole: ArtifactStore
) -> None:
    wanted = checkpoints([LAST], **rule)
    uninterrupted = go(wanted, whole)
    assert isinstance(uninterrupted[-1], Finished)
    assert batches.take() == [1, 2, 3, 4, 5, 6]
    assert not any("resumed" in note for note in notes(uninterrupted))
    assert kept(whole) == []

    batches.lose = 4
    *_, failed = go(wanted)
    assert isinstance(failed, Failed)
    assert failed.transient
    assert failed.stored == ()
    assert batches.take() == [1, 2, 3, 4]
    assert [path.name for path in kept(store)] == [wanted[-1].key]

    batches.lose = 5  # and once more, later
    assert isinstance(go(wanted, attempt=2)[-1], Failed)
    assert batches.take() == [4, 5]

    batches.lose = None
    items = go(wanted, attempt=3)
    assert batches.take() == [5, 6]
    assert notes(items)[0].startswith("resumed at epoch 4 of 6")
    assert isinstance(items[-1], Finished)
    assert items[-1].sizes == {wanted[0].key: store.size(wanted[0].key)}
    assert_same(store, whole, wanted)
    assert kept(store) == []  # the run has finished


def test_checkpoints_that_are_there_are_not_computed_again(
    go: Go, batches: Batches, store: ArtifactStore, whole: ArtifactStore
) -> None:
    wanted = checkpoints([0, 2, LAST])
    go(wanted, whole)
    batches.take()
    batches.lose = 4
    *_, failed = go(wanted)
    assert isinstance(failed, Failed)
    assert set(failed.stored) == {wanted[0].key, wanted[1].key}
    batches.recover()
    before = {task.key: store.path(task.key).stat().st_mtime_ns for task in wanted[:2]}

    items = go(wanted, attempt=2)
    assert batches.take() == [4, 5, 6]
    assert [key for key, _ in (item for item in items if isinstance(item, tuple))] == [wanted[2].key]
    finished = items[-1]
    assert isinstance(finished, Finished)
    assert finished.sizes == {task.key: store.size(task.key) for task in wanted}
    assert {key: store.path(key).stat().st_mtime_ns for key in before} == before
    assert_same(store, whole, wanted)

    again = go(wanted, attempt=3)  # all of them are there: nothing is done
    assert batches.take() == []
    assert isinstance(again[-1], Finished)
    assert again[-1].sizes == finished.sizes
    assert not [item for item in again if isinstance(item, tuple)]


def test_the_resume_state_is_found_by_the_next_attempt_which_has_fewer_tasks(
    go: Go, batches: Batches, store: ArtifactStore, whole: ArtifactStore
) -> None:
    early, late = checkpoints([2, LAST])
    go([late, early], whole)
    batches.lose = 5
    *_, failed = go([late, early])  # in any order
    assert isinstance(failed, Failed)
    assert failed.stored == (early.key,)
    batches.recover()
    assert isinstance(go([late], attempt=2)[-1], Finished)
    assert batches.take() == [5, 6]
    assert_same(store, whole, [early, late])
    assert kept(store) == []


def test_a_checkpoint_that_was_lost_since_is_trained_from_the_start(
    go: Go, batches: Batches, store: ArtifactStore, whole: ArtifactStore
) -> None:
    wanted = checkpoints([2, LAST])
    go(wanted, whole)
    batches.lose = 5
    go(wanted)
    batches.recover()
    shutil.rmtree(store.path(wanted[0].key))
    assert not store.has(wanted[0].key)
    assert isinstance(go(wanted, attempt=2)[-1], Finished)
    assert batches.take() == [1, 2, 3, 4, 5, 6]  # the resume state is of epoch 4, which is past epoch 2
    assert_same(store, whole, wanted)


def test_a_damaged_resume_state_costs_only_time(
    go: Go, batches: Batches, store: ArtifactStore, whole: ArtifactStore
) -> None:
    wanted = checkpoints([LAST])
    go(wanted, whole)
    batches.lose = 4
    go(wanted)
    batches.recover()
    (path,) = kept(store)
    path.write_bytes(path.read_bytes()[:-5])
    assert isinstance(go(wanted, attempt=2)[-1], Finished)
    assert batches.take() == [1, 2, 3, 4, 5, 6]
    assert_same(store, whole, wanted)


def test_a_run_is_saved_after_an_artifact_even_if_it_is_too_early(
    go: Go, batches: Batches, store: ArtifactStore, whole: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume_state, "EVERY_S", 1e9)
    wanted = checkpoints([2, LAST])
    go(wanted, whole)
    batches.lose = 5
    go(wanted)
    batches.recover()
    go(wanted, attempt=2)
    assert batches.take() == [3, 4, 5, 6]
    assert_same(store, whole, wanted)


def test_another_run_s_resume_state_is_not_used(
    go: Go, batches: Batches, store: ArtifactStore, whole: ArtifactStore
) -> None:
    batches.lose = 4
    go(checkpoints([LAST]))
    batches.recover()
    other = checkpoints([LAST], lr=1e-3)
    go(other)
    assert batches.take() == [1, 2, 3, 4, 5, 6]
    go(other, whole)
    assert_same(store, whole, other)
    assert len(kept(store)) == 1  # the first run's is still there


def test_a_run_continues_if_its_resume_state_cannot_be_written(
    go: Go, batches: Batches, store: ArtifactStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.root.mkdir(parents=True, exist_ok=True)
    (store.root / resume_state.FOLDER).write_text("in the way")
    assert isinstance(go(checkpoints([LAST]))[-1], Finished)
    assert "a resume state cannot be written" in caplog.text


def test_a_resume_state_of_another_version_is_not_used(go: Go, batches: Batches, store: ArtifactStore) -> None:
    (wanted,) = checkpoints([LAST])
    other = resume_state.ResumeState(store.root, wanted.group, wanted.key)
    other.save_next()
    other.save(Saved(lambda: {"epoch": np.array(3), "weights": np.ones(2, np.float32)}))
    assert isinstance(go([wanted])[-1], Finished)
    assert batches.take() == list(range(1, LAST + 1))


def test_two_calls_of_one_training_share_no_resume_state(go: Go, batches: Batches, store: ArtifactStore) -> None:
    """Two sweeps' epochs of one training: the end of the shorter call deletes nothing of the longer one."""
    early, late = checkpoints([2]), checkpoints([LAST])
    batches.lose = 4
    assert isinstance(go(late)[-1], Failed)
    batches.lose = None
    batches.take()
    assert isinstance(go(early)[-1], Finished)
    assert batches.take() == [1, 2]
    assert isinstance(go(late, attempt=2)[-1], Finished)
    assert batches.take()[0] == 4


def test_saved_arrays_hold_all_that_the_run_needs(go: Go, batches: Batches, store: ArtifactStore) -> None:
    (wanted,) = checkpoints([LAST])
    batches.lose = 4
    go([wanted])
    arrays = resume_state.ResumeState(store.root, wanted.group, wanted.key).restore({})[wanted.group]
    assert int(arrays["epoch"]) == 3
    assert int(arrays["steps"]) == 15  # 90 images in batches of 20
    names = {name.removeprefix("network.") for name in arrays if name.startswith("network.")}
    moments = {f"{moment}.{name}" for moment in ("exp_avg", "exp_avg_sq") for name in names}
    assert set(arrays) == {f"network.{name}" for name in names} | moments | {"epoch", "steps", "lr", "train_loss"}
    expected = 3e-3 * (1 + np.cos(np.pi * 3 / LAST)) / 2
    assert arrays["lr"] == pytest.approx(expected)
    assert TRAIN.name == wanted.kind


def curve(items: Sequence[Any]) -> list[tuple[int, dict[str, Any]]]:
    """The points of an attempt, without times."""
    points = [point for item in items if isinstance(item, Advanced | Finished | Failed) for point in item.points]
    assert all((point.metrics.keys() >= {"seconds", "images_per_s"}) == (point.epoch > 0) for point in points)
    times = ("seconds", "images_per_s")
    return [
        (point.epoch, {name: value for name, value in point.metrics.items() if name not in times}) for point in points
    ]


def test_every_attempt_has_the_whole_curve_of_its_training(
    go: Go, batches: Batches, store: ArtifactStore, whole: ArtifactStore
) -> None:
    """Epoch 0 has a point where something is measured there: at a checkpoint."""
    wanted = checkpoints([0, 2, LAST])
    expected = curve(go(wanted, whole))
    assert [epoch for epoch, _ in expected] == [0, 1, 2, 3, 4, 5, 6]
    assert expected[0][1].keys() == {"test_accuracy", "test_loss"}
    assert expected[1][1].keys() == {"train_loss", "step_size"}
    assert expected[2][1].keys() == {"train_loss", "step_size", "test_accuracy", "test_loss"}
    info = whole.record(wanted[1].key)["provenance"]["info"]
    assert {name: expected[2][1][name] for name in info} == info
    batches.lose = 4
    assert curve(go(wanted)) == expected[:4]
    batches.recover()
    assert curve(go(wanted, attempt=2)) == expected
    assert curve(go(wanted, attempt=3)) == expected  # all checkpoints are there
    shutil.rmtree(store.path(wanted[1].key))
    assert curve(go(wanted, attempt=4)) == expected


def test_an_interrupted_fit_continues_bit_for_bit(
    inputs: Inputs, store: ArtifactStore, whole: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = composed(CreditParams, installed())(
        dataset=TINY.name,
        method="scalar_cb",
        fit_epochs=4,
        train_epochs=1,
        num_blocks=2,
        d_hidden=12,
        batch_size=20,
    )
    checkpoint = params.probed(TINY)
    (fit,) = params.credit_parents(TINY, checkpoint).values()
    (made,) = (item for item in run_train([checkpoint], inputs, CPU) if isinstance(item, Output))
    given = {**inputs, made.key: made.arrays or {}}

    def run(into: ArtifactStore, attempt: int) -> list[Any]:
        parents = sorted(fit.parents.values())
        call = Call(1, "fit", [fit], parents, Resources(cpu=1), attempt)
        return list(execute(call, {key: given[key] for key in parents}, into, CPU))

    assert isinstance(run(whole, 1)[-1], Finished)
    fitted: list[int] = []
    lose = True

    def batches(data: ImageData, size: int, seed: int, epoch: int, stream: str) -> Iterator[Any]:
        fitted.append(epoch)
        if epoch == 3 and lose:
            raise Lost(errno.EIO, "the machine went away")
        yield from training_batches(data, size, seed, epoch, stream)

    monkeypatch.setattr("creditgrid.core.science.fitting.training_batches", batches)
    assert isinstance(run(store, 1)[-1], Failed)
    lose = False
    items = run(store, 2)
    assert isinstance(items[-1], Finished)
    assert fitted == [1, 2, 3, 3, 4]
    assert notes(items)[0].startswith("resumed at epoch 2 of 4, fitting loss")
    found, expected = store.load(fit.key), whole.load(fit.key)
    assert all(array.tobytes() == expected[name].tobytes() for name, array in found.items())
    assert kept(store) == []
