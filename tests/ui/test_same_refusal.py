"""One refusal of a model in every face: page, train, estimate and check --model."""

from collections.abc import Callable
from pathlib import Path

import pytest

from core.resolve import default_fields
from core.runs import Home
from core.runs.listing import list_runs
from tests.builders.model_folders import change_config, copy_of_demo, rewrite
from tests.builders.paths import DEMO
from ui.handlers.answer import answer_values

ROWS = str(DEMO / "data.jsonl")


def more_tokens(folder: Path) -> None:
    change_config(folder, vocab_size=2040)
    rewrite(folder, lambda name, tensor: tensor[:2040] if len(tensor) == 2048 else tensor)


def absent_layer(folder: Path) -> None:
    rewrite(folder, keep=lambda name: ".layers.1." not in name)


def renamed(folder: Path) -> None:
    rewrite(folder, rename=lambda name: f"_orig_mod.{name}")


def resized(folder: Path) -> None:
    rewrite(folder, lambda name, tensor: tensor[:-1] if name.endswith("q_proj.weight") else tensor)


def of_gptq(folder: Path) -> None:
    change_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})


def of_aqlm(folder: Path) -> None:
    change_config(folder, quantization_config={"quant_method": "aqlm"})


def spiral_positions(folder: Path) -> None:
    change_config(folder, rope_scaling={"rope_type": "spiral", "factor": 2.0})


def pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")


def with_vision(folder: Path) -> None:
    change_config(folder, model_type="llava", vision_config={"hidden_size": 8})


def unknown_type(folder: Path) -> None:
    change_config(folder, model_type="not_there")


BREAKS: dict[Callable[[Path], None], str] = {
    more_tokens: "call resize_token_embeddings on it and save it again, or take its own tokenizer",
    absent_layer: "are not in its weights",
    renamed: "are not in its weights",
    resized: "of another size",
    of_gptq: "GPTQ",
    of_aqlm: "AQLM",
    spiral_positions: 'the rope_type of rope_scaling is "spiral"',
    pointer: "is a Git LFS pointer",
    with_vision: "is a model with vision",
    unknown_type: "has no language model",
}


@pytest.fixture(params=BREAKS, ids=lambda change: change.__name__)
def broken(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """Return a broken folder, and what is said of it."""
    folder = copy_of_demo(tmp_path / "model")
    request.param(folder)
    return folder, BREAKS[request.param]


def test_a_model_is_refused_alike_in_every_face(
    broken: tuple[Path, str],
    tailor: Callable[..., int],
    home: Home,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, said = broken
    fields = {**default_fields(str(folder), "lora"), "model": str(folder), "dataset": ROWS}
    error = answer_values(home, lambda _found: None, fields).error
    assert error
    sentence = str(error.problems[0]).partition(": ")[2]
    assert said in sentence
    flags = ("--model", folder)
    for command in (("train", "--dataset", ROWS), ("estimate",), ("check", ROWS)):
        assert tailor(*command, *flags) == 2
        out, err = capsys.readouterr()
        assert sentence in out + err
    assert not list_runs(home)
