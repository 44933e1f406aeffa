"""Base models: where they come from, what presets say, and their shape."""

from core.models.find import DEMO_DIR, HUB_ID, ModelSource, find_model
from core.models.presets import PRESETS_DIR, Gpu, ModelPreset, demo_fields, gpus, models
from core.models.settings import settings_of_adapter, settings_of_base
from core.models.shapes import ModelShape, Parameter

__all__ = [
    "DEMO_DIR",
    "HUB_ID",
    "PRESETS_DIR",
    "Gpu",
    "ModelPreset",
    "ModelShape",
    "ModelSource",
    "Parameter",
    "demo_fields",
    "find_model",
    "gpus",
    "models",
    "settings_of_adapter",
    "settings_of_base",
    "weights",
]
