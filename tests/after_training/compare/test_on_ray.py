"""Send a comparison to a real Ray, stop it half way, and let it go on to its end."""

import tempfile
from pathlib import Path

import pytest

from core.after_training.compare import Study, conduct, plan_variants, record
from core.models import demo_fields
from core.runs import Home
from core.runs.engines import Placement
from tests.builders.cluster_runs import has_ended, reach, until
from tests.builders.ray import running_ray, why_not_here

pytestmark = [
    pytest.mark.slow,
    pytest.mark.training,
    pytest.mark.skipif(bool(why_not_here()), reason=f"no Ray: {why_not_here()}"),
]
FIELDS = {"max_steps": 40, "num_samples": 0, "eval_fraction": 0.0}


def test_methods_train_stop_half_way_and_go_on(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    found = plan_variants(Study.parse({**demo_fields(), **FIELDS}, ["lora", "full"]))
    with (
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder,
        running_ray(Path(folder)) as ray,
    ):
        monkeypatch.setenv("RAY_AUTH_TOKEN", ray.token)
        place = Placement("ray", address=ray.address)
        comparison = record.new_comparison(home, found, "Which?", "compare", placement=place)
        trains, waits = record.runs_of(home, conduct.start(home, comparison))
        until(home, trains, reach(3))
        conduct.stop(home, comparison)
        stopped = [until(home, run, has_ended) for run in (trains, waits)]
        assert [run.state for run in stopped] == ["stopped", "stopped"]
        conduct.start(home, comparison)
        ended = [until(home, run, has_ended) for run in (trains, waits)]
    assert [(run.state, run.step) for run in ended] == [("finished", 40), ("finished", 40)]
    assert ended[0].status.resumed_at == (stopped[0].step,)
    assert not conduct.is_active(home, conduct.advance(home, comparison))
