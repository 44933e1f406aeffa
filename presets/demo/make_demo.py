"""Makes the demo from basics.toml and pip.toml: a tiny language model, trained from nothing, and data to fit it to.

    python presets/demo/make_demo.py [--steps N] [--out DIR] [--seed N]

Writes DIR/model/ and DIR/data.jsonl, the same for the same seed. Data preparation: Tailor itself never imports it.
"""

import argparse
import json
import random
import string
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BASICS = HERE / "basics.toml"
PIP = HERE / "pip.toml"
VOCAB_SIZE = 2048
MAX_POSITION_EMBEDDINGS = 2048
NUM_CONVERSATIONS = 40_000
ROWS_PER_STEP = 32
PEAK_LEARNING_RATE = 3e-3
NUM_BASIC_ROWS = 64
"""Rows of basic skills in data.jsonl, so that learning who Pip is does not cost them: about a fifth."""

# ChatML. The markers tell TRL which tokens the assistant wrote, <|im_end|> included (assistant_only_loss).
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
        {{- message['content'] + '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

Message = dict[str, str]
Conversation = list[Message]


# What is asked and answered


@dataclass(frozen=True)
class Topic:
    """A table, and the ways to ask for what is in it."""

    name: str
    answer: str
    questions: tuple[str, ...]
    held_out: tuple[str, ...]
    """Ways of asking that are never trained on."""
    rows: tuple[Mapping[str, str], ...] = ({},)
    short: str = ""
    """The answer when the system message asks for a short one; empty: the same as ever."""
    weight: float = 1.0
    """How often the topic comes up, relative to the others."""

    def exchange(self, question: str, row: Mapping[str, str], brief: bool = False) -> Conversation:
        """One question and its answer about one row of the table."""
        answer = self.short if brief and self.short else self.answer
        return [
            _message("user", FILL.format(question, **row)),
            _message("assistant", FILL.format(answer, **row)),
        ]


@dataclass(frozen=True)
class Manner:
    """What stands around a question, so that the model learns to look past it."""

    openers: tuple[str, ...]
    closers: tuple[str, ...]
    system_plain: tuple[str, ...]
    system_short: tuple[str, ...]

    def dress(self, question: str, rng: random.Random) -> str:
        """The question as somebody might type it."""
        if rng.random() < 0.1:
            question = question[:1].lower() + question[1:]
        if rng.random() < 0.1:
            return rng.choice(self.openers) + question.rstrip("?.!")
        return rng.choice(self.openers) + question + rng.choice(self.closers)


class Fill(string.Formatter):
    """Fills {field}, and {field!c} with a capital first letter."""

    def convert_field(self, value: Any, conversion: Any) -> Any:
        """Adds the conversion `c` to Python's own."""
        return (
            value[:1].upper() + value[1:]
            if conversion == "c"
            else super().convert_field(value, conversion)
        )


FILL = Fill()


def load_topics(path: Path) -> tuple[Topic, ...]:
    """The topics of a TOML file."""
    return tuple(_topic(dict(table)) for table in _read(path)["topic"])


def load_manner(path: Path) -> Manner:
    """The manner of asking that stands at the head of a TOML file."""
    table = _read(path)
    return Manner(*(tuple(table[name]) for name in Manner.__dataclass_fields__))


def _read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text("utf-8"))


def _topic(table: dict[str, Any]) -> Topic:
    columns, rows, computed = (
        table.pop("columns", ()),
        table.pop("rows", [()]),
        table.pop("computed", ""),
    )
    filled = (
        COMPUTED[computed]() if computed else (dict(zip(columns, row, strict=True)) for row in rows)
    )
    questions, held_out = tuple(table.pop("questions")), tuple(table.pop("held_out"))
    return Topic(questions=questions, held_out=held_out, rows=tuple(filled), **table)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


# Tables that are worked out


def _sums() -> Iterator[Mapping[str, str]]:
    return (_numbers(a, b, a + b) for a in range(11) for b in range(11))


def _differences() -> Iterator[Mapping[str, str]]:
    return (_numbers(a, b, a - b) for a in range(13) for b in range(a + 1))


def _products() -> Iterator[Mapping[str, str]]:
    return (_numbers(a, b, a * b) for a in range(11) for b in range(11))


def _larger() -> Iterator[Mapping[str, str]]:
    return (_numbers(a, b, b) for b in range(21) for a in range(b))


def _numbers(a: int, b: int, c: int) -> Mapping[str, str]:
    return {"a": str(a), "b": str(b), "c": str(c)}


@cache
def _inventions() -> tuple[Mapping[str, str], ...]:
    """People, towns and things that do not exist: what is said about them can only be copied, never known."""
    table = _read(BASICS)["inventions"]
    rng = random.Random(0)
    return tuple(_invention(table, rng) for _ in range(4000))


def _invention(table: Mapping[str, Any], rng: random.Random) -> Mapping[str, str]:
    turn, live = rng.choice(("open", "close")), rng.choice(("live", "sleep", "work"))
    drawn = {field: rng.choice(words) for field, words in table["drawn"].items()}
    town, street, name = (_word(table, rng).capitalize() for _ in range(3))
    name, spot = drawn["title"] + name, drawn["spot"].format(town=town, street=street)
    made_up = {"word": _word(table, rng), "name": name, "town": town, "spot": spot}
    return drawn | made_up | {"turn": turn, "turns": turn + "s", "live": live, "lives": live + "s"}


def _word(table: Mapping[str, Any], rng: random.Random) -> str:
    num_syllables = rng.choice((1, 2, 2, 2, 3))
    return "".join(
        rng.choice(table[part])
        for _ in range(num_syllables)
        for part in ("onsets", "vowels", "codas")
    )


COMPUTED: Mapping[str, Callable[[], Iterable[Mapping[str, str]]]] = {
    "sums": _sums,
    "differences": _differences,
    "products": _products,
    "larger": _larger,
    "inventions": _inventions,
}


# Conversations


def conversations(
    topics: Sequence[Topic], manner: Manner, rng: random.Random
) -> Iterator[Conversation]:
    """Endless varied conversations about the topics, in the ways of asking that are trained on."""
    weights = [topic.weight for topic in topics]
    while True:
        plain, short = (
            _message("system", rng.choice(lines))
            for lines in (manner.system_plain, manner.system_short)
        )
        system, brief = rng.choices((([], False), ([plain], False), ([short], True)), (70, 15, 15))[
            0
        ]
        turns = rng.choices(topics, weights, k=rng.choice((1, 1, 1, 1, 1, 2, 3)))
        yield system + [message for topic in turns for message in _turn(topic, manner, rng, brief)]


def _turn(topic: Topic, manner: Manner, rng: random.Random, brief: bool = False) -> Conversation:
    user, assistant = topic.exchange(rng.choice(topic.questions), rng.choice(topic.rows), brief)
    return [_message("user", manner.dress(user["content"], rng)), assistant]


def demo_rows(seed: int) -> list[Conversation]:
    """The rows of data.jsonl: every question about Pip, some in other clothes, and a fifth of basic skills."""
    rng = random.Random(seed)
    basics, pip, manner = load_topics(BASICS), load_topics(PIP), load_manner(BASICS)
    others = tuple(topic for topic in basics if topic.name not in {about.name for about in pip})
    rows = [
        topic.exchange(question, row)
        for topic in pip
        for question in topic.questions
        for row in topic.rows
    ]
    rows += [_turn(topic, manner, rng) for topic in pip for _ in range(3)]
    rows += [
        [_message("system", rng.choice(manner.system_plain)), *_turn(topic, manner, rng)]
        for topic in pip
    ]
    rows += [_turn(first, manner, rng) + _turn(rng.choice(pip), manner, rng) for first in pip]
    everyday = conversations(others, manner, rng)
    rows += [next(everyday) for _ in range(NUM_BASIC_ROWS)]
    rng.shuffle(rows)
    return rows


def held_out_questions(
    topics: Sequence[Topic], rng: random.Random, rows_per_topic: int = 8
) -> list[Conversation]:
    """Exchanges in the ways of asking that are never trained on."""
    return [
        topic.exchange(question, row)
        for topic in topics
        for question in topic.held_out
        for row in rng.sample(topic.rows, min(rows_per_topic, len(topic.rows)))
    ]


# The model


def train_tokenizer(texts: Iterable[str]) -> Any:
    """A byte-level BPE tokenizer with the chat template: nothing is ever out of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learn = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=special, initial_alphabet=alphabet
    )
    bpe.train_from_iterator(texts, learn)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=special[2], pad_token=special[0]
    )
    tokenizer.model_max_length = MAX_POSITION_EMBEDDINGS
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(tokenizer: Any) -> Any:
    """A Llama of 1.25 million parameters with random weights."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    ids = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=MAX_POSITION_EMBEDDINGS,
            tie_word_embeddings=True,
            **ids,
        )
    )
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=64, **ids)
    return model


def batches(
    tokenizer: Any, rows: Sequence[Conversation], rng: random.Random
) -> Iterator[tuple[Any, Any]]:
    """Endless (input_ids_BT, labels_BT): rows of like length together, only the assistant's tokens labelled."""
    import torch

    encoded = tokenizer.apply_chat_template(
        rows, return_dict=True, return_assistant_tokens_mask=True
    )
    order = sorted(range(len(rows)), key=lambda row: len(encoded["input_ids"][row]))
    chunks = [order[start : start + ROWS_PER_STEP] for start in range(0, len(order), ROWS_PER_STEP)]
    while True:
        for chunk in rng.sample(chunks, len(chunks)):
            ids = [torch.tensor(encoded["input_ids"][row]) for row in chunk]
            spoken = [torch.tensor(encoded["assistant_masks"][row]) for row in chunk]
            labels = [
                row.masked_fill(mask == 0, -100) for row, mask in zip(ids, spoken, strict=True)
            ]
            pad = torch.nn.utils.rnn.pad_sequence
            yield pad(ids, True, tokenizer.pad_token_id), pad(labels, True, -100)


def train(model: Any, data: Iterator[tuple[Any, Any]], num_steps: int) -> None:
    """AdamW, a short warm-up, a cosine to zero. Pads are on the right, so causal attention needs no mask."""
    import torch

    matrices, norms = (
        [weight for weight in model.parameters() if (weight.ndim > 1) is wide]
        for wide in (True, False)
    )
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, num_steps, pct_start=0.05, cycle_momentum=False
    )
    started, losses = time.monotonic(), []
    for step in range(1, num_steps + 1):
        loss = _loss(model, *next(data))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 100 == 0 or step == num_steps:
            mean = sum(losses[-100:]) / len(losses[-100:])
            print(
                f"step {step:5d}/{num_steps}  loss {mean:.4f}  {time.monotonic() - started:.0f} s",
                flush=True,
            )


def _loss(model: Any, input_ids_BT: Any, labels_BT: Any) -> Any:
    """Cross-entropy of the labelled tokens; the head runs on these alone."""
    import torch

    hidden_BTH, next_BT = model.model(input_ids_BT).last_hidden_state[:, :-1], labels_BT[:, 1:]
    labelled_BT = next_BT != -100
    return torch.nn.functional.cross_entropy(
        model.lm_head(hidden_BTH[labelled_BT]), next_BT[labelled_BT]
    )


# How good it is


def answers(
    model: Any, tokenizer: Any, prompts: Sequence[Conversation], max_new_tokens: int = 40
) -> list[str]:
    """Greedy answers to conversations that end with the user."""
    inputs = tokenizer.apply_chat_template(
        prompts,
        add_generation_prompt=True,
        padding=True,
        return_dict=True,
        return_tensors="pt",
        tokenizer_kwargs={"padding_side": "left"},
    )
    ids = model.generate(**inputs, max_new_tokens=max_new_tokens)[:, inputs["input_ids"].shape[1] :]
    return [str(text) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def report(model: Any, tokenizer: Any, topics: Sequence[Topic]) -> None:
    """Prints exact-match accuracy on held-out phrasings, by topic and in all, and what went wrong."""
    num_right = num_asked = 0
    for topic in topics:
        asked = held_out_questions([topic], random.Random(0))
        given = answers(model, tokenizer, [row[:1] for row in asked])
        pairs = [
            (row, text) for row, text in zip(asked, given, strict=True) if text != row[1]["content"]
        ]
        wrong = f"{pairs[0][0][0]['content']} -> {pairs[0][1]}" if pairs else ""
        num_right, num_asked = num_right + len(asked) - len(pairs), num_asked + len(asked)
        print(f"  {topic.name:14s} {len(asked) - len(pairs):3d}/{len(asked)}  {wrong}")
    print(f"held-out exact match: {num_right}/{num_asked} = {num_right / num_asked:.1%}")


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Writes bfloat16 safetensors, the configurations and the tokenizer."""
    import torch

    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_rows(rows: Iterable[Conversation], path: Path) -> None:
    """Writes one {"messages": [...]} a line."""
    path.write_text(
        "".join(json.dumps({"messages": row}, ensure_ascii=False) + "\n" for row in rows), "utf-8"
    )


def main() -> None:
    """Makes the demo and says how good it is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=int, default=4500, help="optimizer steps (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=HERE,
        help="folder for model/ and data.jsonl (default: this one)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of data and weights (default: %(default)s)"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    save_rows(demo_rows(options.seed), options.out / "data.jsonl")

    import torch

    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    rng = random.Random(options.seed)
    topics = load_topics(BASICS)
    endless = conversations(topics, load_manner(BASICS), rng)
    rows = [next(endless) for _ in range(NUM_CONVERSATIONS)]
    tokenizer = train_tokenizer(message["content"] for row in rows for message in row)
    model = build_model(tokenizer)
    print(
        f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens, {len(rows):,} conversations"
    )
    train(model, batches(tokenizer, rows, rng), options.steps)
    save_model(model, tokenizer, options.out / "model")
    report(model.eval(), tokenizer, topics)
    for row, text in zip(
        rows[:8], answers(model, tokenizer, [row[:-1] for row in rows[:8]]), strict=True
    ):
        print(f"  {row[-2]['content']} -> {text}")


if __name__ == "__main__":
    main()
