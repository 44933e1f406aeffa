"""Suites of tests for the stand-in of the check program."""

import json
from pathlib import Path


def suite_file(folder: Path, name: str, *prompts: str, **condition: object) -> str:
    """Write a suite of tests that `yes` passes, and return its path."""
    lines = [
        json.dumps({"prompt": prompt, **(condition or {"exact": "yes"})}) for prompt in prompts
    ]
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)
