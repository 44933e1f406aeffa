"""What the training program and the rest of Tailor agree on.

Standard library only. The one part of the training program that the rest of core imports, module by module.
"""

__all__ = [
    "checkpoint_files",
    "failures",
    "files",
    "job",
    "messages",
    "methods",
    "optimizers",
    "process_id",
    "row_columns",
    "row_formats",
    "row_reader",
    "stages",
    "states",
    "status",
    "typed_json",
]
