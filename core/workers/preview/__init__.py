"""Show rows as a model sees them, and measure their lengths."""
