"""Calls on a Ray cluster: the runner supervises a driver process, and only the driver's side imports ray."""
