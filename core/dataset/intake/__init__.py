"""Import CSV, Parquet, JSON arrays and Hub datasets as JSON lines."""
