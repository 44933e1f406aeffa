"""Work around the optimizer steps: measuring, saving, divergence checks, out-of-memory
recovery, samples, checks."""

__all__ = [
    "check_steps",
    "checks",
    "losses",
    "meter",
    "monitor",
    "probe",
    "samples",
    "saver",
    "trainer",
]
