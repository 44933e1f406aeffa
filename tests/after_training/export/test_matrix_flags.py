"""Importance matrices that cannot be used: what is said before an export starts."""

from pathlib import Path

import pytest

from core.after_training.export.plan import plan_export
from core.after_training.export.tools import CONVERTER, FOLDER_VARIABLE
from core.job import SpecError
from tests.builders.chat_runs import finish
from tests.builders.fake_runs import NewRun


@pytest.mark.parametrize(
    ("form", "quant", "imatrix", "said"),
    [
        ("merged", "", "rows", "has no use with --to merged"),
        ("gguf", "Q8_0", "rows", "has no use with Q8_0"),
        ("gguf", "Q4_K_M", "/gone/imatrix.gguf", "/gone/imatrix.gguf is no file"),
        ("ollama", "", "", "rows needs the packages"),
    ],
)
def test_a_matrix_that_cannot_be_used_is_said(
    new_run: NewRun, monkeypatch: pytest.MonkeyPatch, form: str, quant: str, imatrix: str, said: str
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, "/nowhere")
    run = finish(new_run(model="demo", dataset="demo"))
    with pytest.raises(SpecError, match=said):
        plan_export(run, form, quant=quant, imatrix=imatrix or "rows")


def test_exports_with_and_without_a_matrix_have_names_of_their_own(
    new_run: NewRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / CONVERTER).touch()
    (tmp_path / "imatrix.gguf").write_bytes(b"GGUF")
    run = finish(new_run(model="demo", dataset="demo"))
    plan = plan_export(run, "gguf", imatrix="imatrix.gguf")
    assert plan.request.name == "gguf-Q4_K_M-imatrix"
    assert plan.request.imatrix == str(tmp_path / "imatrix.gguf")
    assert plan_export(run, "gguf").request.name == "gguf-Q4_K_M"


def test_a_file_of_another_kind_is_refused_before_the_export(
    new_run: NewRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    (tmp_path / CONVERTER).touch()
    path = tmp_path / "notes.txt"
    path.write_text("These are notes.")
    run = finish(new_run(model="demo", dataset="demo"))
    with pytest.raises(SpecError, match="is no GGUF file, as llama-imatrix writes it now"):
        plan_export(run, "gguf", imatrix=str(path))
