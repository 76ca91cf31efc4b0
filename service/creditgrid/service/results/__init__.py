"""The tables of rows and of curves: Parquet files in two Delta tables, each row is written exactly once."""
