"""Download a dataset from the Hub and convert Parquet tables to JSON lines."""
