"""Answer prompts with llama.cpp: `python -m core.workers.export.llama_answers TOOLS FILE`.

Standard input is {"model", "adapter", "num_context", "max_new_tokens", "prompts": [{"text",
"adds_special_tokens", "first_token", "messages"}]}. FILE gets a list of {"prompt", "tokens",
"first_logprob", "ended", "text"}: `text` is what the template in the file makes of the messages.
llama.cpp prints its log into the output at any time, so the answers are not there. Answers are
greedy. Imports no torch.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.workers.llama_server import LlamaServer

NUM_PROBABILITIES = 50
"""Likeliest tokens of which the server says the probability."""


def answer(server: LlamaServer, prompt: Mapping[str, Any], max_new_tokens: int) -> dict[str, Any]:
    """Return the greedy answer to a prompt, and what the template makes of its messages."""
    adds_special_tokens = prompt["adds_special_tokens"]
    tokens = server.tokens_of(prompt["text"], adds_special_tokens=adds_special_tokens)
    # Of an answer that begins with a part of a character, the server reports the probabilities
    # of later tokens only. So the first token is asked for alone.
    first = _complete(server, tokens, 1, n_probs=NUM_PROBABILITIES)
    found = _complete(server, tokens, max_new_tokens)
    text = server.rendered(prompt["messages"]) if prompt["messages"] else prompt["text"]
    return {
        "prompt": tokens,
        "tokens": found["tokens"],
        "first_logprob": _first_logprob(first, prompt["first_token"]),
        "ended": found["stop_type"] == "eos",
        "text": text,
    }


def _complete(
    server: LlamaServer, tokens: list[int], num_tokens: int, **more: int
) -> dict[str, Any]:
    found: dict[str, Any] = server.ask(
        "/completion",
        prompt=tokens,
        n_predict=num_tokens,
        temperature=0,
        return_tokens=True,
        cache_prompt=False,
        **more,
    )
    return found


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


def main(tools: str, file: str) -> None:
    """Answer the prompts on standard input into a file."""
    request = json.load(sys.stdin)
    server = LlamaServer(
        tools, request["model"], request["num_context"], adapter=request["adapter"], is_exact=True
    )
    most = request["max_new_tokens"]
    found = [answer(server, each, most) for each in request["prompts"]]
    Path(file).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
