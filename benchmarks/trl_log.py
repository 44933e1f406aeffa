"""Record of what a plain TRL training logs. Never reads it."""

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback


class LossWriter(TrainerCallback):  # type: ignore[misc]
    """Appends a JSON line to a file each time that TRL logs a loss."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return
        line = {
            "step": state.global_step,
            "time": time.time(),
            "num_tokens": logs["num_tokens"],
            "loss": logs["loss"],
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
