"""Chat templates that behave as those of known model families do, and what counts of each answer.

The templates are in tests/data/chat_templates.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tests.builders.paths import DEMO, ROOT

FOLDER = ROOT / "tests" / "data" / "chat_templates"
Message = dict[str, Any]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str, **others: Any) -> Message:
    return {"role": "assistant", "content": text, **others}


def tokenizer_with(tokens: tuple[str, ...]) -> Any:
    """Return the demo model's tokenizer with further special tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model", trust_remote_code=False)
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    return tokenizer


CALL = {"type": "function", "function": {"name": "lamp", "arguments": {"on": True}}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "lamp",
            "description": "Switch the lamp",
            "parameters": {"type": "object", "properties": {"on": {"type": "boolean"}}},
        },
    }
]
# The same words stand in several places, so that no search for a text could find the answers.
CONVERSATIONS: Mapping[str, list[Message]] = {
    "one answer": [user("Hi"), assistant("Hello there")],
    "several answers": [user("Yes"), assistant("Yes"), user("Yes"), assistant("Yes")],
    "system": [
        {"role": "system", "content": "Yes"},
        user("Hi"),
        assistant("Yes"),
        user("And?"),
        assistant("user\nYes"),
    ],
    "thoughts": [
        user("2 + 2?"),
        assistant("4", reasoning_content="2 and 2 are 4"),
        user("Sure?"),
        assistant("Yes, 4", reasoning_content="still 4"),
    ],
    "written thoughts": [
        user("2 + 2?"),
        assistant("<think>\n2 and 2 are 4\n</think>\n\n4"),
        user("Sure?"),
        assistant("<think>\nstill 4\n</think>\n\nYes, 4"),
    ],
    "calls": [
        user("Lamp"),
        assistant("", tool_calls=[CALL]),
        {"role": "tool", "name": "lamp", "content": "done"},
        assistant("It is on."),
        user("Thanks"),
        assistant("Welcome"),
    ],
}


@dataclass(frozen=True)
class Family:
    """Chat template of one family, and what counts of its answers."""

    name: str
    end: str
    """What ends an answer."""
    tokens: tuple[str, ...] = ()
    """Further special tokens of its tokenizer."""
    lead: str = ""
    """What the model writes before its answer."""
    counted: Mapping[str, list[str]] = field(default_factory=dict)
    """Kind of conversation -> texts that count, where it is not the plain answers."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Kind of conversation -> words of the refusal."""
    needs_tokens: bool = False
    """True if only its special tokens show where an answer ends, which as text are not believed."""

    @cached_property
    def template(self) -> str:
        return (FOLDER / f"{self.name}.jinja").read_text(encoding="utf-8")

    def answers(self, kind: str) -> list[str]:
        """Return the texts that count of a kind of conversation."""
        plain = [each["content"] for each in CONVERSATIONS[kind] if each["role"] == "assistant"]
        return self.counted.get(kind, [self.lead + answer + self.end for answer in plain])


NO_CALLS = {
    "calls": "does not print its tool calls, so the model would learn to answer with nothing"
}
CALL_JSON = '<tool_call>\n{"name": "lamp", "arguments": {"on": true}}\n</tool_call>'
LLAMA_3_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
GEMMA_TOKENS = ("<bos>", "<start_of_turn>", "<end_of_turn>")
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>")
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
HARMONY = "<|channel|>final<|message|>"
FAMILIES = (
    Family(
        "qwen_2_5",
        "<|im_end|>",
        counted={"calls": [CALL_JSON + "<|im_end|>", "It is on.<|im_end|>", "Welcome<|im_end|>"]},
    ),
    Family(
        "qwen_3",
        "<|im_end|>",
        counted={
            "one answer": [EMPTY_THOUGHT + "Hello there<|im_end|>"],
            "several answers": ["Yes<|im_end|>", EMPTY_THOUGHT + "Yes<|im_end|>"],
            "system": ["Yes<|im_end|>", EMPTY_THOUGHT + "user\nYes<|im_end|>"],
            "thoughts": ["4<|im_end|>", "<think>\nstill 4\n</think>\n\nYes, 4<|im_end|>"],
            "written thoughts": ["4<|im_end|>", "<think>\nstill 4\n</think>\n\nYes, 4<|im_end|>"],
            "calls": [
                CALL_JSON + "<|im_end|>",
                "It is on.<|im_end|>",
                EMPTY_THOUGHT + "Welcome<|im_end|>",
            ],
        },
    ),
    Family(
        "llama_2",
        " </s>",
        tokens=("<s>", "</s>"),
        lead=" ",
        refused={"calls": "refuses messages[2] (tool): Roles must alternate"},
    ),
    Family("llama_3", "<|eot_id|>", LLAMA_3_TOKENS, refused=NO_CALLS),
    Family(
        "llama_3_1",
        "<|eot_id|>",
        LLAMA_3_TOKENS,
        counted={
            "calls": [
                '{"name": "lamp", "parameters": {"on": true}}<|eot_id|>',
                "It is on.<|eot_id|>",
                "Welcome<|eot_id|>",
            ]
        },
    ),
    Family(
        "gemma_2",
        "<end_of_turn>",
        GEMMA_TOKENS,
        refused={
            "system": "refuses messages[0] (system): System role not supported",
            "calls": "refuses messages[2] (tool): Roles must alternate",
        },
    ),
    Family(
        "gemma_3",
        "<end_of_turn>",
        GEMMA_TOKENS,
        refused={"calls": "refuses messages[2] (tool): Roles must alternate"},
    ),
    Family(
        "mistral_3",
        "</s>",
        ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]"),
        lead=" ",
        counted={
            "calls": [
                '[TOOL_CALLS] [{"name": "lamp", "arguments": {"on": true}}]</s>',
                " It is on.</s>",
                " Welcome</s>",
            ]
        },
    ),
    Family("smollm_2", "<|im_end|>", refused=NO_CALLS),
    Family("olmo_2", "<|endoftext|>", ROLE_TOKENS, refused=NO_CALLS),
    Family(
        "granite_3",
        "<|end_of_text|>",
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|tool_call|>"),
        counted={
            "calls": [
                '<|tool_call|>[{"name": "lamp", "arguments": {"on": true}}]<|end_of_text|>',
                "It is on.<|end_of_text|>",
                "Welcome<|end_of_text|>",
            ]
        },
    ),
    Family(
        "phi_3",
        "<|end|>",
        ROLE_TOKENS,
        counted={
            "one answer": ["Hello there<|end|>\n<|endoftext|>"],
            "several answers": ["Yes<|end|>", "Yes<|end|>\n<|endoftext|>"],
            "system": ["Yes<|end|>", "user\nYes<|end|>\n<|endoftext|>"],
            "thoughts": ["4<|end|>", "Yes, 4<|end|>\n<|endoftext|>"],
            "written thoughts": [
                "<think>\n2 and 2 are 4\n</think>\n\n4<|end|>",
                "<think>\nstill 4\n</think>\n\nYes, 4<|end|>\n<|endoftext|>",
            ],
        },
        refused=NO_CALLS,
    ),
    Family("phi_4", "<|im_end|>", ("<|im_sep|>",), refused=NO_CALLS),
    Family(
        "gpt_oss",
        "<|return|>",
        ("<|start|>", "<|channel|>", "<|message|>", "<|call|>", "<|return|>", "<|end|>"),
        lead=HARMONY,
        counted={
            "several answers": [HARMONY + "Yes<|end|>", HARMONY + "Yes<|return|>"],
            "system": [HARMONY + "Yes<|end|>", HARMONY + "user\nYes<|return|>"],
            "thoughts": [
                HARMONY + "4<|end|>",
                "<|channel|>analysis<|message|>still 4<|end|><|start|>assistant"
                + HARMONY
                + "Yes, 4<|return|>",
            ],
            "written thoughts": [
                HARMONY + "<think>\n2 and 2 are 4\n</think>\n\n4<|end|>",
                HARMONY + "<think>\nstill 4\n</think>\n\nYes, 4<|return|>",
            ],
            "calls": [
                ' to=functions.lamp<|channel|>commentary<|message|>{"on": true}<|call|>',
                HARMONY + "It is on.<|end|>",
                HARMONY + "Welcome<|return|>",
            ],
        },
    ),
    Family(
        "deepseek_r1",
        "<｜end▁of▁sentence｜>",
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        counted={
            "written thoughts": [
                "\n\n4<｜end▁of▁sentence｜>",
                "\n\nYes, 4<｜end▁of▁sentence｜>",
            ]
        },
        refused=NO_CALLS,
    ),
    Family(
        "command_r",
        "<|END_OF_TURN_TOKEN|>",
        (
            "<BOS_TOKEN>",
            "<|START_OF_TURN_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            "<|SYSTEM_TOKEN|>",
            "<|USER_TOKEN|>",
            "<|CHATBOT_TOKEN|>",
        ),
        refused={"calls": "refuses messages[2] (tool): "},
    ),
    Family(
        "glm_4",
        "<|user|>",
        ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
        lead="\n",
        counted={
            "written thoughts": ["\n4<|user|>", "\nYes, 4<|user|>"],
            "calls": [
                'lamp\n{"on": true}<|observation|>',
                "\nIt is on.<|user|>",
                "\nWelcome<|user|>",
            ],
        },
        needs_tokens=True,
    ),
    Family("zephyr", "</s>", ("</s>",), refused=NO_CALLS),
    Family("falcon_3", "<|endoftext|>", ROLE_TOKENS, refused=NO_CALLS),
    Family("vicuna", "</s>", ("</s>",), lead=" ", refused=NO_CALLS),
    Family("without_opening", "<|im_end|>", refused=NO_CALLS),
)
