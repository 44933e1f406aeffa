"""Faces of Tailor: the Gradio page and the terminal. What they show comes from core."""

import os

# Gradio reads its environment at import: a stray GRADIO_SHARE, GRADIO_ALLOWED_PATHS or
# GRADIO_NUM_WORKERS would open what the gate guards, and telemetry would be sent.
for name in list(os.environ):
    if name.startswith("GRADIO_"):
        del os.environ[name]
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
