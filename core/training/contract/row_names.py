"""Names under which the parts of a row stand in files, the usual one first."""

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
