"""Read dataset files: from bytes to lines, from lines to rows. Knows nothing of what rows mean."""

__all__ = ["json_array", "json_faults", "lines", "signatures", "text_lines"]
