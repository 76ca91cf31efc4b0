"""The main use from start to end, with the public client only: start a service, run a grid, read its results, stop.

    python demo.py

All files are in a temporary folder, which is deleted at the end.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.rule import Rule

from creditgrid.client import Client, LocalService
from creditgrid.client.display.tables import plan_table, rows_table, summary_table
from creditgrid.client.local_service import ended_by_signals

SPEC = Path(__file__).parent / "linesearch-digits.yaml"
SQL = """
SELECT method, update_range, norm_mode, eta,
       round(avg(delta_loss_same), 5) AS same_batch, round(avg(delta_loss_held), 5) AS held_out
FROM results
GROUP BY ALL
HAVING same_batch < 0 AND held_out < 0
ORDER BY held_out
LIMIT 5
"""


def main() -> None:
    console = Console(highlight=False, markup=False, width=None if Console().is_terminal else 110)
    started = time.perf_counter()
    console.print("Starting a service with its own Ray on this machine …")
    with (
        ended_by_signals(),
        tempfile.TemporaryDirectory(prefix="creditgrid-demo-") as data,
        LocalService("--data-dir", data) as service,
        Client(service.url) as client,
    ):
        console.print(f"It answers at {service.url} after {time.perf_counter() - started:.0f} s.")

        console.print(Rule("The plan"))
        console.print(plan_table(client.plan(SPEC)))

        console.print(Rule("The sweep"))
        submitted = time.perf_counter()
        sweep = client.submit(SPEC).wait(progress=True)
        console.print(f"{sweep.view.cells} cells are {sweep.state} after {time.perf_counter() - submitted:.1f} s.")

        console.print(Rule("The summary"))
        console.print(summary_table(sweep.summary()))

        console.print(Rule("A question in SQL: which steps help on the held-out batch too?"))
        console.print(SQL.strip(), style="dim")
        console.print(rows_table(client.query(SQL)))

        console.print(Rule("The same grid again"))
        submitted = time.perf_counter()
        again = client.submit(SPEC).wait()
        console.print(f"{again.view.cells} cells are {again.state} after {time.perf_counter() - submitted:.1f} s.")
    console.print(f"The service has stopped after {time.perf_counter() - started:.0f} s.")


if __name__ == "__main__":
    main()
