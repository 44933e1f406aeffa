"""Read a dataset line by line and report every problem with its line number."""
