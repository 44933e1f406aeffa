"""What a handler returns."""

Shown = dict[str, object]
"""{component name: new value or gr.update}; what is not named stays as it is."""
