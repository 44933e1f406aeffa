"""The preview: rows as the model sees them, in a child that survives what models and files bring with them."""

import copy
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from core import dataset
from core.dataset import preview as preview_module
from core.dataset import token_lengths as lengths
from core.dataset.preview import Preview
from core.job import JobSpec, PreviewError
from core.training.contract.failures import TrainingError
from core.training.data.rows import read_rows
from core.training.data.tokenizer import CHAT_TEMPLATE
from core.training.data.tokens import split_by_loss
from core.workers.preview import lengths as training_lengths
from core.workers.preview.session import PreviewSession
from tests.builders.paths import DEMO, ROOT
from tests.builders.training_runs import copy_model

CHAT = {
    "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]
}
TURNS = {
    "messages": [
        *CHAT["messages"],
        {"role": "user", "content": "é 😀"},
        {"role": "assistant", "content": "Bye"},
    ]
}
ASK = {
    "prompt": [{"role": "user", "content": "1 + 1?"}],
    "completion": [{"role": "assistant", "content": "two"}],
}
PAIR = {"prompt": "1 + 1 =", "chosen": " 2", "rejected": " 3, or 4"}
TALKS = {
    "prompt": ASK["prompt"],
    "chosen": ASK["completion"],
    "rejected": [{"role": "assistant", "content": "a lot"}],
}
LONG = "The market is on Friday. " * 20
ROWS: dict[str, list[dict[str, Any]]] = {
    "messages": [
        CHAT,
        TURNS,
        {"messages": [{"role": "user", "content": LONG}, {"role": "assistant", "content": "No"}]},
    ],
    "exchanges": [
        ASK,
        {"question": LONG, "answer": "b"},
        {"question": "a", "answer": LONG, "system": "Be brief."},
    ],
    "plain exchanges": [
        {"prompt": "1 + 1 =", "completion": " 2"},
        {"prompt": LONG, "completion": "b"},
    ],
    "texts": [{"text": "Once upon a time"}, {"text": LONG}, {"text": "The end<|im_end|>"}],
}


PAIRS: dict[str, list[dict[str, Any]]] = {
    "texts": [
        PAIR,
        {"prompt": LONG, "chosen": "b", "rejected": "c"},
        {"prompt": "", "chosen": LONG, "rejected": "c"},
    ],
    "messages": [TALKS, TALKS | {"prompt": [{"role": "user", "content": LONG}]}],
    "without prompt": [
        {name: [*CHAT["messages"][:1], *TALKS[name]] for name in ("chosen", "rejected")}
    ],
}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def view(
    dataset: Path,
    model: Path = DEMO / "model",
    assistant_only_loss: bool = True,
    stage: str = "sft",
) -> PreviewSession:
    """The child's side, in this process."""
    request = {
        "dataset": str(dataset),
        "model": str(model),
        "revision": "main",
        "seconds_for_a_row": 0,
        "stage": stage,
    }
    return PreviewSession(request | {"assistant_only_loss": assistant_only_loss})


def with_attack(folder: Path, attack: str) -> Path:
    """The demo model with this in its chat template, for conversations of more than one turn."""
    model = copy_model(folder / "model")
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text(
        "{%- if messages|length > 2 %}" + attack + "{%- endif %}" + template
    )
    return model


@pytest.fixture(scope="module")
def demo() -> Iterator[Preview]:
    with Preview(DEMO / "data.jsonl", str(DEMO / "model")) as preview:
        yield preview


def test_a_row_is_shown_as_the_model_sees_it_with_the_answer_counting(demo: Preview) -> None:
    (row,) = demo.rows(0, 1, max_length=128)
    text, counts = zip(*row.pieces, strict=True)
    assert row.line == 1 and counts == (False, True, False) and row.cut == ""
    assert (
        text[0].endswith("assistant\n") and text[1].endswith("<|im_end|>") and row.num_counted > 1
    )


def test_what_max_length_cuts_off_is_shown_apart(demo: Preview) -> None:
    (whole,), (part,) = demo.rows(0, 1, 128), demo.rows(0, 1, 10)
    kept = "".join(text for text, _counts in part.pieces)
    assert (
        kept + part.cut == "".join(text for text, _counts in whole.pieces) and part.num_counted == 0
    )


def test_rows_end_where_the_file_ends(demo: Preview) -> None:
    assert [row.index for row in demo.rows(309, 10, 64)] == [309, 310] and demo.rows(
        900, 1, 64
    ) == ()


def test_a_text_is_found_round_the_end(demo: Preview) -> None:
    found = demo.find("THREADNEEDLE", 5)
    assert found is not None and "Threadneedle" in str(demo.rows(found, 1, 128))
    assert demo.find("no such words", 5) is None


def test_lengths_are_exact_for_any_maximum(demo: Preview) -> None:
    found = demo.all_lengths(40)
    rows = demo.rows(0, 400, 40)
    sizes = sorted(row.num_tokens for row in rows)
    assert (found.rows, found.max, found.num_tokens) == (311, sizes[-1], sum(sizes))
    assert (found.p50, found.p95) == (sizes[155], sizes[295])
    assert found.truncated_rows == sum(size > 40 for size in sizes)
    assert (
        found.fully_masked_rows
        == sum(row.num_counted == 0 for row in rows)
        == demo.lengths(40).lost_answer_rows
    )
    assert (
        sum(bin["rows"] for bin in found.histogram) == 311
        and demo.lengths(4096).truncated_rows == 0
    )


def test_lengths_are_json_as_check_prints_them(demo: Preview) -> None:
    printed = json.loads(json.dumps(demo.all_lengths(64).to_json()))
    assert printed["tokens"].keys() == {"p50", "p95", "max", "histogram"}
    assert printed.keys() >= {"truncated_rows", "fully_masked_rows"}


def test_the_child_never_loads_torch() -> None:
    script = (
        "import sys; from core.workers.preview.__main__ import PreviewProgram; sys.modules['torch'] = None;"
        f"PreviewProgram().load({{'dataset': {str(DEMO / 'data.jsonl')!r}, 'model': {str(DEMO / 'model')!r},"
        "'revision': 'main', 'assistant_only_loss': True, 'seconds_for_a_row': 8, 'stage': 'sft'});"
        "print(sys.modules['torch'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "None"


def test_a_template_that_loops_ends_the_child_and_another_is_started(tmp_path: Path) -> None:
    loop = "{%- for a in range(99999) %}{%- for b in range(99999) %}{%- set c = a * b %}{%- endfor %}{%- endfor %}"
    model = with_attack(tmp_path, loop)
    with Preview(
        write(tmp_path / "rows.jsonl", [CHAT, TURNS]), str(model), seconds_for_a_row=1
    ) as preview:
        begun = time.monotonic()
        with pytest.raises(PreviewError, match="took too long"):
            preview.rows(1, 1, 64)
        assert time.monotonic() - begun < 20
        assert preview.rows(0, 1, 64)[0].num_tokens > 5


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('true') }}",
        "{{ raise_exception('no') }}",
        "{{ messages[0].content.no.such }}",
    ],
)
def test_a_hostile_template_is_an_error_of_its_row(tmp_path: Path, attack: str) -> None:
    seen = view(write(tmp_path / "rows.jsonl", [CHAT, TURNS]), with_attack(tmp_path, attack))
    good, bad = seen.show(0, 2, 64)
    assert good["num_tokens"] > 0 and "chat template" in bad["error"]


def test_a_template_that_wants_all_memory_is_an_error_of_its_row(tmp_path: Path) -> None:
    model = with_attack(tmp_path, "{{ 'a' * 10**10 }}")
    with Preview(write(tmp_path / "rows.jsonl", [CHAT, TURNS]), str(model)) as preview:
        assert (
            "chat template" in preview.rows(1, 1, 64)[0].error
            and preview.rows(0, 1, 64)[0].num_tokens > 0
        )


@pytest.mark.parametrize(("rows", "says"), [([], "no rows"), ([{"foo": 1}], "dataset line 1")])
def test_a_file_that_cannot_be_read_is_a_sentence(
    tmp_path: Path, rows: list[Any], says: str
) -> None:
    with pytest.raises(TrainingError, match=says):
        view(write(tmp_path / "rows.jsonl", rows))


def test_a_model_that_is_not_there_is_a_sentence() -> None:
    with (
        Preview(DEMO / "data.jsonl", "/no/such/model") as preview,
        pytest.raises(PreviewError, match="such"),
    ):
        preview.rows(0, 1, 64)


def test_a_child_that_was_killed_is_replaced(demo: Preview) -> None:
    assert demo._child
    demo._child._process.kill()
    with pytest.raises(PreviewError, match="preview stopped"):
        demo.rows(0, 1, 64)
    assert demo.rows(0, 1, 64)[0].line == 1


def test_an_array_is_seen_as_its_elements(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([CHAT, TURNS], indent=2))
    with Preview(tmp_path / "rows.json", str(DEMO / "model")) as preview:
        assert [row.line for row in preview.rows(0, 9, 64)] == [1, 2] and preview.all_lengths(
            64
        ).rows == 2


def test_an_array_without_an_end_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"text": "a"}')
    with (
        Preview(tmp_path / "rows.json", str(DEMO / "model")) as preview,
        pytest.raises(PreviewError, match="shown: "),
    ):
        preview.about()


def test_a_bad_row_is_shown_as_such_and_the_others_are_measured(tmp_path: Path) -> None:
    seen = view(write(tmp_path / "rows.jsonl", [CHAT, {"messages": 7}, TURNS]))
    assert "list of messages" in seen.show(1, 1, 64)[0]["error"]
    while seen.measure():
        pass
    told = seen.lengths.since(0)
    assert told["unreadable_rows"] == 1 and seen.lengths.num_measured == 3
    assert told["first_unreadable"][0] == 2 and "list of messages" in told["first_unreadable"][1]


def test_a_model_without_a_template_gets_the_named_default(tmp_path: Path) -> None:
    model = copy_model(tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    seen = view(write(tmp_path / "rows.jsonl", [CHAT]), model)
    assert seen.tokenizer.chat_template == CHAT_TEMPLATE
    assert seen.show(0, 1, 64)[0]["pieces"][1] == ("Hello there<|im_end|>", True)


def test_a_known_template_without_marks_gets_those_of_trl(tmp_path: Path) -> None:
    from trl import chat_template_utils

    model = copy_model(tmp_path / "model")
    (model / "chat_template.jinja").write_text(chat_template_utils.qwen2_5_chat_template)
    seen = view(write(tmp_path / "rows.jsonl", [CHAT]), model)
    assert seen.encoder.chat_template and not chat_template_utils.has_generation_markers(
        seen.tokenizer.chat_template
    )
    assert "Hello there" in "".join(
        text for text, counts in seen.show(0, 1, 64)[0]["pieces"] if counts
    )


def test_an_unknown_template_without_marks_is_refused(tmp_path: Path) -> None:
    model = copy_model(tmp_path / "model")
    (model / "chat_template.jinja").write_text(
        "{%- for m in messages %}{{ m.content }}{%- endfor %}"
    )
    with pytest.raises(TrainingError, match="does not mark"):
        view(write(tmp_path / "rows.jsonl", [CHAT]), model)


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("on_answers", [True, False])
def test_pieces_are_the_whole_text(tmp_path: Path, kind: str, on_answers: bool) -> None:
    seen = view(write(tmp_path / "rows.jsonl", ROWS[kind]), assistant_only_loss=on_answers)
    for index in range(len(ROWS[kind])):
        tokens = seen.encoder.encode(seen.rows.row(index), with_text=True)
        for max_length in (1, 7, 64, 4096):
            found, cut = split_by_loss(tokens, max_length, seen.tokenizer)
            assert "".join(text for text, _counts in found) + cut == tokens.text
            assert tuple(tokens.ids) == tuple(seen.encoder.encode(seen.rows.row(index)).ids)


def test_a_preference_is_shown_as_two_texts(tmp_path: Path) -> None:
    seen = view(write(tmp_path / "rows.jsonl", [TALKS]), stage="dpo")
    (row,) = seen.show(0, 1, 64)
    learnt = [
        "".join(text for text, counts in each["pieces"] if counts)
        for each in (row, row["rejected"])
    ]
    assert learnt == ["two<|im_end|>\n", "a lot<|im_end|>\n"] and row["label"] is None


def test_a_judged_answer_is_shown_with_its_verdict(tmp_path: Path) -> None:
    seen = view(
        write(tmp_path / "rows.jsonl", [ASK | {"label": False}]),
        stage="kto",
        assistant_only_loss=False,
    )
    (row,) = seen.show(0, 1, 64)
    assert (
        row["label"] is False
        and row["rejected"] is None
        and [counts for _text, counts in row["pieces"]] == [False, True]
    )


def test_a_prompt_ends_where_the_model_begins_to_answer(tmp_path: Path) -> None:
    seen = view(write(tmp_path / "rows.jsonl", [{"prompt": ASK["prompt"]}, ASK]), stage="grpo")
    alone, answered = seen.show(0, 2, 64)
    assert alone["pieces"] == answered["pieces"] and alone["num_counted"] == 0
    assert alone["pieces"][0][0].endswith("<|im_start|>assistant\n") and seen.about()["is_drawn"]


def test_a_score_is_read_at_the_last_token(tmp_path: Path) -> None:
    seen = view(write(tmp_path / "rows.jsonl", [PAIR]), stage="reward")
    (row,) = seen.show(0, 1, 64)
    assert row["num_counted"] == row["rejected"]["num_counted"] == 1 and row["pieces"][-1] == (
        "<|im_end|>",
        True,
    )


@pytest.mark.parametrize(
    ("rows", "stage", "template", "says"),
    [
        ([CHAT], "sft", "model", ""),
        ([{"text": "a"}], "sft", "none", "every token counts"),
        ([{"prompt": "a"}], "grpo", "none", "draws the answers"),
        ([PAIR], "reward", "none", "last token"),
    ],
)
def test_what_a_person_should_know_is_said(
    tmp_path: Path, rows: list[Any], stage: str, template: str, says: str
) -> None:
    about = view(write(tmp_path / "rows.jsonl", rows), stage=stage).about()
    assert about["template"] == template and says in " ".join(about["notes"])


def test_lines_lead_to_their_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('\n{"text": "a"}\n\n{"text": "b"}\n')
    rows = view(tmp_path / "rows.jsonl").rows
    assert [rows.index(line) for line in (1, 2, 3, 4, 99)] == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    "text", ["é", "É", "\\u", 'say "hi"', "C:\\dir", "a\tb", "😀", "straße", "a/b"]
)
@pytest.mark.parametrize("ascii", [True, False])
def test_texts_are_found_however_json_writes_them(tmp_path: Path, text: str, ascii: bool) -> None:
    rows = [
        {"text": "nothing"},
        {"text": f"so {text} then {text}"},
        {"text": "nothing"},
        {"text": text},
    ]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=ascii) + "\n\n" for row in rows), encoding="utf-8"
    )
    seen = view(tmp_path / "rows.jsonl")
    assert seen.search(text, 0, 10) == {"found": [(1, 3), (3, 7)], "next": 4}
    assert seen.search(text, 0, 1) == {"found": [(1, 3)], "next": 2}


def test_rows_are_found_all_over_a_large_file(tmp_path: Path) -> None:
    texts = [
        f"row {number} " + ("Needle" if number % 4000 == 7 else "hay") * 9
        for number in range(40_000)
    ]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts)
    )
    found = view(tmp_path / "rows.jsonl").search("needle", 10, 100)
    assert found["found"] == [(number, number + 1) for number in range(4007, 40_000, 4000)]


def test_a_search_names_rows_and_lines(demo: Preview) -> None:
    found = demo.search("THREADNEEDLE", most=3)
    assert len(found.rows) == 3 and not found.is_complete
    assert all(line == index + 1 == demo.index_of(line) + 1 for index, line in found.rows)


def test_measured_lengths_need_no_child_any_more(demo: Preview) -> None:
    demo.all_lengths(64)
    demo.close()
    assert demo.lengths(32).truncated_rows > demo.lengths(64).truncated_rows and demo._child is None


def test_both_sides_of_the_preview_mean_the_same_numbers() -> None:
    assert (lengths.NEVER, len(lengths.FIELDS)) == (
        training_lengths.NEVER,
        training_lengths.NUMBERS,
    )


def test_lengths_are_kept_for_another_day(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [CHAT, TURNS, CHAT])
    with Preview(file, str(DEMO / "model"), cache=tmp_path / "kept") as preview:
        found = preview.all_lengths(16)
    with Preview(file, str(DEMO / "model"), cache=tmp_path / "kept") as preview:
        assert preview.lengths(16) == found and found.is_complete
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_rows_that_the_chat_template_refuses_are_refused_before_the_start(tmp_path: Path) -> None:
    model = copy_model(tmp_path / "model")
    strict = "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('No system role') }}"
    (model / "chat_template.jinja").write_text(
        strict + "{% endif %}{{ message.content }}{% endfor %}"
    )
    told = {"messages": [{"role": "system", "content": "Be brief."}, *CHAT["messages"][-2:]]}
    file = write(tmp_path / "rows.jsonl", [CHAT, told, TURNS, told])
    with Preview(file, str(model), assistant_only_loss=False) as preview:
        preview.all_lengths(64)
        (problem,) = dataset.refusals(preview.measured(), JobSpec())
    assert (
        problem.field == "dataset" and "2 rows" in problem.problem and "line 2" in problem.problem
    )
    assert "No system role" in problem.problem


def test_measuring_can_be_called_off(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [TURNS] * 5000)
    with Preview(file, str(DEMO / "model")) as preview:
        assert not preview.all_lengths(64, is_cancelled=lambda: True).is_complete


def test_a_child_that_is_only_starting_is_ended_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preview = Preview(write(tmp_path / "rows.jsonl", [CHAT]), str(DEMO / "model"))
    is_starting, start = threading.Event(), preview_module.as_lines

    def start_slowly(*paths: Path) -> Path:
        is_starting.set()
        time.sleep(0.2)
        return start(*paths)

    monkeypatch.setattr(preview_module, "as_lines", start_slowly)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(preview.about)
        assert is_starting.wait(10)
        preview.close()
        with pytest.raises(PreviewError, match="the preview stopped"):
            asked.result()


@pytest.mark.training
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("max_length", [24, 1024])
def test_the_preview_of_a_preference_is_what_dpo_compares(
    tmp_path: Path, kind: str, max_length: int
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    write(tmp_path / "rows.jsonl", PAIRS[kind])
    seen = view(tmp_path / "rows.jsonl", stage="dpo")
    settings = {
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": "none",
    }
    model = AutoModelForCausalLM.from_pretrained(DEMO / "model", trust_remote_code=False)
    trainer = DPOTrainer(
        model=model,
        ref_model=copy.deepcopy(model),
        args=DPOConfig(output_dir=str(tmp_path), max_length=max_length, **settings),
        train_dataset=read_rows(tmp_path, "rows.jsonl", "", 0.0, 0, stage="dpo").train,
        processing_class=AutoTokenizer.from_pretrained(DEMO / "model", trust_remote_code=False),
    )
    wanted = []
    for index in range(len(seen.rows)):
        chosen, rejected = seen.encoder.encode_all(seen.rows.row(index))
        begin = chosen.first_in_loss
        if begin is not None and begin < max_length:
            wanted.append(
                (list(chosen.ids[:begin]), list(chosen.ids[begin:]), list(rejected.ids[begin:]))
            )
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    assert [tuple(row[name] for name in names) for row in trainer.train_dataset] == wanted


@pytest.mark.training
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("on_answers", [True, False])
@pytest.mark.parametrize("max_length", [24, 1024])
def test_the_preview_counts_exactly_what_the_trainer_trains(
    tmp_path: Path, kind: str, on_answers: bool, max_length: int
) -> None:
    write(tmp_path / "rows.jsonl", ROWS[kind])
    rows = read_rows(tmp_path, "rows.jsonl", "", 0.0, 0)
    seen = view(tmp_path / "rows.jsonl", assistant_only_loss=on_answers)
    wanted = []
    for index in range(len(seen.rows)):
        tokens = seen.encoder.encode(seen.rows.row(index))
        labels = [
            id if counts else -100 for id, counts in zip(tokens.ids, tokens.loss_mask, strict=True)
        ][:max_length]
        if any(label != -100 for label in labels):
            wanted.append((list(tokens.ids)[:max_length], labels))
    found = _prepared_by_trl(tmp_path, rows, on_answers, max_length)
    assert found == wanted


def _prepared_by_trl(
    folder: Path, rows: Any, on_answers: bool, max_length: int
) -> list[tuple[list[int], list[int]]]:
    """(tokens, labels) of each row as TRL's trainer makes them, set up as in trainers/builders.py."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    on_answers = on_answers and rows.has_marked_answers
    settings = SFTConfig(
        output_dir=str(folder),
        max_length=max_length,
        assistant_only_loss=on_answers and rows.is_language_modeling,
        completion_only_loss=on_answers and not rows.is_language_modeling,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to="none",
    )
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(DEMO / "model", trust_remote_code=False),
        args=settings,
        train_dataset=rows.train,
        processing_class=AutoTokenizer.from_pretrained(DEMO / "model", trust_remote_code=False),
    )
    return [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]
