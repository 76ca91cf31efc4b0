"""Answers for users: sweeps, cells, failures, summaries, rows and SQL. Changes nothing."""
