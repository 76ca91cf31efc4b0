"""The limits of a person: open cells and priority."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from people_kit import Lab, open_lab
from sweeping import wait_until

from creditgrid.service.ledger import tables, transitions
from creditgrid.service.people.actor import Limits
from creditgrid.service.people.limits import count_open_cells


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with open_lab(tmp_path, Limits(open_cells=100, priority=5)) as found:
        yield found


def open_cells(lab: Lab, name: str) -> int:
    with lab.ledger.read() as connection:
        return count_open_cells(connection, name)


def test_a_submission_beyond_the_limit_is_refused_whole(lab: Lab) -> None:
    anna = lab.token("anna", max_open_cells=10)
    assert lab.submit(anna, cells=6).status_code == 201
    answer = lab.submit(anna, first=100, cells=5)
    assert answer.status_code == 403
    assert answer.json()["detail"] == (
        "'anna' has 6 open cells, this would open 5 more, and the limit is 10 (max_open_cells): wait until some have "
        "ended, or cancel a sweep"
    )
    assert open_cells(lab, "anna") == 6
    assert len(lab.ask("GET", "/v1/sweeps").json()["items"]) == 1
    assert lab.submit(anna, first=100, cells=4).status_code == 201
    full = lab.submit(anna, first=200)
    assert full.status_code == 403
    assert full.json()["detail"].startswith("'anna' has 10 open cells, and the limit is 10")


def test_a_plan_beyond_the_limit_ends_early(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    written = Counter[str]()
    create_cells = transitions.create_cells

    def counted(connection: sa.Connection, sweep: str, rows: Sequence[Any]) -> None:
        written["cells"] += len(rows)
        create_cells(connection, sweep, rows)

    monkeypatch.setattr(transitions, "create_cells", counted)
    answer = lab.submit(lab.token("anna", max_open_cells=10), cells=20_000)
    assert answer.status_code == 403
    assert "this would open at least" in answer.json()["detail"]
    assert 0 < written["cells"] < 10_000
    with lab.ledger.read() as connection:
        for table in (tables.sweeps, tables.cells, tables.tasks, tables.counts):
            assert connection.scalar(sa.select(sa.func.count()).select_from(table)) == 0


def test_a_repeated_request_finds_its_sweep_although_nothing_more_may_open(lab: Lab) -> None:
    anna = lab.token("anna", max_open_cells=3)
    document = {"name": "n", "experiment": "noop", "axes": {"x": [1, 2, 3]}}
    headers = {"Authorization": f"Bearer {anna}", "Idempotency-Key": "k"}
    first, again = (lab.client.post("/v1/sweeps", json=document, headers=headers) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json()["id"] == again.json()["id"]


def test_the_limit_is_each_persons(lab: Lab) -> None:
    anna, ben = lab.token("anna", max_open_cells=3), lab.token("ben")
    assert lab.submit(anna, cells=3).status_code == 201
    assert lab.submit(ben, first=10, cells=99).status_code == 201
    assert lab.submit(ben, first=200, cells=2).status_code == 403  # the service's limit
    assert lab.submit("the-token-of-the-settings", first=300, cells=200).status_code == 201  # holds for role submit


def test_what_ends_makes_room(lab: Lab) -> None:
    anna = lab.token("anna", max_open_cells=3)
    sweep = lab.submit(anna, cells=3).json()["id"]
    assert lab.submit(anna, first=10).status_code == 403
    assert lab.ask("POST", f"/v1/sweeps/{sweep}/cancel", anna).status_code == 200
    assert lab.submit(anna, first=10, cells=3).status_code == 201


def test_an_extension_is_limited(lab: Lab) -> None:
    anna = lab.token("anna", max_open_cells=4)
    sweep = lab.submit(anna, cells=3).json()["id"]

    def extend(values: list[int], token: str = anna) -> Any:
        return lab.ask("POST", f"/v1/sweeps/{sweep}/extend", token, json={"axes": {"x": values}})

    assert extend([10, 11]).status_code == 403
    assert open_cells(lab, "anna") == 3
    assert extend([10]).status_code == 200
    assert extend([11]).status_code == 403
    assert extend([11], lab.token("root", role="admin")).status_code == 200  # an administrator may


def test_a_retry_is_limited(lab: Lab) -> None:
    anna = lab.token("anna", max_open_cells=4)
    sweep = lab.submit(anna, cells=3).json()["id"]
    wait_until(lambda: bool(lab.runner.calls))
    lab.runner.fail(next(iter(lab.runner.calls)))
    wait_until(lambda: lab.services.sweeps.get(sweep).state.finished)
    assert lab.submit(anna, first=10, cells=2).status_code == 201
    answer = lab.ask("POST", f"/v1/sweeps/{sweep}/retry", anna)
    assert answer.status_code == 403
    assert "'anna' has 2 open cells, this would open 3 more" in answer.json()["detail"]
    assert lab.ask("GET", f"/v1/sweeps/{sweep}").json()["state"] == "failed"


def test_a_priority_above_the_ceiling_is_refused(lab: Lab) -> None:
    anna, ben = lab.token("anna"), lab.token("ben", max_priority=-1)
    assert lab.submit(anna, priority=5).status_code == 201
    answer = lab.submit(anna, first=10, priority=6)
    assert answer.status_code == 403
    assert (
        answer.json()["detail"]
        == "priority 6 is above the limit of 'anna', which is 5 (max_priority): choose 5 or less"
    )
    assert lab.submit(ben, first=20).status_code == 403  # 0 is the default
    assert lab.submit(ben, first=20, priority=-1).status_code == 201


def test_concurrent_submissions_cannot_exceed_the_limit_together(tmp_path: Path, url: str) -> None:
    with open_lab(tmp_path, url=url) as lab:
        submit_at_once(lab)


def submit_at_once(lab: Lab) -> None:
    anna = lab.token("anna", max_open_cells=20)
    statuses: list[int] = []
    ready = threading.Barrier(8)

    def submit(number: int) -> None:
        ready.wait()
        for n in range(3):
            statuses.append(lab.submit(anna, first=1000 * number + 100 * n, cells=3).status_code)

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(statuses) == {201: 6, 403: 18}
    assert open_cells(lab, "anna") == 18
