"""The rows of an answer, as an Arrow table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from creditgrid.client.errors import PackageMissing, UnexpectedAnswer

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa


class Result:
    """Rows of a sweep or a query; ``table`` is a ``pyarrow.Table``."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @classmethod
    def from_stream(cls, data: bytes) -> Result:
        """The table in an Arrow IPC stream.

        Raises:
            UnexpectedAnswer: if it is not an Arrow stream.
        """
        # Imported at its first use, because that takes half a second.
        import pyarrow as pa

        try:
            with pa.ipc.open_stream(data) as reader:
                return cls(reader.read_all())
        except (pa.ArrowInvalid, OSError) as error:
            raise UnexpectedAnswer(f"the service's answer is not an Arrow stream: {error}") from error

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __repr__(self) -> str:
        return f"Result({len(self)} rows: {', '.join(self.table.column_names)})"

    def to_pylist(self) -> list[dict[str, Any]]:
        """The rows as dicts."""
        rows: list[dict[str, Any]] = self.table.to_pylist()
        return rows

    def to_pandas(self) -> pd.DataFrame:
        """The rows as a pandas DataFrame.

        Raises:
            PackageMissing: if pandas is not installed.
        """
        try:
            import pandas  # noqa: F401 - Arrow's own message does not say what to install
        except ImportError as error:
            raise PackageMissing("to_pandas() needs pandas: pip install pandas") from error
        frame: pd.DataFrame = self.table.to_pandas()
        return frame

    def to_polars(self) -> pl.DataFrame:
        """The rows as a Polars DataFrame.

        Raises:
            PackageMissing: if Polars is not installed.
        """
        try:
            import polars
        except ImportError as error:
            raise PackageMissing("to_polars() needs Polars: pip install polars") from error
        frame = polars.from_arrow(self.table)
        assert isinstance(frame, polars.DataFrame)  # a table always makes a frame
        return frame
