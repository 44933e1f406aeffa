"""Agreement between the training program and the rest of Tailor: tables, files, formats.

Standard library only. The one part of the training program that the rest of core imports.
"""

# fmt: off
__all__ = [
    "checkpoint_files", "checks", "failures", "files", "job", "messages", "methods", "process_id",
    "row_columns", "row_formats", "row_reader", "stages", "status", "typed_json", "weights",
]
# fmt: on
