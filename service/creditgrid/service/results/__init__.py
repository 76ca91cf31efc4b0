"""The results table: Parquet files in one Delta table, each row is written exactly once."""
