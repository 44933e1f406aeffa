"""ChatError: what a user can act on when a chat cannot start, cannot answer, or has ended."""

from core.job import TailorError


class ChatError(TailorError):
    """Chat that cannot start, cannot answer, or has ended."""


class ChatEnded(ChatError):
    """Chat that had ended before it read the message: a new chat can answer it."""
