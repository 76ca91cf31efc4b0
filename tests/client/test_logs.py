"""Logs in Python: of one task, as it grows, and of a sweep."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from creditgrid.client import logs as module
from creditgrid.client.client import Client
from creditgrid.client.errors import BadSetting, NotFound
from creditgrid.core.states import State

KEY = "c" * 64


@pytest.fixture
def client(service) -> Iterator[Client]:
    with Client(service.url) as found:
        yield found


def test_the_log_of_a_task(client: Client, service) -> None:
    service.prints(KEY, "one\ntwo \N{SNOWMAN}\n")
    assert client.logs(KEY) == "one\ntwo \N{SNOWMAN}\n"
    assert client.logs(KEY, tail=4) == "\N{SNOWMAN}\n"
    with pytest.raises(NotFound):
        client.logs("d" * 64)
    with pytest.raises(BadSetting, match="key is empty"):
        client.logs("")


def test_a_log_is_followed_to_its_end(client: Client, service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.prints(KEY, "one\n", ended=False)
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            service.prints(KEY, "two\n", ended=False)
        if len(pauses) == 3:
            service.prints(KEY, "three\n")

    monkeypatch.setattr(module.time, "sleep", pause)
    assert list(client.follow_logs(KEY)) == ["one\n", "two\n", "three\n"]


def test_the_logs_of_a_sweep(client: Client, service) -> None:
    service.add()
    sweep = client.sweep("s1")
    assert list(sweep.logs()) == []
    service.prints(KEY, "one\n")
    reader = module.SweepLogs(sweep.connection, "s1")
    assert [(view.kind, view.key, text) for view, text in reader.new()] == [("train", KEY, "one\n")]
    assert list(reader.new()) == []
    service.prints(KEY, "two\n")
    assert [text for _, text in reader.new()] == ["two\n"]
    assert [text for _, text in sweep.logs()] == ["one\ntwo\n"]
    assert list(module.SweepLogs(sweep.connection, "s1").new(State.SUCCEEDED)) == []
