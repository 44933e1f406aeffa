"""Let a model answer suites of tests, before and after its training."""
