"""Tasks by key, over HTTP and from the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import creditgrid_noop as noop
import pytest
from service_fakes import AppClient, Fakes
from sweeping import House

from creditgrid.core.errors import NotFoundError
from creditgrid.core.wire import TaskDocument

DOCUMENT = TaskDocument(
    key="ab" * 32,
    kind="fit",
    version=3,
    params={"d": 16},
    parents={"data": "cd" * 32},
    group="g",
    source={"path": "/x"},
)


@pytest.fixture
def known(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    def task(key: str) -> TaskDocument:
        if key != DOCUMENT.key:
            raise NotFoundError(f"there is no task {key!r}")
        return DOCUMENT

    monkeypatch.setattr(fakes.tasks, "get", task)


@pytest.mark.usefixtures("known")
def test_a_task(client: AppClient) -> None:
    response = client.get(f"/v1/tasks/{DOCUMENT.key}")
    assert response.status_code == 200
    assert TaskDocument.model_validate_json(response.text) == DOCUMENT


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("key", ["f" * 64, "short", "%2e%2e", "F" * 64, "ab" * 500])
def test_unknown_tasks(client: AppClient, key: str) -> None:
    response = client.get(f"/v1/tasks/{key}")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


def test_every_task_of_a_sweep_is_found_as_planned(tmp_path: Path) -> None:
    house = House(tmp_path)
    cells: list[dict[str, Any]] = [{"x": 1}, {"x": 2, "base": "ok", "y": 0.1}, {"x": 3, "behaviour": "raise"}]
    sweep = house.submit(include=cells)
    for when in ("before", "after"):
        for cell in cells:
            measure, below = noop.cell(noop.NoopParams(**cell), None)
            for task in (measure, *below):
                found = house.tasks.get(task.key)
                assert (found.kind, found.version, found.params) == (task.kind, task.version, dict(task.params)), when
                assert (found.parents, found.group, found.source) == (task.parents, task.group, dict(task.source))
        house.drain()
    (failure,) = house.failures.of(sweep)
    assert failure.command == f"creditgrid run-task {failure.key}"
    assert house.tasks.get(failure.key).kind == failure.kind == "noop"


def test_keys_of_no_task(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.submit(axes={"x": [1]})
    for key in ("0" * 64, "", "%", "x" * 1000):
        with pytest.raises(NotFoundError, match="there is no task"):
            house.tasks.get(key)
