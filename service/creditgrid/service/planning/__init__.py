"""From a spec document to the calls and tasks that the ledger holds."""
