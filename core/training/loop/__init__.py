"""Work around the optimizer steps: measuring, saving, divergence checks, out-of-memory
recovery, samples."""

__all__ = ["losses", "meter", "monitor", "probe", "samples", "saver", "trainer"]
