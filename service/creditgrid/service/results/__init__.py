"""The results table: Parquet files in one Delta table, each row written exactly once."""
