"""A child process that speaks JSON: one object a line, in and out. Knows nothing of what is said.

The child gets an argument list, a session of its own and an environment of named variables only. Whatever becomes of
it, its parent gets an answer, a time-out or ChildDied; never a crash, never an endless wait.
"""

import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from core.job import ChildDied, Problem

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = re.compile(
    "PATH|HOME|LANG|LC_ALL|TZ|TMPDIR|TEMP|TMP|SYSTEMROOT|USERPROFILE|LD_LIBRARY_PATH"
)
HUB_VARIABLES = r"HF_.*|HTTPS?_PROXY|NO_PROXY|SSL_CERT_FILE|REQUESTS_CA_BUNDLE|XDG_CACHE_HOME"
HUB_SETTINGS: Mapping[str, str] = {
    "HF_HUB_ETAG_TIMEOUT": "3",  # seconds; without a network the reason is told soon
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}
"""For children that read from the Hub."""
SECONDS_BETWEEN_LOOKS = 0.1
"""How often a wait looks whether it was called off."""
Message = dict[str, Any]


class Child:
    """A running `python -m MODULE`."""

    def __init__(
        self, module: str, more_variables: str = "", settings: Mapping[str, str] | None = None
    ):
        """Starts it. `more_variables` is a pattern of variables that it may see too; `settings` are set for it."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the child is)
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=ROOT,
            env=_environment(more_variables) | dict(settings or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            close_fds=True,
            start_new_session=True,
        )
        self._answers: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name=f"listen to {module}", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.kill()

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def send(self, message: Mapping[str, Any]) -> None:
        """Says something to the child. Raises ChildDied."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._died() from None

    def receive(
        self, seconds: float, is_cancelled: Callable[[], bool] = lambda: False
    ) -> Message | None:
        """What the child says next; None if it says nothing in time or the wait is called off. Raises ChildDied."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not is_cancelled():
            with suppress(queue.Empty):
                answer = self._answers.get(timeout=min(left, SECONDS_BETWEEN_LOOKS))
                if answer is None:
                    raise self._died()
                return answer
        return None

    def interrupt(self) -> None:
        """Ends the child, and whatever it started; who waits for its answer, in another thread, gets ChildDied."""
        if self.is_alive:
            with suppress(ProcessLookupError):
                if os.name == "posix":
                    os.killpg(
                        self._process.pid, signal.SIGKILL
                    )  # its own session, so the group is its own
                else:
                    self._process.kill()

    def kill(self) -> None:
        """Ends the child, and whatever it started, and lets go of it."""
        self.interrupt()
        self._process.wait()
        for stream in (self._process.stdin, self._errors):
            with suppress(OSError):
                if stream:
                    stream.close()

    def _listen(self) -> None:
        """Hands on what the child says, so that nobody has to wait in a read; None at its end."""
        assert self._process.stdout
        with self._process.stdout as lines:
            for line in lines:
                with suppress(ValueError):  # a library that prints is no message
                    message = json.loads(line)
                    if isinstance(message, dict):
                        self._answers.put(message)
        self._answers.put(None)

    def _died(self) -> ChildDied:
        return ChildDied(Problem("child process", self._last_words(), "try again"))

    def _last_words(self) -> str:
        """How the child ended."""
        code = self._process.wait()
        self._answers.put(None)  # for whoever asks again
        if code < 0:
            return f"it was ended by signal {-code} ({signal.strsignal(-code) or 'unknown'})"
        with suppress(OSError, ValueError):
            self._errors.seek(0)
            if said := self._errors.read()[-2000:].decode(errors="replace").strip():
                return f"it ended with code {code}: {said.splitlines()[-1][:300]}"
        return f"it ended with code {code}"


def _environment(more_variables: str) -> dict[str, str]:
    allowed = re.compile(
        f"(?:{ENVIRONMENT.pattern})" + (f"|(?:{more_variables})" if more_variables else "")
    )
    kept = {name: value for name, value in os.environ.items() if allowed.fullmatch(name.upper())}
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return kept | one_thread | {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}
