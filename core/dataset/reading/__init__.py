"""Read dataset files: from bytes to lines, from lines to rows. Knows nothing of what rows mean."""

__all__ = [
    "json_elements",
    "json_faults",
    "layout",
    "lines",
    "objects",
    "plain_text",
    "signatures",
    "text_lines",
]
