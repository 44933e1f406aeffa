"""llama.cpp's server in this process, asked over HTTP. Knows no run; imports no torch.

Its package is one of requirements-export.txt, which lie in a folder of their own.
"""

import importlib
import json
import secrets
import sys
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

NUM_GPU_LAYERS = 0
"""Layers on a GPU: none, so that the answers do not depend on a card."""
BYTES_FOR_ONE_THREAD = 50_000_000
"""Files up to this size are answered with in one thread: more would wait for each other."""
SECONDS_TO_ANSWER = 600
EVENT = b"data: "


class LlamaServer:
    """Server of one GGUF file. Listens on this machine only, for those with its key."""

    def __init__(
        self, tools: str, model: str, num_context: int, *, adapter: str = "", is_exact: bool = False
    ) -> None:
        """Load the model. `is_exact` computes attention in float32, as transformers does on a
        CPU.

        Raises RuntimeError for a file that llama.cpp cannot read, ImportError.
        """
        if tools not in sys.path:
            sys.path.append(tools)
        library: Any = importlib.import_module("xllamacpp")
        self._key = secrets.token_hex(16)
        parameters = library.CommonParams()
        parameters.model.path = model
        parameters.api_keys = [self._key]
        parameters.n_ctx = num_context
        parameters.n_parallel = 1
        parameters.n_gpu_layers = NUM_GPU_LAYERS
        if Path(model).stat().st_size <= BYTES_FOR_ONE_THREAD:
            parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
        parameters.warmup = False
        parameters.use_jinja = True
        if is_exact:
            parameters.n_batch = parameters.n_ubatch = num_context
            single = library.ggml_type.GGML_TYPE_F32
            parameters.cache_type_k = parameters.cache_type_v = single
            disabled = library.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
            parameters.flash_attn_type = disabled
        if adapter:
            info = library.CommonAdapterLoraInfo()
            info.path, info.scale = adapter, 1.0
            parameters.lora_adapters = [info]
        self._server = library.Server(parameters)

    def tokens_of(self, text: str, *, adds_special_tokens: bool) -> list[int]:
        """Return the tokens of a text, in which special tokens are read as such."""
        found = self.ask(
            "/tokenize", content=text, add_special=adds_special_tokens, parse_special=True
        )
        return list(found["tokens"])

    def rendered(
        self,
        messages: Sequence[Mapping[str, Any]],
        seconds: float = SECONDS_TO_ANSWER,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """Return what the chat template in the file makes of messages, beside tools to call.

        Raises ValueError if it refuses them, TimeoutError.
        """
        fields: dict[str, object] = {"messages": messages}
        if tools:
            fields["tools"] = tools
        return str(self.ask("/apply-template", seconds, **fields)["prompt"])

    def ask(self, path: str, seconds: float = SECONDS_TO_ANSWER, **fields: object) -> Any:
        """Return the JSON answer of the server. Raises ValueError if it refuses, TimeoutError."""
        with self._opened(path, seconds, fields) as answer:
            return json.load(answer)

    def stream(self, path: str, **fields: object) -> Generator[dict[str, Any], None, None]:
        """Yield the events of an answer. One that is closed early ends the answer."""
        with self._opened(path, SECONDS_TO_ANSWER, fields | {"stream": True}) as lines:
            for line in lines:
                if line.startswith(EVENT):
                    yield json.loads(line.removeprefix(EVENT))

    @contextmanager
    def _opened(
        self, path: str, seconds: float, fields: Mapping[str, object]
    ) -> Iterator[IO[bytes]]:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        address = self._server.listening_address + path
        request = urllib.request.Request(address, json.dumps(fields).encode(), headers)
        # A proxy must not see what stays on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=seconds) as answer:
                yield answer
        except urllib.error.HTTPError as error:
            raise ValueError(_reason(error)) from None


def _reason(error: urllib.error.HTTPError) -> str:
    """Return what the server says of a request that it refused."""
    said = error.read()
    try:
        return str(json.loads(said)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"llama.cpp answered with {error.code}"
