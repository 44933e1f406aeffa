"""Worker that exports the result of a run: merge, convert, verify, upload."""
