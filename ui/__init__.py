"""Tailor's faces: the Gradio page and the terminal. Everything they show comes from core."""

import os

# Gradio reads its environment when it is imported: a stray GRADIO_SHARE, GRADIO_ALLOWED_PATHS or GRADIO_NUM_WORKERS
# would open what the gate guards, and the telemetry would call home.
for name in [name for name in os.environ if name.startswith("GRADIO_")]:
    del os.environ[name]
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
