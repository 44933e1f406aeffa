"""The program that measures what watching costs: the same job for both, and what is made of their paces."""

import json
from pathlib import Path

import pytest

from benchmarks.watching_overhead import Pace, last_step, make_folders, overheads


def test_a_round_compares_ours_with_the_bare_script() -> None:
    rounds = [{"bare": Pace(0.1, 0.2), "tailor": Pace(0.11, 0.2)}, {"bare": Pace(0.2, 0.1), "tailor": Pace(0.2, 0.101)}]
    found = overheads(rounds)
    assert found["clock"] == pytest.approx([0.1, 0]) and found["processor"] == pytest.approx([0, 0.01])


def test_only_whole_lines_count_as_steps(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    assert last_step(metrics) == 0
    metrics.write_text('{"step": 3}\n{"step": 4}\n{"st', encoding="utf-8")
    assert last_step(metrics) == 4


def test_both_train_on_the_same_rows_with_the_same_settings(tmp_path: Path) -> None:
    folders = make_folders(tmp_path, num_steps=10, logging_steps=1)
    job = json.loads((folders["tailor"] / "job.json").read_text(encoding="utf-8"))
    settings = json.loads((folders["bare"] / "settings.json").read_text(encoding="utf-8"))
    shared = settings["config"].keys() & job.keys()
    assert len(shared) >= 7 and all(settings["config"][name] == job[name] for name in shared)
    assert Path(settings["rows"]).read_bytes() == (folders["tailor"] / "data" / "train.jsonl").read_bytes()
    assert (settings["lora"]["r"], settings["lora"]["lora_alpha"]) == (job["lora_r"], job["lora_alpha"])
    assert (folders["tailor"] / "training" / "__main__.py").exists()
