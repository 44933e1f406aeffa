"""Conversions of a row's parts to TRL's columns, one for each kind of row. Standard library only.

Each notes faults in the parts; what it returns then is not used.
"""

from collections.abc import Sequence
from typing import NamedTuple

from .conversations import texts_of
from .messages import ANSWER, PROMPT, ROLE_NAMES, WHOLE, Fault, Message
from .row_columns import (
    Row,
    holds_something,
    parse_text,
    prompt_length,
    same_answer_faults,
    shared_length,
    shared_prompt_faults,
)
from .row_parts import RowParts, Text, as_messages, ends_with_answer, said


class ScoredAnswer(NamedTuple):
    """Answer with its score, and its place in the row."""

    score: float
    messages: list[Message]
    place: str


def text(parts: RowParts) -> Row:
    """Read a whole text."""
    return {"text": parts.text("text")}


def conversation(parts: RowParts) -> Row:
    """Read a whole conversation."""
    messages = parts.messages("messages", WHOLE)
    if parts.faults:
        return {}
    whole = parts.after_system(messages)
    row: Row = {"messages": whole}
    trained = _trained_messages(parts)
    if trained and len(whole) > len(messages):
        trained.insert(0, False)
    if trained:
        row["trained_messages"] = trained
    return row


def _trained_messages(parts: RowParts) -> list[bool]:
    """Return which messages of the last column that was read are answers that count.

    [] if all answers count. A mask that cannot be followed is named as not read.
    """
    found = parts.conversations[-1]
    names, column = parts.beside("mask")
    if names is not None and not _masks_questions_only(names):
        parts.leave_out(column, matters=True)
    if not found.mask_key:
        return []
    if parts.stage.learns_every_token:
        parts.leave_out(f"{found.column}[].{found.mask_key}", matters=True)
        return []
    pairs = zip(found.messages, found.is_masked, strict=True)
    return [message["role"] == "assistant" and not masked for message, masked in pairs]


def _masks_questions_only(names: object) -> bool:
    """Return whether the roles that NeMo's column `mask` names never are the assistant."""
    for name in names if isinstance(names, list) else [names]:
        role = ROLE_NAMES.get(name.strip().lower()) if isinstance(name, str) else None
        if role in (None, "assistant"):
            return False
    return True


def _leave_out_mask(parts: RowParts, *columns: str) -> None:
    """Name masks of the last messages of these columns, which are learnt, as not read."""
    for each in parts.conversations:
        if each.column in columns and each.mask_key and each.is_masked[-1]:
            parts.leave_out(f"{each.column}[].{each.mask_key}", matters=True)


def prompt_completion(parts: RowParts) -> Row:
    """Read a prompt and a completion: both as text, or both as messages if one of them is."""
    question = parts.text_or_messages("prompt", PROMPT, may_be_empty=True)
    answer = parts.text_or_messages("completion", ANSWER)
    is_chat = isinstance(answer, list) and not parts.faults
    trained = _trained_messages(parts) if is_chat else []
    row = _exchange(parts, question, answer)
    if trained:
        row["trained_messages"] = trained
    return row


def question_answer(parts: RowParts) -> Row:
    """Read a question and its answer, both texts, as messages."""
    question, answer = parts.text("prompt"), parts.text("completion")
    return _exchange(parts, question, answer, is_chat=True)


def _exchange(parts: RowParts, question: Text, answer: Text, *, is_chat: bool = False) -> Row:
    if parts.faults:
        return {}
    is_chat = is_chat or isinstance(answer, list)
    question = parts.question(question, as_messages=is_chat)
    if isinstance(question, list):
        answer = as_messages(answer, "assistant")
    return {"prompt": question, "completion": answer}


def unpaired(parts: RowParts) -> Row:
    """Read a prompt with a completion that is wanted or not."""
    question = parts.text_or_messages("prompt", PROMPT, may_be_empty=True)
    answer = parts.text_or_messages("completion", ANSWER)
    _leave_out_mask(parts, parts.name("completion"))
    return _with_label(parts, _exchange(parts, question, answer))


def unpaired_question(parts: RowParts) -> Row:
    """Read a question with an answer that is wanted or not."""
    return _with_label(parts, question_answer(parts))


def unpaired_conversation(parts: RowParts) -> Row:
    """Read a conversation whose last answer is wanted or not."""
    messages = parts.messages("messages", WHOLE)
    _require_question(parts, messages)
    if parts.faults:
        return {}
    prompt, completion = parts.after_system(messages[:-1]), messages[-1:]
    _leave_out_mask(parts, parts.name("messages"))
    row: Row = {"prompt": prompt, "completion": completion}
    return _with_label(parts, row)


def _with_label(parts: RowParts, row: Row) -> Row:
    return {**row, "label": parts.label()}


def prompt_only(parts: RowParts) -> Row:
    """Read a prompt, which the model answers during the training."""
    question = parts.text_or_messages("prompt", PROMPT)
    if parts.faults:
        return {}
    return {"prompt": parts.question(question)}


def question_only(parts: RowParts) -> Row:
    """Read a question, as messages, which the model answers during the training."""
    question = parts.text("prompt")
    if parts.faults:
        return {}
    return {"prompt": parts.question(question, as_messages=True)}


def conversation_prompt(parts: RowParts) -> Row:
    """Read a conversation as a prompt; an answer at its end is the right answer to it."""
    messages = parts.messages("messages", PROMPT)
    answers: list[Message] = []
    while ends_with_answer(messages):
        answers, messages = [*messages[-1:], *answers], messages[:-1]
    if not parts.faults and not messages:
        column = parts.name("messages")
        fix = "give messages that end with the user's"
        parts.faults.append(Fault(column, "no_question", "has no question", fix))
    if parts.faults:
        return {}
    row: Row = {"prompt": parts.after_system(messages)}
    return {**row, "completion": answers} if answers else row


def preference(parts: RowParts) -> Row:
    """Read a prompt with a better and a worse answer, as text if all three are."""
    return _preference(parts, is_chat=False)


def question_preference(parts: RowParts) -> Row:
    """Read a question with a better and a worse answer, as messages."""
    return _preference(parts, is_chat=True)


def _preference(parts: RowParts, *, is_chat: bool) -> Row:
    """Read answers that are texts, single turns, lists, or whole chats that hold the question."""
    prompt = parts.text_or_messages("prompt", PROMPT, may_be_empty=True)
    chosen = parts.text_or_messages("chosen", ANSWER)
    rejected = parts.text_or_messages("rejected", ANSWER)
    if parts.faults:
        return {}
    names = parts.name("chosen"), parts.name("rejected")
    parts.faults += same_answer_faults(chosen, rejected, names[1])
    _leave_out_mask(parts, *names)
    if isinstance(chosen, str) and isinstance(rejected, str):
        question = parts.question(prompt, as_messages=is_chat)
        if isinstance(question, str):
            return _pair(question, chosen, rejected)
        answers = said("assistant", chosen), said("assistant", rejected)
        return _pair(_without_answers(question, answers), *answers)
    chosen, rejected = as_messages(chosen, "assistant"), as_messages(rejected, "assistant")
    if isinstance(prompt, str) and _is_whole_chat(chosen) and _is_whole_chat(rejected):
        return _preference_of_chats(parts, prompt, chosen, rejected, names)
    question = as_messages(parts.question(prompt, as_messages=True), "user")
    question = _without_answers(question, (chosen, rejected))
    chosen = _without_prompt(question, chosen)
    rejected = _without_prompt(question, rejected)
    return _pair(question, chosen, rejected)


def _is_whole_chat(messages: Sequence[Message]) -> bool:
    """Return whether messages begin with a question or a system text."""
    return messages[0]["role"] in ("system", "developer", "user")


def _preference_of_chats(
    parts: RowParts,
    prompt: str,
    chosen: list[Message],
    rejected: list[Message],
    names: tuple[str, str],
) -> Row:
    """Read two whole chats beside a text that is their question."""
    faults = shared_prompt_faults(chosen, rejected, names)
    parts.faults += faults
    end = shared_length(chosen, rejected)
    question = chosen[:end]
    if prompt.strip() and not any(prompt.strip() in each for each in texts_of(question)):
        parts.leave_out(parts.name("prompt"), matters=True)
    for part in ("input", "context", "history"):
        _value, name = parts.beside(part)
        if name:
            parts.leave_out(name, matters=True)
    return _pair(parts.after_system(question), chosen[end:], rejected[end:])


def _without_answers(
    question: list[Message], answers: Sequence[Sequence[Message]]
) -> list[Message]:
    """Return a question without the answer at its end, if that is one of those to compare."""
    for answer in answers:
        begin = len(question) - len(answer)
        if begin > 0 and question[begin:] == answer:
            return question[:begin]
    return question


def _without_prompt(question: Sequence[Message], answer: list[Message]) -> list[Message]:
    """Return an answer without the messages of the question with which it begins.

    A chat may leave out the system text, so the end of the question is compared.
    """
    for begin in range(len(question)):
        repeated = list(question[begin:])
        if len(answer) > len(repeated) and answer[: len(repeated)] == repeated:
            return answer[len(repeated) :]
    return answer


def last_answer_preference(parts: RowParts) -> Row:
    """Read a conversation, whose last answer is the better one, beside a worse answer."""
    messages = parts.messages("messages", WHOLE)
    rejected = as_messages(parts.text_or_messages("rejected", ANSWER), "assistant")
    _require_question(parts, messages)
    if parts.faults:
        return {}
    question, chosen = messages[:-1], messages[-1:]
    names = parts.name("messages"), parts.name("rejected")
    rejected = _without_prompt(question, rejected)
    parts.faults += same_answer_faults(chosen, rejected, names[1])
    _leave_out_mask(parts, *names)
    return _pair(parts.after_system(question), chosen, rejected)


def scored_preference(parts: RowParts) -> Row:
    """Read a conversation and two answers to it, of which the one with the larger score is better.

    A published form: the preference tuning data of Vertex AI.
    """
    question = parts.messages("prompt", PROMPT)
    answers = _scored_answers(parts)
    if parts.faults:
        return {}
    worse, better = sorted(answers, key=lambda each: each.score)
    chosen, rejected = better.messages, worse.messages
    parts.faults += same_answer_faults(chosen, rejected, worse.place)
    _leave_out_mask(parts, better.place, worse.place)
    question = _without_answers(question, (chosen, rejected))
    return _pair(parts.after_system(question), chosen, rejected)


def _scored_answers(parts: RowParts) -> list[ScoredAnswer]:
    """Return the two answers of a row, noting a fault unless their scores differ."""
    column, value = parts.name("completions"), parts.value("completions")
    if isinstance(value, str):
        value = parse_text(value)
    fix = 'give two of {"score": 1, "completion": {...}}, one with score 1 and one with score 0'
    if not isinstance(value, list) or len(value) != 2:
        number = f"{len(value)} answers" if isinstance(value, list) else "no list of answers"
        parts.faults.append(Fault(column, "not_a_pair", f"holds {number}, not two", fix))
        return []
    answers: list[ScoredAnswer] = []
    for index, each in enumerate(value):
        place = f"{column}[{index}]"
        score = each.get("score") if isinstance(each, dict) else None
        if not isinstance(score, int | float) or "completion" not in each:
            message = "is not an answer with its score"
            parts.faults.append(Fault(place, "not_scored", message, fix))
            continue
        for key in each:
            if key not in ("score", "completion") and holds_something(each[key]):
                parts.leave_out(f"{column}[].{key}")
        place += ".completion"
        answer = parts.read_text_or_messages(each["completion"], place, ANSWER)
        answers.append(ScoredAnswer(score, as_messages(answer, "assistant"), place))
    if len({each.score for each in answers}) == 1 and len(answers) == 2:
        parts.faults.append(Fault(column, "same_score", "has two answers of one score", fix))
    return answers


def _require_question(parts: RowParts, messages: Sequence[Message]) -> None:
    """Note the fault of a conversation that is nothing but an answer."""
    if not parts.faults and len(messages) < 2:
        column = parts.name("messages")
        fault = Fault(column, "no_question", "has no question", "add what was answered")
        parts.faults.append(fault)


def _pair(prompt: Text, chosen: Text, rejected: Text) -> Row:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def implicit_preference(parts: RowParts) -> Row:
    """Read a preference whose prompt is the beginning that both answers share."""
    chosen = parts.text_or_messages("chosen", WHOLE)
    rejected = parts.text_or_messages("rejected", WHOLE)
    names = parts.name("chosen"), parts.name("rejected")
    if not parts.faults and type(chosen) is not type(rejected):
        fix = "write all columns of a row in the same way"
        parts.faults.append(Fault(names[0], "mixed", "text beside messages", fix))
    if not parts.faults:
        parts.faults += same_answer_faults(chosen, rejected, names[1]) or shared_prompt_faults(
            chosen, rejected, names
        )
    if parts.faults:
        return {}
    _leave_out_mask(parts, *names)
    end = prompt_length(chosen, rejected)
    prompt: Text = chosen[:end]
    if isinstance(prompt, list):
        prompt = parts.after_system(prompt)
    elif system := parts.beside("system")[1]:
        parts.leave_out(system, matters=True)
    return _pair(prompt, chosen[end:], rejected[end:])
