"""A service's settings: from command-line options, then ``CREDITGRID_…`` environment variables, then defaults."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ByteSize, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from creditgrid.service.ledger.engine import parse_url

MIN_TOKEN = 16
"""Characters; a shorter token could be guessed."""
SIZE = re.compile(r"0*[1-9]\d*\s*[KMG]B", re.IGNORECASE)


class Settings(BaseSettings):
    """The settings of one service. There is no global instance."""

    # A validation error shows no value: it could be the token or a database password.
    model_config = SettingsConfigDict(env_prefix="CREDITGRID_", extra="forbid", hide_input_in_errors=True)

    host: str = Field("127.0.0.1", description="Address to listen on; anything but loopback needs a token.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    data_dir: Path = Field(Path("creditgrid-data"), description="Folder of the ledger, artifacts and results.")
    database_url: SecretStr | None = Field(
        None,
        description="The ledger's database, postgresql://user:password@host/database; default: SQLite in data_dir.",
    )
    ray_address: str | None = Field(None, description="A running Ray cluster to join; default: start one here.")
    runner: Literal["ray", "local"] = Field("ray", description="local: threads of this process, without Ray.")
    cpus: int | None = Field(None, gt=0, description="CPUs to use of this machine; default: all.")
    gpus: int | None = Field(None, ge=0, description="GPUs to use of this machine; default: all.")
    token: SecretStr | None = Field(None, description="Bearer token that every /v1 request must carry.")
    max_open_cells: int | None = Field(None, ge=0, description="Open cells of one person's sweeps; default: no limit.")
    max_priority: int | None = Field(
        None, ge=-1000, le=1000, description="Highest priority of a person's sweeps; default: no limit."
    )
    dataset_roots: Annotated[tuple[Path, ...] | None, NoDecode] = Field(
        None, description="Folders that dataset paths must be in. Default: any on loopback, none on other addresses."
    )
    allow_code: bool = Field(
        False,
        description="Take code from those who may submit; it runs as the user of this service.",
    )
    query_timeout_s: float = Field(30.0, gt=0, le=3600, description="Time limit of a SQL query.")
    query_memory: ByteSize = Field(ByteSize(512 * 10**6), description="Memory of one SQL query, such as 512MB or 2GB.")
    query_max_rows: int = Field(1_000_000, ge=1, description="A SQL query that yields more rows is refused.")
    log_format: Literal["auto", "json", "console"] = Field("auto", description="auto: console on a terminal.")
    grace_s: float = Field(10.0, ge=0, le=3600, description="Time for running calls to finish when the service stops.")

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        # Workers use the same path from other working directories.
        return value.expanduser().absolute()

    @field_validator("dataset_roots", mode="before")
    @classmethod
    def _split_roots(cls, value: object) -> object:
        return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value

    @field_validator("dataset_roots")
    @classmethod
    def _absolute_roots(cls, value: tuple[Path, ...] | None) -> tuple[Path, ...] | None:
        if value is None:
            return None
        roots = tuple(root.expanduser() for root in value)
        if any(not root.is_absolute() for root in roots):
            raise ValueError("a dataset root is the absolute path of a folder")
        return roots

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
    def _supported_database(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            parse_url(value.get_secret_value())
        return value

    @field_validator("query_memory", mode="before")
    @classmethod
    def _whole_size(cls, value: object) -> object:
        if isinstance(value, str) and SIZE.fullmatch(value.strip()) is None:  # ByteSize ignores text after the unit
            raise ValueError("a memory size is a positive whole number and KB, MB or GB, such as 512MB")
        return value

    @model_validator(mode="after")
    def _safe(self) -> Settings:
        if self.token is None and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host} can be reached from other machines, so an API token is needed: give one of at least "
                f"{MIN_TOKEN} characters by CREDITGRID_TOKEN or --token-file, or listen on 127.0.0.1"
            )
        return self

    def dataset_folders(self) -> tuple[str, ...] | None:
        """The folders that dataset paths must be in; None for any."""
        if self.dataset_roots is None:
            return None if is_loopback(self.host) else ()
        return tuple(os.path.normpath(root) for root in self.dataset_roots)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``, an address or ``localhost``; other names are not resolved."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
