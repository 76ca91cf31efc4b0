"""What the service and a query's process say to each other, see ``sql_process``.

The service sends a pickled ``Request``. The process answers with frames: a byte that says what the frame is, and its
payload. The service unpickles nothing that the process sends.

- ``READY``: a request may come.
- ``DATA``: bytes of the answer.
- ``SCAN``: the query reads a table of the ledger: JSON, ``{"table": …, "columns": […], "only": […] or null}``, where
  ``only`` are the sweeps whose cells or stages matter. The first scan of a request is number 0.
- ``NEXT``: the number of a scan; the service sends its next batch as an Arrow IPC message, and nothing after the last.
- ``END``: the query has ended: ``Outcome`` as JSON.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import pyarrow as pa
from humanize import naturalsize

from creditgrid.core.errors import QueryError

READY, DATA, SCAN, NEXT, END = b"r", b"d", b"s", b"n", b"e"
FRAME_BYTES = 2**20
"""About how long a frame of data is."""
SMALL_ANSWER = 2**20
"""Bytes of Arrow data that an answer in the quick lane may have."""
QUICK_S = 0.25
"""Seconds that a query in the quick lane may take."""
NO_MEMORY = 3
"""Exit status when the process has no memory left to say so."""


@dataclass(frozen=True)
class Files:
    """A table of Parquet files."""

    root: str  # its folder
    paths: tuple[str, ...]  # below root
    columns: pa.Schema  # of the table; a file may lack some
    uniform: bool  # its files have the same columns


@dataclass(frozen=True)
class Request:
    """One query and its bounds."""

    sql: str
    format: str
    files: dict[str, Files]  # the tables of files
    ledger: dict[str, pa.Schema]  # the tables that SCAN may name
    timeout_s: float
    memory: int
    max_rows: int | None
    quick: bool = False  # end as "slow" unless the whole answer is small and soon complete
    spill: str | None = None  # a directory for what does not fit into memory


@dataclass(frozen=True)
class Outcome:
    """How a query ended: it is ``ok``, ``slow`` (too long or too large for the quick lane), or has an ``error``."""

    ok: bool
    slow: bool = False
    error: str = ""

    def dump(self) -> bytes:
        """The frame's payload."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def load(cls, payload: bytes) -> Outcome:
        """The outcome of a frame's payload."""
        return cls(**json.loads(payload))


def out_of_memory(memory: int) -> QueryError:
    """The error of a query that needs more than ``memory`` bytes."""
    return QueryError(f"the query needs more than {naturalsize(memory, format='%g')} of memory: select less")
