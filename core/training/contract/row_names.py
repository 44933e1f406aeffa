"""Names under which the parts of a row stand in files, the usual one first; and words of names."""

import re
import unicodedata
from collections.abc import Mapping
from types import MappingProxyType

Names = tuple[str, ...]
"""Names of one part, in order of preference."""
SYSTEM = ("system", "system_prompt", "system_message", "systemInstruction", "system_instruction")
TOOLS = ("tools", "functions", "toolConfig")
HISTORY = ("history", "chat_history", "conversation_history")
BESIDE_CHAT: Mapping[str, Names] = MappingProxyType({"system": SYSTEM, "tools": TOOLS})
BESIDE_CONVERSATION: Mapping[str, Names] = MappingProxyType({**BESIDE_CHAT, "mask": ("mask",)})
BESIDE_QUESTION: Mapping[str, Names] = MappingProxyType(
    {
        "input": ("input",),
        "context": ("context",),
        **BESIDE_CHAT,
        "history": HISTORY,
    }
)
MESSAGES = ("messages", "conversations", "conversation", "contents")
COMPLETION = ("completion", "response", "output", "answer")
CHOSEN = ("chosen", "chosen_response", "chosen_messages")
REJECTED = ("rejected", "rejected_response", "rejected_messages")
REJECTED_BESIDE_ANSWER = ("rejected_response", "rejected_messages", "rejected")
QUESTIONS = ("prompt", "question", "query", "instruction", "input", *MESSAGES)
# fmt: off
KEY_WORDS = frozenset((
    "id", "ids", "uuid", "guid", "key", "idx", "index", "no", "num", "number", "hash", "url", "uri",
    "link", "path", "file", "date", "time", "timestamp", "score", "rating", "type", "category",
    "lang", "language", "source", "len", "length", "tokens", "count", "model", "name",
))
# fmt: on
"""Last words of names whose columns hold no text to learn."""
NOT_MAPPED = " (not mapped)"
"""End of the name of a column that would be read, had a mapping of columns not left it out."""
WORD = re.compile(r"[^\W\d_]+|\d+")
HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")


def plain_name(name: str) -> str:
    """Return a name by its letters and digits, of every script, in lower case."""
    signs = unicodedata.normalize("NFKC", name).casefold()
    # Vowel signs of many scripts are marks (M), which isalnum leaves out.
    return "".join(
        sign for sign in signs if sign.isalnum() or unicodedata.category(sign).startswith("M")
    )


def words_of(name: str) -> list[str]:
    """Return the words of a name such as `question_id` or `answerId`, in lower case."""
    return [word.lower() for word in WORD.findall(HUMP.sub(" ", name))]
