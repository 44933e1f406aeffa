"""Preview and its child, which survives everything that models and files bring with them."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from core.dataset.preview import Preview, lost_in_template
from core.dataset.rewrite import as_lines
from core.dataset.token_lengths import length_problems
from core.job import JobSpec, PreviewError
from tests.builders.dataset_files import write_json_rows
from tests.builders.paths import DEMO, ROOT
from tests.builders.preview_rows import CHAT, TURNS, model_with_attack, model_with_template

pytestmark = pytest.mark.training  # a program of its own reads rows as a model does
DEMO_ROWS = 311
LOOP = (
    "{%- for a in range(99999) %}{%- for b in range(99999) %}"
    "{%- set c = a * b %}{%- endfor %}{%- endfor %}"
)
NO_SYSTEM_ROLE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    "{{ message.content }}{% endfor %}"
)


@pytest.fixture(scope="module")
def demo() -> Iterator[Preview]:
    with Preview(DEMO / "data.jsonl", str(DEMO / "model")) as preview:
        yield preview


def test_a_row_is_shown_as_the_model_sees_it(demo: Preview) -> None:
    (row,) = demo.rows(0, 1, max_length=128)
    texts, counts = zip(*row.pieces, strict=True)
    assert row.line == 1
    assert row.cut == ""
    assert counts == (False, True, False)
    assert texts[0].endswith("assistant\n")
    assert texts[1].endswith("<|im_end|>")
    assert row.num_counted > 1


def test_text_beyond_max_length_is_shown_apart(demo: Preview) -> None:
    (whole,), (part,) = demo.rows(0, 1, 128), demo.rows(0, 1, 10)
    kept = "".join(text for text, _counts in part.pieces)
    assert kept + part.cut == "".join(text for text, _counts in whole.pieces)
    assert part.num_counted == 0


def test_rows_end_where_the_file_ends(demo: Preview) -> None:
    assert [row.index for row in demo.rows(309, 10, 64)] == [309, 310]
    assert demo.rows(900, 1, 64) == ()


def test_a_text_is_found_beyond_the_end_from_the_start(demo: Preview) -> None:
    found = demo.find("THREADNEEDLE", 5)
    assert found is not None
    assert "Threadneedle" in str(demo.rows(found, 1, 128))
    assert demo.find("no such words", 5) is None


def test_lengths_are_exact_for_any_maximum(demo: Preview) -> None:
    found = demo.all_lengths(40)
    rows = demo.rows(0, 400, 40)
    sizes = sorted(row.num_tokens for row in rows)
    num_masked = sum(row.num_counted == 0 for row in rows)
    assert (found.rows, found.max, found.num_tokens) == (DEMO_ROWS, sizes[-1], sum(sizes))
    assert (found.p50, found.p95) == (sizes[155], sizes[295])
    assert found.truncated_rows == sum(size > 40 for size in sizes)
    assert found.fully_masked_rows == found.lost_answer_rows == num_masked
    assert sum(bin["rows"] for bin in found.histogram) == DEMO_ROWS
    assert demo.measured().at(4096).truncated_rows == 0


def test_lengths_are_json_as_check_prints_them(demo: Preview) -> None:
    printed = json.loads(json.dumps(demo.all_lengths(64).to_json()))
    assert printed["tokens"].keys() == {"p50", "p95", "max", "histogram"}
    assert printed.keys() >= {"truncated_rows", "fully_masked_rows"}


def test_a_line_leads_to_its_row(demo: Preview) -> None:
    found = demo.find("THREADNEEDLE")
    assert found is not None
    (row,) = demo.rows(found, 1, 128)
    assert demo.index_of(row.line) == found


def test_a_child_that_was_killed_is_replaced(demo: Preview) -> None:
    demo.rows(0, 1, 64)
    assert demo._child
    demo._child.interrupt()
    with pytest.raises(PreviewError, match="preview stopped"):
        demo.rows(0, 1, 64)
    assert demo.rows(0, 1, 64)[0].line == 1


def test_measured_lengths_need_no_child_any_more(demo: Preview) -> None:
    demo.all_lengths(64)
    demo.close()
    found = demo.measured()
    assert found.at(32).truncated_rows > found.at(64).truncated_rows
    assert demo._child is None


def test_the_child_never_loads_torch() -> None:
    request = {
        "do": "load",
        "dataset": str(DEMO / "data.jsonl"),
        "model": str(DEMO / "model"),
        "revision": "main",
        "assistant_only_loss": True,
        "seconds_for_a_row": 8,
        "stage": "sft",
    }
    script = (
        "import sys; from core.workers.preview.__main__ import PreviewProgram;"
        f"sys.modules['torch'] = None; PreviewProgram().load({request!r});"
        "print(sys.modules['torch'])"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"


def test_a_template_that_loops_ends_the_child_and_a_new_one_starts(tmp_path: Path) -> None:
    file = write_json_rows(tmp_path / "rows.jsonl", [CHAT, TURNS])
    model = model_with_attack(tmp_path, LOOP)
    with Preview(file, str(model), seconds_for_a_row=1) as preview:
        begun = time.monotonic()
        with pytest.raises(PreviewError, match="took too long"):
            preview.rows(1, 1, 64)
        assert time.monotonic() - begun < 20
        assert preview.rows(0, 1, 64)[0].num_tokens > 5


def test_a_template_that_wants_all_memory_is_an_error_of_its_row(tmp_path: Path) -> None:
    file = write_json_rows(tmp_path / "rows.jsonl", [CHAT, TURNS])
    model = model_with_attack(tmp_path, "{{ 'a' * 10**10 }}")
    with Preview(file, str(model)) as preview:
        assert "chat template" in preview.rows(1, 1, 64)[0].error
        assert preview.rows(0, 1, 64)[0].num_tokens > 0


def test_a_model_that_is_not_there_is_a_sentence() -> None:
    with (
        Preview(DEMO / "data.jsonl", "/no/such/model") as preview,
        pytest.raises(PreviewError, match="such"),
    ):
        preview.rows(0, 1, 64)


def test_an_array_is_seen_as_its_elements(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([CHAT, TURNS], indent=2))
    with Preview(tmp_path / "rows.json", str(DEMO / "model")) as preview:
        assert [row.line for row in preview.rows(0, 9, 64)] == [1, 2]
        assert preview.all_lengths(64).rows == 2


def test_an_array_without_an_end_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"text": "a"}')
    with (
        Preview(tmp_path / "rows.json", str(DEMO / "model")) as preview,
        pytest.raises(PreviewError, match="shown: "),
    ):
        preview.info()


def test_lengths_are_kept_for_another_day(tmp_path: Path) -> None:
    file, cache = write_json_rows(tmp_path / "rows.jsonl", [CHAT, TURNS, CHAT]), tmp_path / "kept"
    with Preview(file, str(DEMO / "model"), cache=cache) as preview:
        found = preview.all_lengths(16)
    with Preview(file, str(DEMO / "model"), cache=cache) as preview:
        assert preview.measured().at(16) == found
    assert found.is_complete
    assert len(list(cache.iterdir())) == 1


def test_rows_that_the_template_refuses_are_refused_before_the_start(tmp_path: Path) -> None:
    model = model_with_template(tmp_path, NO_SYSTEM_ROLE)
    system = {"messages": [{"role": "system", "content": "Be brief."}, *CHAT["messages"][-2:]]}
    file = write_json_rows(tmp_path / "rows.jsonl", [CHAT, system, TURNS, system])
    with Preview(file, str(model), assistant_only_loss=False) as preview:
        preview.all_lengths(64)
        (problem,) = length_problems(preview.measured(), JobSpec())
    assert problem.field == "dataset"
    assert "2 rows, the first in line 2" in problem.problem
    assert "No system role" in problem.problem


def test_measuring_can_be_cancelled(tmp_path: Path) -> None:
    file = write_json_rows(tmp_path / "rows.jsonl", [TURNS] * 5000)
    with Preview(file, str(DEMO / "model")) as preview:
        assert not preview.all_lengths(64, is_cancelled=lambda: True).is_complete


def test_a_child_that_is_only_starting_is_ended_too(tmp_path: Path) -> None:
    file = write_json_rows(tmp_path / "rows.jsonl", [CHAT])
    is_starting = threading.Event()

    def write_slowly(folder: Path) -> Path:
        is_starting.set()
        time.sleep(0.2)
        return as_lines(file, folder / "rows.jsonl")

    preview = Preview(file, str(DEMO / "model"), write_rows=write_slowly)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(preview.info)
        assert is_starting.wait(10)
        preview.close()
        with pytest.raises(PreviewError, match="the preview stopped"):
            asked.result()


def test_rows_are_measured_again_after_the_child_has_died(tmp_path: Path) -> None:
    file = write_json_rows(tmp_path / "rows.jsonl", [CHAT] * 3000)
    with Preview(file, str(DEMO / "model")) as preview:
        assert not preview.measured().is_complete
        assert preview._child
        preview._child.interrupt()
        with pytest.raises(PreviewError, match="the preview stopped"):
            preview.measured()
        assert preview.all_lengths(64).is_complete


def test_rows_are_shown_from_a_line_on_as_the_trainer_reads_them(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(CHAT)}\n\n{json.dumps(TURNS)}\n")
    with Preview(tmp_path / "rows.jsonl", str(DEMO / "model")) as preview:
        (row,) = preview.rows_from_line(2, 5, 64)
    printed = row.to_json()
    assert printed["line"] == 3
    assert printed["row"] == TURNS | {"tools": None}
    assert "rejected" not in printed
    assert ("Bye<|im_end|>", True) in row.pieces
    assert lost_in_template([row]) == ()
