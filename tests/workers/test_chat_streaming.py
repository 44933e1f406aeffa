"""Text of an answer, token by token: what marks its parts is shown, what ends it is not."""

import pytest
import torch
from transformers import AddedToken, AutoTokenizer

from core.models import DEMO_DIR
from core.training.contract.failures import TrainingError
from core.workers.chat.question import opened_thought, require_short
from core.workers.chat.streaming import PieceStreamer


@pytest.mark.parametrize(
    ("mark", "shown"),
    [
        ("[TOOL_CALLS]", 'One. [TOOL_CALLS]["é"]'),
        ("[THINK]", 'One. [THINK]["é"]'),
        ("<|strange|>", 'One. ["é"]'),
    ],
)
def test_marks_of_thoughts_and_calls_are_shown(mark: str, shown: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO_DIR)
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False)])
    pieces: list[str] = []
    streamer = PieceStreamer(tokenizer, pieces.append)
    answer = f'One. {mark}["é"]{tokenizer.eos_token}'
    for token_id in [0, *tokenizer(answer, add_special_tokens=False)["input_ids"]]:
        streamer.put(torch.tensor([token_id]))  # the prompt first
    streamer.end()
    assert "".join(pieces) == shown


@pytest.mark.parametrize(
    ("prompt", "mark"),
    [
        ("<|assistant|>\n<think>\n", "<think>\n"),
        ("<|assistant|>\n<think>\n\n</think>\n\n", ""),
        ("<|assistant|>\n", ""),
    ],
)
def test_a_thought_that_the_template_begins_is_of_the_answer(prompt: str, mark: str) -> None:
    assert opened_thought(prompt) == mark


def test_a_text_that_no_tokenizer_should_split_is_refused() -> None:
    require_short("word " * 2000, 2048)
    with pytest.raises(TrainingError, match=r"has 40,000,000 characters .* holds 2,048 tokens"):
        require_short("a " * 20_000_000, 2048)
