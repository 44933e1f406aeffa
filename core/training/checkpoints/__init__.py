"""The checkpoints folder: written atomically, verified by hash. Knows nothing of models or of torch."""
