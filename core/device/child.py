"""Parent's side of a child process that reads JSON requests, one a line, and answers them.

core/workers/child.py is the other side. Knows nothing of what the two say to each other. The
parent always gets an answer or a ChildError: never a crash, never an endless wait.
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
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self

from core.job import ChildError, Problem

ROOT = Path(__file__).resolve().parent.parent.parent
VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        "basic": "PATH|HOME|LANG|LC_ALL|TZ|TMPDIR|TEMP|TMP|SYSTEMROOT|USERPROFILE|LD_LIBRARY_PATH",
        "hub": "HF_.*|HTTPS?_PROXY|NO_PROXY|SSL_CERT_FILE|REQUESTS_CA_BUNDLE|XDG_CACHE_HOME",
        "training": "USER|APPDATA|LOCALAPPDATA|CC|CXX|CPATH|C_INCLUDE_PATH|LIBRARY_PATH"
        "|(CUDA|NVIDIA|PYTORCH|TORCH|TORCHINDUCTOR|TRITON|NCCL|OMP|MKL|TRANSFORMERS|BNB)_.*",
    }
)
"""Purpose -> pattern of the variables that a child with this purpose may see; all others, such as
the keys of other programs, stay out."""
SETTINGS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "basic": {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        "hub": {
            "HF_HUB_ETAG_TIMEOUT": "3",  # seconds; without a network, say so soon
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TRL_EXPERIMENTAL_SILENCE": "1",
        },
    }
)
"""Purpose -> variables that are set for a worker with this purpose."""
PYTHON_SETTINGS = {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}
SECONDS_BETWEEN_CHECKS = 0.1
"""Interval at which a wait looks whether it was cancelled."""
LAST_OUTPUT_BYTES = 2000
MAX_REASON_CHARACTERS = 300

Purpose = Literal["basic", "hub", "training"]
Reply = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """Limits of the operating system on a child; None sets no limit. Windows has none of them."""

    address_space_bytes: int | None = None
    """Of memory that is reserved, used or not."""
    data_bytes: int | None = None
    """Of memory without mapped files: for libraries that reserve far more than they use."""
    cpu_seconds: int | None = None
    file_bytes: int | None = None
    """Of each file that the child writes."""


def ignore_progress(_share: float) -> None:
    """Do nothing with the share of work that is done."""


def allowed_environment(*purposes: Purpose) -> dict[str, str]:
    """Return the variables of this process that a child with these purposes may see."""
    allowed = re.compile("|".join(VARIABLES[purpose] for purpose in purposes))
    kept = {name: value for name, value in os.environ.items() if allowed.fullmatch(name.upper())}
    return kept | PYTHON_SETTINGS


class Child:
    """Running `python -m MODULE`, in a new session and an environment of named variables.

    Use it as a context manager. One thread may ask at a time; another may tell or interrupt.
    """

    def __init__(
        self,
        module: str,
        limits: Limits,
        *,
        reads_hub: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start the child. It sees `environment` if that is given, such as launch.environment()."""
        purposes: tuple[Purpose, ...] = ("basic", "hub") if reads_hub else ("basic",)
        variables = dict(environment or allowed_environment(*purposes))
        if environment is None:
            for purpose in purposes:
                variables |= SETTINGS[purpose]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the child is)
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=ROOT,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            close_fds=True,
            start_new_session=True,
        )
        self._sending = threading.Lock()
        self._messages: queue.SimpleQueue[Reply | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name=f"listen to {module}", daemon=True).start()
        with suppress(ChildError):  # a child that died at once says so when it is asked
            self._send(asdict(limits))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.kill()

    def ask(
        self,
        request: Mapping[str, Any],
        seconds: float,
        *,
        on_progress: Callable[[float], None] = ignore_progress,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> Any:
        """Send a request and return its answer, as JSON has it.

        `on_progress` is called with shares from 0 to 1. Raises ChildError; a child that took too
        long, or whose request was cancelled, is ended.
        """
        deadline = time.monotonic() + seconds
        self._send(request)
        while True:
            if is_cancelled and is_cancelled():
                self.interrupt()
                raise _error("cancelled", "cancelled")
            left = deadline - time.monotonic()
            if left <= 0:
                self.interrupt()
                raise _error("too_long", f"took longer than {seconds:.4g} seconds")
            message = self._receive(min(left, SECONDS_BETWEEN_CHECKS))
            if "problem" in message:
                raise ChildError("refused", Problem(**message["problem"]))
            if "answer" in message:
                return message["answer"]
            if "progress" in message:
                on_progress(message["progress"])

    def follow(self, request: Mapping[str, Any], seconds: float) -> Iterator[Reply]:
        """Send a request and yield the messages that answer it, the last with the key `answer`.

        Raises ChildError; a child that says nothing for so many seconds is ended.
        """
        self._send(request)
        message: Reply = {}
        while "answer" not in message:
            message = self._receive(seconds)
            if not message:
                self.interrupt()
                raise _error("too_long", f"said nothing for {seconds:.4g} seconds")
            if "problem" in message:
                raise ChildError("refused", Problem(**message["problem"]))
            yield message

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send what has no answer. Raises ChildError if the child has died."""
        self._send(message)

    def interrupt(self) -> None:
        """End the child and its own children. A thread that waits for an answer gets ChildError."""
        if self._process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            if os.name == "posix":
                # The child leads a session, so its process group holds nothing else.
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()

    def kill(self) -> None:
        """End the child and its own children, and free what it held."""
        self.interrupt()
        self._process.wait()
        for stream in (self._process.stdin, self._errors):
            with suppress(OSError):
                if stream:
                    stream.close()

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin
        try:
            with self._sending:
                self._process.stdin.write(json.dumps(message).encode() + b"\n")
                self._process.stdin.flush()
        except (OSError, ValueError):  # ValueError: it was ended here
            raise self._died() from None

    def _receive(self, seconds: float) -> Reply:
        """Return the next message, {} if there is none in time. Raises ChildError."""
        try:
            message = self._messages.get(timeout=seconds)
        except queue.Empty:
            return {}
        if message is None:
            raise self._died()
        return message

    def _listen(self) -> None:
        """Queue what the child says, so that no caller blocks in a read; None marks its end."""
        assert self._process.stdout
        with self._process.stdout as lines:
            for line in lines:
                with suppress(ValueError):  # output of a library is no message
                    message = json.loads(line)
                    if isinstance(message, dict):
                        self._messages.put(message)
        self._messages.put(None)

    def _died(self) -> ChildError:
        code = self._process.wait()
        self._messages.put(None)  # for the next request
        if code < 0:
            name = signal.strsignal(-code) or "unknown"
            return _error("died", f"it was ended by signal {-code} ({name})")
        last_line = self._last_line()
        reason = f"it ended with code {code}"
        return _error("died", f"{reason}: {last_line}" if last_line else reason)

    def _last_line(self) -> str:
        """Return the last line that the child wrote to its standard error."""
        try:
            self._errors.seek(0)
            output = self._errors.read()[-LAST_OUTPUT_BYTES:].decode(errors="replace").strip()
        except (OSError, ValueError):
            return ""
        if output:
            return output.splitlines()[-1][:MAX_REASON_CHARACTERS]
        return ""


def _error(cause: Literal["died", "too_long", "cancelled"], reason: str) -> ChildError:
    return ChildError(cause, Problem("child process", reason, "try again"))
