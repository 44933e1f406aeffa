"""The run folder as the training program writes it: status, metrics, samples, log."""
