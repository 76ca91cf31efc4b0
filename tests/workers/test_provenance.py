"""Provenance: versions as installed, and the revision of the checkout that the code is part of."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

import creditgrid.workers.provenance as module

SOURCE = Path(module.__file__)


@pytest.fixture(autouse=True)
def _uncached() -> Iterator[None]:
    module.software.cache_clear()
    yield
    module.software.cache_clear()


def git(where: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(where), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the module in a git checkout of its own, where it is not committed yet."""
    place = tmp_path / "checkout" / "package"
    place.mkdir(parents=True)
    shutil.copy(SOURCE, place / "provenance.py")
    git(place.parent, "init", "--quiet")
    monkeypatch.setattr(module, "__file__", str(place / "provenance.py"))
    return place


def test_versions_are_those_installed() -> None:
    found = module.software()
    assert set(found) == {"torch", "version", "commit", "dirty"}
    assert found["torch"] == version("torch")
    assert found["version"]


def test_a_clean_checkout_has_a_commit_and_is_not_dirty(copy: Path) -> None:
    git(copy, "add", ".")
    git(copy, "commit", "--quiet", "-m", "one")
    (copy / "untracked").write_text("does not count")
    found = module.software()
    assert found["commit"] == git(copy, "rev-parse", "HEAD")
    assert len(found["commit"]) == 40
    assert found["dirty"] is False


def test_a_changed_checkout_is_dirty(copy: Path) -> None:
    git(copy, "add", ".")
    git(copy, "commit", "--quiet", "-m", "one")
    (copy / "provenance.py").write_text("changed")
    assert module.software()["dirty"] is True


def test_a_checkout_that_does_not_hold_the_code_is_ignored(copy: Path) -> None:
    (copy / "other").write_text("the user's own project")
    git(copy, "add", "other")
    git(copy, "commit", "--quiet", "-m", "one")
    found = module.software()
    assert (found["commit"], found["dirty"]) == (None, None)


def test_without_a_checkout_there_is_no_commit(copy: Path) -> None:
    shutil.rmtree(copy.parent / ".git")
    assert module.software()["commit"] is None


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*arguments: Any, **options: Any) -> Any:
        raise FileNotFoundError("git")

    monkeypatch.setattr(module.subprocess, "run", absent)
    assert module.software()["commit"] is None


def test_a_git_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*arguments: Any, **options: Any) -> Any:
        assert options["timeout"] <= 10
        raise subprocess.TimeoutExpired("git", options["timeout"])

    monkeypatch.setattr(module.subprocess, "run", hang)
    assert module.software()["commit"] is None


def test_devices_have_readable_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    assert module.device_name(torch.device("cpu")) == "cpu (x86_64)"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    assert module.device_name(torch.device("cuda")) == "cuda (NVIDIA H100)"


def test_the_host_has_a_name() -> None:
    assert module.host()
