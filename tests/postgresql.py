"""Databases on the PostgreSQL server that CREDITGRID_TEST_POSTGRES names. Each test has its own."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa


class Database:
    """An empty database and its outages. Its user may create databases and close the connections of others."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._name = f"creditgrid_{secrets.token_hex(8)}"
        self.url = sa.make_url(server).set(database=self._name).render_as_string(hide_password=False)
        self._execute(f"CREATE DATABASE {self._name}")

    def cut(self) -> None:
        """Close every connection to it, as a restart of the server does."""
        self._execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self._name}'")

    @contextmanager
    def away(self) -> Iterator[None]:
        """Close every connection to it and refuse new ones."""
        self._execute(f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS false")
        self.cut()
        yield
        self._execute(f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS true")

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Refuse writes, as a server does that has become a standby."""
        self._execute(f"ALTER DATABASE {self._name} SET default_transaction_read_only = on")
        self.cut()
        yield
        self._execute(f"ALTER DATABASE {self._name} RESET default_transaction_read_only")
        self.cut()

    def drop(self) -> None:
        """Remove it and close its connections."""
        self._execute(f"DROP DATABASE {self._name} WITH (FORCE)")

    def _execute(self, statement: Any) -> None:
        with psycopg.connect(self._server, autocommit=True) as connection:
            connection.execute(statement)


@contextmanager
def fresh_database() -> Iterator[Database]:
    """An empty database; without a server the test is skipped."""
    server = os.environ.get("CREDITGRID_TEST_POSTGRES")
    if server is None:
        pytest.skip("CREDITGRID_TEST_POSTGRES names no PostgreSQL server; make test-postgresql starts one")
    database = Database(server)
    yield database
    database.drop()
