"""What a service is started with: command-line options over ``CREDITGRID_…`` environment variables over defaults."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from creditgrid.service.ledger.engine import parse_url

MIN_TOKEN = 16
"""Characters; a shorter token could be guessed."""


class Settings(BaseSettings):
    """One service's settings. There is no global instance: whoever starts a service makes one and hands it on."""

    # A value is never shown in a validation error: one of them is the token, another may hold a database password.
    model_config = SettingsConfigDict(env_prefix="CREDITGRID_", extra="forbid", hide_input_in_errors=True)

    host: str = Field("127.0.0.1", description="Address to listen on; anything but loopback needs a token.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    data_dir: Path = Field(Path("creditgrid-data"), description="Where ledger, artifacts and results lie.")
    database_url: SecretStr | None = Field(
        None,
        description="Where the ledger lives: postgresql://user:password@host/database; default: SQLite in data_dir.",
    )
    ray_address: str | None = Field(None, description="A running Ray cluster to join; default: start one here.")
    runner: Literal["ray", "local"] = Field("ray", description="local: threads of this process, without Ray.")
    cpus: int | None = Field(None, gt=0, description="CPUs to use of this machine; default: all.")
    gpus: int | None = Field(None, ge=0, description="GPUs to use of this machine; default: all.")
    token: SecretStr | None = Field(None, description="Bearer token that every /v1 request must carry.")
    query_timeout_s: float = Field(30.0, gt=0, le=3600, description="A SQL query is stopped after this long.")
    query_memory: str = Field("512MB", description="Memory of one SQL query, such as 512MB or 2GB.")
    query_max_rows: int = Field(1_000_000, ge=1, description="A SQL query that yields more rows is refused.")
    log_format: Literal["auto", "json", "console"] = Field("auto", description="auto: console on a terminal.")
    grace_s: float = Field(10.0, ge=0, le=3600, description="On a stop, running calls may go on for this long.")

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        # Workers find artifacts under the same path, from other working directories.
        return value.expanduser().absolute()

    @field_validator("token")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        text = value.get_secret_value()
        if len(text) < MIN_TOKEN or not (text.isascii() and text.isprintable()) or " " in text:
            raise ValueError(f"a token is at least {MIN_TOKEN} printable ASCII characters without spaces")
        return value

    @field_validator("database_url")
    @classmethod
    def _a_database(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            parse_url(value.get_secret_value())
        return value

    @field_validator("query_memory")
    @classmethod
    def _a_size(cls, value: str) -> str:
        memory_bytes(value)
        return value

    @model_validator(mode="after")
    def _safe(self) -> Settings:
        if self.token is None and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host} can be reached from other machines, so an API token is needed: give one of at least "
                f"{MIN_TOKEN} characters by CREDITGRID_TOKEN or --token-file, or listen on 127.0.0.1"
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host`` (an address or ``localhost``; other names are not looked up)."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def memory_bytes(text: str) -> int:
    """Bytes in a size such as ``512MB``.

    Raises:
        ValueError: for anything but a positive number with KB, MB or GB.
    """
    found = re.fullmatch(r"(\d+)\s*(KB|MB|GB)", text.strip(), re.IGNORECASE)
    if found is None or int(found[1]) == 0:
        raise ValueError("a memory size is a positive whole number and KB, MB or GB, such as 512MB")
    return int(found[1]) * {"KB": 10**3, "MB": 10**6, "GB": 10**9}[found[2].upper()]
