"""Bases that no adapter can be merged into: what is said before an export starts."""

import json
import shutil
from pathlib import Path

import pytest

from core.after_training.export.plan import Upload, plan_export
from core.job import SpecError
from core.models import DEMO_DIR
from core.runs import Run, read
from tests.builders.chat_runs import finish
from tests.builders.fake_runs import NewRun
from tests.builders.training_runs import change_job

SETTINGS = {
    "GPTQ": {"quant_method": "gptq", "bits": 4},
    "AWQ": {"quant_method": "awq", "bits": 4},
    "FP8": {"quant_method": "fp8"},
}


@pytest.fixture(params=SETTINGS)
def published(request: pytest.FixtureRequest, new_run: NewRun, tmp_path: Path) -> Run:
    """Return a finished run over a base that is published in a quantized form."""
    run = finish(new_run(model="demo", dataset="demo"))
    base = shutil.copytree(DEMO_DIR, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    settings = {"quantization_config": SETTINGS[request.param]}
    (base / "config.json").write_text(json.dumps(config | settings))
    change_job(run.folder, model=str(base))
    return read(run.home, run.id)


@pytest.mark.parametrize("form", ["merged", "hub"])
def test_a_base_that_is_published_quantized_says_what_to_do(published: Run, form: str) -> None:
    upload = Upload("me/model", "merged") if form == "hub" else None
    with pytest.raises(SpecError, match="into which no adapter can be merged") as caught:
        plan_export(published, form, upload=upload)
    assert "--to hub --send adapter" in str(caught.value)
    assert "train over the 16-bit model that it was made from" in str(caught.value)


def test_its_adapter_can_be_sent_alone(published: Run) -> None:
    plan = plan_export(published, "hub", upload=Upload("me/model", "adapter"))
    assert plan.request.sent == "adapter"
