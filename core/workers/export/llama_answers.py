"""Answer prompts with llama.cpp: `python -m core.workers.export.llama_answers TOOLS`.

Standard input is {"model", "adapter", "num_context", "max_new_tokens", "prompts": [{"text",
"adds_special_tokens", "first_token", "messages"}]}. A line of standard output is ANSWERS and a list
of {"prompt", "tokens", "first_logprob", "ended", "text"}: `text` is what the template in the file
makes of the messages. Answers are greedy. Imports no torch.
"""

import json
import secrets
import sys
import urllib.request
from collections.abc import Mapping
from typing import Any

ANSWERS = "answers: "
"""Beginning of the line with the answers, which tells it from the log of llama.cpp."""
NUM_GPU_LAYERS = 0
"""Layers on a GPU: none, so that the answers do not depend on a card."""
NUM_PROBABILITIES = 50
"""Likeliest tokens of which the server says the probability."""
SECONDS_TO_ANSWER = 600


class LlamaServer:
    """llama.cpp's server in this process. Listens on this machine only, for those with its key."""

    def __init__(self, library: Any, model: str, adapter: str, num_context: int) -> None:
        self._key = secrets.token_hex(16)
        parameters = library.CommonParams()
        parameters.model.path = model
        parameters.api_keys = [self._key]
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = num_context
        parameters.n_parallel = 1
        parameters.n_gpu_layers = NUM_GPU_LAYERS
        parameters.warmup = False
        parameters.use_jinja = True
        # transformers computes attention in float32 on a CPU, too.
        single = library.ggml_type.GGML_TYPE_F32
        parameters.cache_type_k = parameters.cache_type_v = single
        parameters.flash_attn_type = library.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if adapter:
            info = library.CommonAdapterLoraInfo()
            info.path, info.scale = adapter, 1.0
            parameters.lora_adapters = [info]
        self._server = library.Server(parameters)

    def answer(self, prompt: Mapping[str, Any], max_new_tokens: int) -> dict[str, Any]:
        """Return the greedy answer to a prompt, and what the template makes of its messages."""
        tokens = self._ask(
            "/tokenize",
            content=prompt["text"],
            add_special=prompt["adds_special_tokens"],
            parse_special=True,
        )["tokens"]
        # Of an answer that begins with a part of a character, the server reports the probabilities
        # of later tokens only. So the first token is asked for alone.
        first = self._complete(tokens, 1, n_probs=NUM_PROBABILITIES)
        found = self._complete(tokens, max_new_tokens)
        return {
            "prompt": tokens,
            "tokens": found["tokens"],
            "first_logprob": _first_logprob(first, prompt["first_token"]),
            "ended": found["stop_type"] == "eos",
            "text": self._rendered(prompt),
        }

    def _complete(self, tokens: list[int], num_tokens: int, **more: object) -> dict[str, Any]:
        return self._ask(
            "/completion",
            prompt=tokens,
            n_predict=num_tokens,
            temperature=0,
            return_tokens=True,
            cache_prompt=False,
            **more,
        )

    def _rendered(self, prompt: Mapping[str, Any]) -> str:
        if not prompt["messages"]:
            return str(prompt["text"])
        return str(self._ask("/apply-template", messages=prompt["messages"])["prompt"])

    def _ask(self, path: str, **fields: object) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        request = urllib.request.Request(
            self._server.listening_address + path, json.dumps(fields).encode(), headers
        )
        # A proxy must not see what stays on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=SECONDS_TO_ANSWER) as answer:
            value: dict[str, Any] = json.load(answer)
        return value


def _first_logprob(found: Mapping[str, Any], token: int) -> float | None:
    """Return the log-probability of a token in first place, or a bound of it; None if the server
    does not tell, because the answer begins with a part of a character."""
    reported = found.get("completion_probabilities")
    if not reported:
        return None
    likeliest = reported[0]["top_logprobs"]
    for each in likeliest:
        if each["id"] == token:
            return float(each["logprob"])
    return float(likeliest[-1]["logprob"])


def main(tools: str) -> None:
    """Answer the prompts on standard input."""
    sys.path.append(tools)
    import xllamacpp

    request = json.load(sys.stdin)
    server = LlamaServer(xllamacpp, request["model"], request["adapter"], request["num_context"])
    most = request["max_new_tokens"]
    found = [server.answer(each, most) for each in request["prompts"]]
    print(f"\n{ANSWERS}{json.dumps(found)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
