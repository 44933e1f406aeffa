"""Model and rows that a point of memory_grid.py trains on.

Nothing is downloaded: a model is its config.json and a file of weights that takes no disk space.
"""

import json
import random
import string
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from core.models import ModelShape, Parameter
from core.training.contract.stages import Stage

LETTERS = string.ascii_letters
PAD, END = "<pad>", "</s>"
RANDOM_NUMBERS = 100_003
"""A prime, so that no row of a matrix repeats another."""


def write_model(folder: Path, config: Mapping[str, object], has_holes: bool = True) -> None:
    """Write a model folder as from the Hub, with a tokenizer that makes one token of each letter.

    Most weights are holes in a sparse file, which read as zeros and take no disk space. Norms are
    one, and the embeddings that occur and the routers are random, so that experts are chosen by
    chance. Memory does not depend on other values, and the real code loads, converts and quantizes
    everything.
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer()), encoding="utf-8")
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": PAD, "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    _write_weights(folder / "model.safetensors", ModelShape.from_config(config), has_holes)


def write_rows(path: Path, tokens: tuple[int, ...], stage: Stage) -> None:
    """Write rows of exactly so many tokens: letters, and the end token that the trainer adds.

    A quarter is the answer to a prompt. A pair has two answers of one length. Stages that generate
    get prompts only.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = random.Random(0)

    def letters(count: int) -> str:
        return "".join(generator.choices(LETTERS, k=count))

    rows = (
        ROWS[stage.dataset_types[0]](letters, num_tokens, number)
        for number, num_tokens in enumerate(tokens)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


Letters = Callable[[int], str]
"""Returns so many random letters."""


def _text(letters: Letters, num_tokens: int, number: int) -> dict[str, object]:
    return {"text": letters(num_tokens - 1)}


def _prompt(letters: Letters, num_tokens: int, number: int) -> dict[str, object]:
    return {"prompt": letters(num_tokens - num_tokens // 4)}


def _answer(letters: Letters, num_tokens: int, number: int) -> dict[str, object]:
    answer = {"completion": letters(num_tokens // 4 - 1), "label": number % 2 == 0}
    return _prompt(letters, num_tokens, number) | answer


def _pair(letters: Letters, num_tokens: int, number: int) -> dict[str, object]:
    answers = {name: letters(num_tokens // 4 - 1) for name in ("chosen", "rejected")}
    return _prompt(letters, num_tokens, number) | answers


ROWS: Mapping[str, Callable[[Letters, int, int], dict[str, object]]] = MappingProxyType(
    {
        "language modeling": _text,
        "preference": _pair,
        "unpaired preference": _answer,
        "prompt-only": _prompt,
    }
)
"""Dataset type -> function of letters, number of tokens and number of the row."""


def _tokenizer() -> dict[str, object]:
    """Return a tokenizer.json that never merges letters.

    Its model is BPE because transformers reads the files of some families as BPE in any case.
    """
    flags = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": number, "content": content, **flags} for number, content in enumerate((PAD, END))
        ],
        "model": {
            "type": "BPE",
            "vocab": {text: number for number, text in enumerate((PAD, END, *LETTERS))},
            "merges": [],
        },
    }


def _write_weights(path: Path, shape: ModelShape, has_holes: bool) -> None:
    """Write a safetensors file in bfloat16: length of the header in 8 bytes, header, tensors."""
    header, tensors, end = {}, {}, 0
    for tensor in _published_tensors(shape):
        begin, end = end, end + 2 * tensor.numel
        header[tensor.name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": (begin, end)}
        tensors[begin] = tensor
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for begin, tensor in tensors.items():
            file.seek(8 + len(text) + begin)
            file.write(_values(tensor, has_holes))
        file.truncate(8 + len(text) + end)


def _published_tensors(shape: ModelShape) -> Iterator[Parameter]:
    """Yield the tensors as on the Hub: experts one by one, which transformers stacks at loading."""
    for tensor in shape.parameters():
        if tensor.role != "expert":
            yield tensor
            continue
        path, _, name = tensor.name.rpartition(".")
        count, num_out, num_in = tensor.shape
        parts = ("gate_proj", "up_proj") if name == "gate_up_proj" else (name,)
        for expert in range(count):
            for part in parts:
                yield Parameter(
                    f"{path}.{expert}.{part}.weight", (num_out // len(parts), num_in), "expert"
                )


def _values(tensor: Parameter, has_holes: bool) -> bytes:
    """Return the bytes of a tensor that are not zero, from its beginning."""
    if tensor.role == "norm":
        return b"\x80\x3f" * tensor.numel  # 1.0
    if tensor.role == "embedding":
        return _random_numbers(len((PAD, END, *LETTERS)) * tensor.shape[1])
    if tensor.role == "router" or not has_holes:
        return _random_numbers(tensor.numel)
    return b""


def _random_numbers(count: int) -> bytes:
    """Return random bfloat16 numbers of either sign, of about 0.02; a few of them, repeated."""
    generator = random.Random(count)
    numbers = bytearray(2 * RANDOM_NUMBERS)
    numbers[0::2] = generator.randbytes(RANDOM_NUMBERS)
    # sign, exponent -7 or -6
    numbers[1::2] = bytes(0x3C | byte & 0x80 for byte in generator.randbytes(RANDOM_NUMBERS))
    return (bytes(numbers) * (count // RANDOM_NUMBERS + 1))[: 2 * count]
