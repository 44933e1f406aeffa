"""Child that checks or converts a dataset file."""
