"""Check or convert a dataset file under limits on memory and time."""
