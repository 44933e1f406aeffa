"""Chat with a model, a run or one of its checkpoints, or with two of them side by side.

The models are loaded by a child process (core/workers/chat), which holds the device as a task: one
chat on a device, none beside a run. Conversations are kept by the page or the terminal.
"""

from core.after_training.chat.corrections import keep_answer, keep_preference
from core.after_training.chat.errors import ChatEnded, ChatError
from core.after_training.chat.plan import ChatPlan, plan_chat
from core.after_training.chat.session import (
    AnswerPiece,
    AnswerSettings,
    Chat,
    ChatMessage,
    FinishedAnswer,
)
from core.after_training.chat.sides import ChatSide, find_side, sides_of

__all__ = [
    "AnswerPiece",
    "AnswerSettings",
    "Chat",
    "ChatEnded",
    "ChatError",
    "ChatMessage",
    "ChatPlan",
    "ChatSide",
    "FinishedAnswer",
    "find_side",
    "keep_answer",
    "keep_preference",
    "plan_chat",
    "sides_of",
]
