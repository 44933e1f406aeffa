"""Preview sessions: rows, templates, and the notes about them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from core.training.contract.failures import TrainingError
from core.training.data.tokenizer import CHAT_TEMPLATE
from core.training.data.tokens import split_by_loss
from tests.builders.chat_templates import CALL, CALL_JSON, CONVERSATIONS, TOOLS
from tests.builders.dataset_files import write_json_rows
from tests.builders.preview_rows import (
    ASK,
    CHAT,
    CHAT_PAIR,
    PAIR,
    ROWS,
    TURNS,
    learnt_text,
    model_with_attack,
    model_with_template,
    open_session,
)
from tests.builders.training_runs import copy_model

SECONDS = 10.0


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
    file = write_json_rows(tmp_path / "rows.jsonl", [CHAT, TURNS])
    good, bad = open_session(file, model_with_attack(tmp_path, attack)).show(0, 2, 64)
    assert good["num_tokens"] > 0
    assert "chat template" in bad["error"]


@pytest.mark.parametrize(("rows", "says"), [([], "no rows"), ([{"foo": 1}], "dataset line 1")])
def test_a_file_that_cannot_be_read_is_a_sentence(
    tmp_path: Path, rows: list[Any], says: str
) -> None:
    file = write_json_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(TrainingError, match=says):
        open_session(file)


def test_the_first_row_may_be_bad(tmp_path: Path) -> None:
    file = write_json_rows(tmp_path / "rows.jsonl", [{"messages": 7}, CHAT])
    bad, good = open_session(file).show(0, 2, 64)
    assert "list of messages" in bad["error"]
    assert good["num_tokens"] > 0


def test_a_bad_row_is_shown_as_such_and_the_others_are_measured(tmp_path: Path) -> None:
    file = write_json_rows(tmp_path / "rows.jsonl", [CHAT, {"messages": 7}, TURNS])
    session = open_session(file)
    while session.measure():
        pass
    found = session.lengths.since(0)
    line, reason = found["first_unreadable"]
    assert "list of messages" in session.show(1, 1, 64)[0]["error"]
    assert found["unreadable_rows"] == 1
    assert line == 2
    assert "list of messages" in reason


def test_a_model_without_a_template_gets_the_named_default(tmp_path: Path) -> None:
    model = copy_model(tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    session = open_session(write_json_rows(tmp_path / "rows.jsonl", [CHAT]), model)
    assert session.tokenizer.chat_template == CHAT_TEMPLATE
    assert session.show(0, 1, 64)[0]["pieces"][1] == ("Hello there<|im_end|>", True)


def test_a_known_template_without_marks_gets_those_of_trl(tmp_path: Path) -> None:
    from trl import chat_template_utils

    model = model_with_template(tmp_path, chat_template_utils.qwen2_5_chat_template)
    session = open_session(write_json_rows(tmp_path / "rows.jsonl", [CHAT]), model)
    template = session.tokenizer.chat_template
    assert session.encoder.chat_template
    assert not chat_template_utils.has_generation_markers(template)
    assert "Hello there" in learnt_text(session.show(0, 1, 64)[0])


def test_a_template_that_ends_no_answer_is_an_error_of_each_row(tmp_path: Path) -> None:
    template = "{%- for m in messages %}{{ m.content }}{%- endfor %}"
    file = write_json_rows(tmp_path / "rows.jsonl", [CHAT])
    (row,) = open_session(file, model_with_template(tmp_path, template)).show(0, 1, 64)
    assert row["error"].startswith("messages[1] (assistant): ")
    assert "no end-of-turn token" in row["error"]


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("on_answers", [True, False])
def test_pieces_are_the_whole_text(tmp_path: Path, kind: str, on_answers: bool) -> None:
    file = write_json_rows(tmp_path / "rows.jsonl", ROWS[kind])
    session = open_session(file, assistant_only_loss=on_answers)
    for index in range(len(ROWS[kind])):
        tokens = session.encoder.encode(session.rows.row(index), with_text=True)
        assert tuple(tokens.ids) == tuple(session.encoder.encode(session.rows.row(index)).ids)
        for max_length in (1, 7, 64, 4096):
            found, cut = split_by_loss(tokens, max_length, session.tokenizer)
            assert "".join(text for text, _counts in found) + cut == tokens.text


def test_a_preference_is_shown_as_two_texts(tmp_path: Path) -> None:
    file = write_json_rows(tmp_path / "rows.jsonl", [CHAT_PAIR])
    (row,) = open_session(file, stage="dpo").show(0, 1, 64)
    assert learnt_text(row) == "two<|im_end|>\n"
    assert learnt_text(row["rejected"]) == "a lot<|im_end|>\n"
    assert row["label"] is None


def test_a_labelled_answer_is_shown_with_its_label(tmp_path: Path) -> None:
    file = write_json_rows(tmp_path / "rows.jsonl", [ASK | {"label": False}])
    (row,) = open_session(file, stage="kto", assistant_only_loss=False).show(0, 1, 64)
    assert row["label"] is False
    assert row["rejected"] is None
    assert [counts for _text, counts in row["pieces"]] == [False, True]


def test_a_prompt_ends_where_the_model_begins_to_answer(tmp_path: Path) -> None:
    file = write_json_rows(tmp_path / "rows.jsonl", [{"prompt": ASK["prompt"]}, ASK])
    session = open_session(file, stage="grpo")
    alone, answered = session.show(0, 2, 64)
    assert alone["pieces"] == answered["pieces"]
    assert alone["num_counted"] == 0
    assert alone["pieces"][0][0].endswith("<|im_start|>assistant\n")
    assert session.info()["generates"]


def test_a_score_is_read_at_the_last_token(tmp_path: Path) -> None:
    file = write_json_rows(tmp_path / "rows.jsonl", [PAIR])
    (row,) = open_session(file, stage="reward").show(0, 1, 64)
    assert row["num_counted"] == row["rejected"]["num_counted"] == 1
    assert row["pieces"][-1] == ("<|im_end|>", True)


@pytest.mark.parametrize(
    ("rows", "stage", "template", "says"),
    [
        ([CHAT], "sft", "model", ""),
        ([{"text": "a"}], "sft", "none", "every token counts"),
        ([{"prompt": "a"}], "grpo", "none", "generates the answers"),
        ([PAIR], "reward", "none", "last token"),
    ],
)
def test_facts_that_a_person_should_know_are_said(
    tmp_path: Path, rows: list[Any], stage: str, template: str, says: str
) -> None:
    file = write_json_rows(tmp_path / "rows.jsonl", rows)
    info = open_session(file, stage=stage).info()
    assert info["template"] == template
    assert says in " ".join(info["notes"])


def test_lines_lead_to_their_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('\n{"text": "a"}\n\n{"text": "b"}\n')
    rows = open_session(tmp_path / "rows.jsonl").rows
    assert [rows.index(line) for line in (1, 2, 3, 4, 99)] == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    "text", ["é", "É", "\\u", 'say "hi"', "C:\\dir", "a\tb", "😀", "straße", "a/b"]
)
@pytest.mark.parametrize("ascii", [True, False])
def test_a_text_is_found_in_any_json_spelling(tmp_path: Path, text: str, ascii: bool) -> None:
    texts = ["nothing", f"so {text} then {text}", "nothing", text]
    lines = [json.dumps({"text": each}, ensure_ascii=ascii) + "\n\n" for each in texts]
    (tmp_path / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    rows = open_session(tmp_path / "rows.jsonl").rows
    assert rows.find(text, 0, SECONDS) == (1, 2)
    assert rows.find(text, 2, SECONDS) == (3, 4)
    assert rows.find(text, 4, SECONDS) == (None, 4)


def test_a_row_is_found_far_down_a_large_file(tmp_path: Path) -> None:
    words = ("Needle" if number % 4000 == 7 else "hay" for number in range(40_000))
    rows = ({"text": f"row {number} " + word * 9} for number, word in enumerate(words))
    session = open_session(write_json_rows(tmp_path / "rows.jsonl", rows))
    assert session.rows.find("needle", 36_008, SECONDS) == (None, 40_000)
    assert session.rows.find("needle", 32_008, SECONDS) == (36_007, 36_008)


def test_a_search_ends_at_its_time_limit(tmp_path: Path) -> None:
    session = open_session(write_json_rows(tmp_path / "rows.jsonl", [{"text": "hay"}] * 100))
    assert session.rows.find("needle", 0, seconds=0) == (None, 1)


# Prompts and answers that are plain text


def test_texts_are_put_into_the_chat_template_of_a_model_that_has_one(tmp_path: Path) -> None:
    file = write_json_rows(tmp_path / "rows.jsonl", [{"prompt": "1 + 1?", "completion": "2"}])
    session = open_session(file, use_chat_template=True)
    (row,) = session.show(0, 1, 64)
    assert row["pieces"] == [
        ("<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n", False),
        ("2<|im_end|>\n", True),
    ]
    assert row["row"]["completion"] == [{"role": "assistant", "content": "2"}]
    assert session.template == "model"
    assert "chat template as a user's message" in " ".join(session.notes)


@pytest.mark.parametrize(
    ("stage", "row", "shown"),
    [
        ("dpo", PAIR, "1 + 1 =<|im_end|>\n<|im_start|>assistant\n 2<|im_end|>\n"),
        ("orpo", PAIR, "1 + 1 =<|im_end|>\n<|im_start|>assistant\n 2<|im_end|>"),
        ("reward", PAIR, "1 + 1 =<|im_end|>\n<|im_start|>assistant\n 2<|im_end|>\n"),
        ("kto", ASK | {"label": True}, "1 + 1?<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n"),
        ("grpo", {"prompt": "Hi"}, "Hi<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_texts_of_every_stage_are_put_into_the_template(
    tmp_path: Path, stage: str, row: dict[str, Any], shown: str
) -> None:
    file = write_json_rows(tmp_path / "rows.jsonl", [row])
    (found,) = open_session(file, stage=stage, use_chat_template=True).show(0, 1, 64)
    text = "".join(piece for piece, _counts in found["pieces"])
    assert text == "<|im_start|>user\n" + shown


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "<|im_start|>user\nHi<|im_end|>\n", "completion": "a"}, "already"),
        ({"chosen": "2 + 2 is 4", "rejected": "2 + 2 is 5"}, "both answers begin"),
    ],
)
def test_texts_that_are_no_questions_stay_as_they_are(
    tmp_path: Path, row: dict[str, Any], says: str
) -> None:
    file = write_json_rows(tmp_path / "rows.jsonl", [row])
    stage = "dpo" if "chosen" in row else "sft"
    session = open_session(file, stage=stage, use_chat_template=True)
    assert isinstance(session.show(0, 1, 64)[0]["row"]["prompt"], str)
    assert says in " ".join(session.notes)


def test_texts_stay_as_they_are_if_that_is_wanted_or_there_is_no_template(tmp_path: Path) -> None:
    file = write_json_rows(tmp_path / "rows.jsonl", [{"prompt": "1 + 1 =", "completion": " 2"}])
    session = open_session(file, use_chat_template=False)
    assert session.show(0, 1, 64)[0]["pieces"][0] == ("1 + 1 =", False)
    assert "use_chat_template is off" in " ".join(session.notes)
    model = copy_model(tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    session = open_session(file, model, use_chat_template=True)
    assert session.show(0, 1, 64)[0]["pieces"][0] == ("1 + 1 =", False)
    assert "no chat template" in " ".join(session.notes)


# What the chat template does not print


def test_what_the_template_leaves_out_is_counted_with_its_first_line(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "lamp", "arguments": {}}}
    row = {
        "tools": [{"type": "function", "function": {"name": "lamp"}}],
        "messages": [
            {"role": "user", "content": "Lamp", "name": "Ada"},
            {"role": "assistant", "content": "Yes.", "tool_calls": [call]},
            {"role": "tool", "content": "done"},
            {"role": "assistant", "content": "On.", "reasoning_content": "It worked"},
        ],
    }
    session = open_session(write_json_rows(tmp_path / "rows.jsonl", [CHAT, row, row]))
    while session.measure():
        pass
    lost = session.lengths.since(0)["lost"]
    names = ["name", "reasoning_content", "tool_calls", "tools"]
    assert sorted(lost) == [(name, 2, 2) for name in names]
    assert sorted(session.show(1, 1, 64)[0]["lost"]) == names


def test_an_answer_that_is_only_a_lost_call_is_refused(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "lamp", "arguments": {}}}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    rows = [{"messages": [CHAT["messages"][0], answer]}]
    (row,) = open_session(write_json_rows(tmp_path / "rows.jsonl", rows)).show(0, 1, 64)
    assert row["error"].startswith("messages[1] (assistant): the chat template does not print")
    (pair,) = open_session(
        write_json_rows(tmp_path / "pairs.jsonl", [CHAT_PAIR | {"rejected": [answer]}]),
        stage="dpo",
    ).show(0, 1, 64)
    assert pair["error"].startswith("rejected[0] (assistant): ")


def test_the_default_template_prints_tools_calls_and_thoughts(tmp_path: Path) -> None:
    model = copy_model(tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    messages = CONVERSATIONS["calls"][:3] + CONVERSATIONS["thoughts"][-1:]
    rows = [{"messages": messages, "tools": TOOLS}]
    session = open_session(write_json_rows(tmp_path / "rows.jsonl", rows), model)
    (row,) = session.show(0, 1, 999)
    counted = [text for text, counts in row["pieces"] if counts]
    assert counted[0] == CALL_JSON + "<|im_end|>"
    assert counted[1] == "<think>\nstill 4\n</think>\n\nYes, 4<|im_end|>"
    assert row["lost"] == ("name",)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            {"role": "assistant", "tool_calls": [CALL]},
            r"messages\[1\] \(assistant\) has no content",
        ),
        ({"role": "tool", "content": "a"}, r"messages\[1\] \(tool\): Tools are not"),
    ],
)
def test_a_refusal_names_the_message_and_what_it_lacks(
    tmp_path: Path, answer: dict[str, Any], reason: str
) -> None:
    template = "{%- if m.role == 'tool' %}{{ raise_exception('Tools are not known') }}{%- endif %}"
    printed = "{{ m.role + ': ' + m['content'] + '<|im_end|>' }}"
    source = "{%- for m in messages %}" + template + printed + "{%- endfor %}"
    messages = [CHAT["messages"][0], {"role": "assistant", "content": "a"}, *CHAT["messages"]]
    messages[1] = answer
    rows = [CHAT, {"messages": messages}]
    if answer["role"] == "tool":
        messages.insert(1, {"role": "assistant", "content": "", "tool_calls": [CALL]})
        reason = reason.replace("1", "2")
    file = write_json_rows(tmp_path / "rows.jsonl", rows)
    _good, bad = open_session(file, model_with_template(tmp_path, source)).show(0, 2, 64)
    assert re.search(reason, bad["error"])
