"""Whether the results table and the ledger belong together. The service asks once, when it starts.

A ledger older than the table takes rows for written that were not. One that is newer, or another one's, writes rows
twice.
"""

from __future__ import annotations

from creditgrid.service.ledger.integrity import AFTERWARDS, LedgerDamaged
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.results.table import Results


def check_ledger(results: Results, ledger: Ledger) -> None:
    """The table was written with this ledger, and holds the batches that the ledger notes as written.

    Raises:
        LedgerDamaged: with which of both is older, or belongs to another service.
    """
    newest = results.newest()
    started, written = ledger.batches()
    if newest is None and results.dataset() is not None:
        raise LedgerDamaged(
            f"the results in {results.path} belong to another ledger than {ledger.name}. With this one their rows "
            f"would be written twice. Restore their ledger, or move {results.path} away: {AFTERWARDS}"
        )
    if (newest or 0) > started:
        raise LedgerDamaged(
            f"the results in {results.path} hold batch {newest}, and the ledger {ledger.name} has only started batch "
            f"{started}: it is an older copy, in which missing rows would count as written. Restore the newest ledger, "
            f"or move it and {results.path} away together: {AFTERWARDS}"
        )
    if (newest or 0) < written:
        raise LedgerDamaged(
            f"the ledger {ledger.name} notes batch {written} as written, and the results in {results.path} "
            f"{'are missing' if newest is None else f'end with {newest}'}: they are an older copy, were removed, or "
            f"belong to another ledger. Restore the results, or move both away together: {AFTERWARDS}"
        )
