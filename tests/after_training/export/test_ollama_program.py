"""Test that the user's own Ollama takes an export, with a stand-in for its program."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from core.after_training.export import Export
from core.after_training.export.ollama import add_to_ollama, find_ollama, name_in_ollama
from core.after_training.export.records import Manifest, Verification
from core.job import SpecError
from tests.builders.fake_ollama import put_on_path

TRUSTED = Verification(True, 16, 16, 16, 0.004, 16, "llama.cpp", "16-bit base with adapter")


@pytest.fixture
def export(tmp_path: Path) -> Export:
    """Return a finished export for Ollama of the run `made`."""
    folder = tmp_path / "runs" / "made" / "exports" / "ollama-Q8_0"
    folder.mkdir(parents=True)
    (folder / "Modelfile").write_text("FROM ./made-Q8_0.gguf\n")
    return Export("ollama-Q8_0", folder, Manifest("ollama", "trained", "Q8_0", (), TRUSTED))


def test_ollama_creates_the_model_in_the_folder_of_the_export(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = put_on_path(tmp_path, monkeypatch)
    assert add_to_ollama(export) == "made:q8_0"
    assert json.loads(calls.read_text()) == {
        "arguments": ["create", "made:q8_0", "-f", "Modelfile"],
        "folder": str(export.folder),
    }


def test_without_ollama_the_way_is_named(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert find_ollama() is None
    with pytest.raises(SpecError, match="not on the PATH"):
        add_to_ollama(export)


def test_what_ollama_says_is_passed_on(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_path(tmp_path, monkeypatch, error="\x1b[?25lgathering\nError: no server \x1b[K\x07")
    with pytest.raises(SpecError, match="Ollama did not take the model: no server;") as raised:
        add_to_ollama(export)
    assert "ollama serve" in raised.value.problems[0].fix


def test_a_doubtful_export_is_not_given_to_ollama(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = put_on_path(tmp_path, monkeypatch)
    doubted = replace(TRUSTED, trusted=False, note="other words")
    manifest = replace(export.manifest, verified=doubted)
    with pytest.raises(SpecError, match="not to be trusted: other words"):
        add_to_ollama(replace(export, manifest=manifest))
    assert not calls.exists()


@pytest.mark.parametrize(
    ("export", "name"),
    [
        ("ollama-Q4_K_M", "poems:q4_k_m"),
        ("ollama-Q8_0-original-base", "poems:q8_0-original-base"),
        ("ollama-Q4_K_M-imatrix", "poems:q4_k_m-imatrix"),
    ],
)
def test_no_export_of_a_run_replaces_another_in_ollama(export: str, name: str) -> None:
    assert name_in_ollama("poems", export) == name
