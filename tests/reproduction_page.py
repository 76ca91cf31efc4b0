"""The tables of docs/reproduction.md, made from the stored rows: each stands below the SQL statement that makes it.

``python -m tests.reproduction_page`` writes them again, after the rows or a statement changed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import duckdb

FOLDER = Path(__file__).parent.parent / "docs"
PAGE, ROWS = FOLDER / "reproduction.md", FOLDER / "reproduction" / "rows.parquet"
STATEMENT = re.compile(r"```sql\n(?P<sql>.*?)```\n\n(?:\|[^\n]*\n)*\n*", re.DOTALL)


def written(page: str) -> str:
    """The page with the table below each statement made from the stored rows."""
    with duckdb.connect() as database:
        database.execute("SET threads = 1")
        database.read_parquet(str(ROWS)).create_view("results")
        return STATEMENT.sub(lambda found: f"```sql\n{found['sql']}```\n\n{_table(database, found['sql'])}\n", page)


def _table(database: duckdb.DuckDBPyConnection, sql: str) -> str:
    answer = database.execute(sql)
    names = [column[0] for column in answer.description or ()]
    lines = [names, ["---"] * len(names), *([_text(value) for value in row] for row in answer.fetchall())]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
