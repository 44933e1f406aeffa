"""Versions of the packages that a run is trained with. Imports none of them."""

import platform
from importlib.metadata import PackageNotFoundError, version

PINNED_PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "datasets",
    "accelerate",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "psutil",
    "nvidia-ml-py",
)
"""Packages that the training program imports, and others that affect its numbers."""


def requirements() -> str:
    """Return the installed versions of the packages as the text of a requirements.txt."""
    lines = [f"# Python {platform.python_version()}"]
    for package in PINNED_PACKAGES:
        try:
            # PyPI does not have builds such as 2.13.0+cpu; without the suffix pip takes any build
            lines.append(f"{package}=={version(package).partition('+')[0]}")
        except PackageNotFoundError:
            lines.append(f"# {package} was not installed")
    return "\n".join(lines) + "\n"
