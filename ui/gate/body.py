"""Body of a request, cut off at a size and at a pause, and the response to it."""

import asyncio

from starlette.types import Message, Receive, Send


class GuardedBody:
    """Body of a request, cut off at a limit. Past the limit the app's response is held back."""

    def __init__(self, receive: Receive, send: Send, max_bytes: int, pause_seconds: float):
        self._receive = receive
        self._send = send
        self._pause_seconds = pause_seconds
        self.left = max_bytes
        self.is_complete = False
        """True once the whole body has been read: what comes after it is a disconnect."""
        self.is_late = False
        """True if a part of the body did not come in time."""
        self.is_given_up = False
        """True if the client has gone before the end of the body."""
        self.has_answered = False

    @property
    def is_too_large(self) -> bool:
        return self.left < 0

    @property
    def is_refused(self) -> bool:
        """True if the body was cut off and nothing has been sent yet."""
        return (self.is_too_large or self.is_late) and not self.has_answered

    async def receive(self) -> Message:
        """Return the next message; a disconnect once the body is too large or too late."""
        if self.is_complete:
            return await self._receive()
        try:
            async with asyncio.timeout(self._pause_seconds):
                message = await self._receive()
        except TimeoutError:
            self.is_late = True
            return {"type": "http.disconnect"}
        self.is_given_up = message["type"] == "http.disconnect"
        self.left -= len(message.get("body", b""))
        self.is_complete = not message.get("more_body", False)
        return {"type": "http.disconnect"} if self.is_too_large else message

    async def send(self, message: Message) -> None:
        """Pass the response on, unless it is to a body that was cut off."""
        if not self.is_refused:
            self.has_answered = True
            await self._send(message)
