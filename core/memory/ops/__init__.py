"""One decoder, op by op: what each operation allocates, saves and releases."""
