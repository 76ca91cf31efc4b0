"""The service: ledger, planning, scheduling, results, and the HTTP API."""
