"""The ledger: the one home of the state of sweeps, calls, tasks and cells."""
