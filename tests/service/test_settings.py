"""Settings: their sources, and which values are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from creditgrid.core.wire import Role, TokenRequest
from creditgrid.service.people.actor import Actor
from creditgrid.service.services import create_services
from creditgrid.service.settings import Settings, is_loopback

TOKEN = "correct-horse-battery"


def test_defaults_are_safe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings()
    assert (settings.host, settings.port, settings.runner) == ("127.0.0.1", 8000, "ray")
    assert settings.token is None
    assert settings.database_url is None
    assert settings.data_dir == tmp_path / "creditgrid-data"
    assert settings.query_memory == 512_000_000
    assert not settings.data_dir.exists()


def test_environment_and_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDITGRID_PORT", "9001")
    monkeypatch.setenv("CREDITGRID_RUNNER", "local")
    monkeypatch.setenv("CREDITGRID_TOKEN", TOKEN)
    settings = Settings(port=9002)
    assert (settings.port, settings.runner) == (9002, "local")
    assert settings.token is not None
    assert settings.token.get_secret_value() == TOKEN
    assert TOKEN not in repr(settings)


def test_limits_of_people(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CREDITGRID_MAX_OPEN_CELLS", "100")
    monkeypatch.setenv("CREDITGRID_MAX_PRIORITY", "-5")
    services = create_services(Settings(data_dir=tmp_path, runner="local"))
    made = services.tokens.create(TokenRequest(name="anna", role=Role.SUBMIT), Actor("admin", Role.ADMIN))
    assert (made.max_open_cells, made.max_priority) == (100, -5)
    for name, value in (("max_open_cells", -1), ("max_priority", 1001)):
        with pytest.raises(ValidationError):
            Settings.model_validate({name: value})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "localhost.example.org"])
def test_other_machines_need_a_token(host: str) -> None:
    with pytest.raises(ValidationError, match=r"API token is needed.*127\.0\.0\.1"):
        Settings(host=host)
    assert Settings(host=host, token=SecretStr(TOKEN)).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)
    assert Settings(host=host).token is None


@pytest.mark.parametrize(
    "token", ["", "short", "x" * 15, "with a space in it", "ümlaut-ümlaut-ümlaut", "line\nbreak-line-break"]
)
def test_bad_tokens_are_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ValidationError, match="at least 16") as caught:
        Settings(token=SecretStr(token))
    assert not token or token not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "size"), [("512MB", 512_000_000), ("2GB", 2_000_000_000), ("1 kb", 1000), ("64mb", 64_000_000)]
)
def test_memory_sizes(text: str, size: int) -> None:
    assert Settings(query_memory=text).query_memory == size


@pytest.mark.parametrize("text", ["", "512", "0MB", "-1MB", "1.5GB", "lots", "512MB'; SET x"])
def test_bad_memory_sizes(text: str) -> None:
    with pytest.raises(ValidationError, match="memory size"):
        Settings(query_memory=text)


@pytest.mark.parametrize(
    "options", [{"port": 65536}, {"port": -1}, {"runner": "slurm"}, {"cpus": 0}, {"query_timeout_s": 0}]
)
def test_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings(**options)  # type: ignore[arg-type]


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="hots"):
        Settings(hots="127.0.0.1")  # type: ignore[call-arg]


def test_the_data_directory_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings(data_dir=Path("here")).data_dir == tmp_path / "here"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings(data_dir=Path("~/data")).data_dir == tmp_path / "data"


def test_dataset_paths_are_limited_away_from_loopback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert Settings().dataset_folders() is None
    away = {"host": "0.0.0.0", "token": SecretStr(TOKEN)}
    assert Settings(**away).dataset_folders() == ()  # type: ignore[arg-type]
    assert Settings(dataset_roots=(tmp_path / "a" / ".." / "b",)).dataset_folders() == (str(tmp_path / "b"),)
    monkeypatch.setenv("CREDITGRID_DATASET_ROOTS", "/data/one:/data/two")
    assert Settings(**away).dataset_folders() == ("/data/one", "/data/two")  # type: ignore[arg-type]
    monkeypatch.setenv("CREDITGRID_DATASET_ROOTS", "")
    assert Settings().dataset_folders() == ()
    with pytest.raises(ValidationError, match="absolute path"):
        Settings(dataset_roots=(Path("data"),))
