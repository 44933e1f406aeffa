"""What comes after a training: chat with the result, compare runs, export them. Trains nothing.

chat/           talk with a model, a run or a checkpoint, or with two of them side by side
compare/        train one job in several ways, and report what came out
export/         merge, quantize and publish a result, and prove that the export answers alike
export_checks/  let exports answer suites: what a conversion cost, and which base is better
bundle          one zip with what it takes to repeat a run
differences     settings and results in which runs differ
"""

__all__ = ["bundle", "chat", "compare", "differences", "export", "export_checks"]
