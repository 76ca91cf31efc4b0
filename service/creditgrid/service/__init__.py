"""The service: ledger, scheduler, results, and the HTTP front end."""
