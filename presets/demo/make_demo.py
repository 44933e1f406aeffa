"""Make the demo: a tiny language model, trained from scratch, and data to fine-tune it on.

    python -m presets.demo.make_demo [--steps N] [--out DIR] [--seed N]

Writes DIR/model/ and DIR/data.jsonl, the same for the same seed. Tailor itself never imports this.
"""

import argparse
import json
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from presets.demo.conversations import (
    BASICS,
    Conversation,
    Topic,
    conversations,
    demo_rows,
    held_out_questions,
    load_manner,
    load_topics,
)

HERE = Path(__file__).parent
VOCAB_SIZE = 2048
MAX_POSITION_EMBEDDINGS = 2048
NUM_CONVERSATIONS = 40_000
ROWS_PER_STEP = 32
PEAK_LEARNING_RATE = 3e-3

# ChatML. The generation markers tell TRL which tokens the assistant wrote (assistant_only_loss).
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


def train_tokenizer(texts: Iterable[str]) -> Any:
    """Train a byte-level BPE tokenizer, which can encode any text, with the chat template."""
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
    """Return a Llama of 1.25 million parameters with random weights."""
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
    """Yield endless (input_ids_BT, labels_BT) of rows with similar lengths.

    Only tokens of the assistant have labels.
    """
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
    """Train with AdamW, a short warm-up and a cosine schedule to zero.

    Padding is on the right, so causal attention needs no mask.
    """
    import torch

    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    norms = [weight for weight in model.parameters() if weight.ndim == 1]
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
            seconds = time.monotonic() - started
            print(f"step {step:5d}/{num_steps}  loss {mean:.4f}  {seconds:.0f} s", flush=True)


def _loss(model: Any, input_ids_BT: Any, labels_BT: Any) -> Any:
    """Return the cross-entropy of the labelled tokens; the head runs on these only."""
    import torch

    hidden_BTH, next_BT = model.model(input_ids_BT).last_hidden_state[:, :-1], labels_BT[:, 1:]
    labelled_BT = next_BT != -100
    return torch.nn.functional.cross_entropy(
        model.lm_head(hidden_BTH[labelled_BT]), next_BT[labelled_BT]
    )


def answers(
    model: Any, tokenizer: Any, prompts: Sequence[Conversation], max_new_tokens: int = 40
) -> list[str]:
    """Return greedy answers to conversations that end with the user."""
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
    """Print the exact-match accuracy on held-out phrasings, by topic, with a wrong answer."""
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
    """Write bfloat16 safetensors, the configurations and the tokenizer."""
    import torch

    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_rows(rows: Iterable[Conversation], path: Path) -> None:
    """Write one {"messages": [...]} per line."""
    path.write_text(
        "".join(json.dumps({"messages": row}, ensure_ascii=False) + "\n" for row in rows), "utf-8"
    )


def main() -> None:
    """Make the demo and report how good it is."""
    options = _read_options()
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
    sizes = f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens"
    print(f"{sizes}, {len(rows):,} conversations")
    train(model, batches(tokenizer, rows, rng), options.steps)
    save_model(model, tokenizer, options.out / "model")
    report(model.eval(), tokenizer, topics)
    examples = rows[:8]
    texts = answers(model, tokenizer, [row[:-1] for row in examples])
    for row, text in zip(examples, texts, strict=True):
        print(f"  {row[-2]['content']} -> {text}")


def _read_options() -> argparse.Namespace:
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
    return parser.parse_args()


if __name__ == "__main__":
    main()
