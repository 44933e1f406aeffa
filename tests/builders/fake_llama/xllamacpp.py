"""Package that stands for llama.cpp's server: it answers each message with its own words.

Behaves as the file of the model says: "broken" is none that it can read. Imported by a child
program, from a folder that a test names in place of the installed tools.
"""

import json
import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

SECONDS_OF_SLOW_TEMPLATE = 10
ENDLESS = "endless"
SECONDS_BETWEEN_WORDS = 0.01
SECONDS_OF_SLOW_ANSWER = 600
HALF_A_CHARACTER = 2
"""Token that is only a part of a character."""
MANY = 100
SAYS = "says "
SECONDS_OF_SILENCE = 0.0002
ggml_type = SimpleNamespace(GGML_TYPE_F32=0)
llama_flash_attn_type = SimpleNamespace(LLAMA_FLASH_ATTN_TYPE_DISABLED=0)


class CommonParams(SimpleNamespace):
    """Parameters of a server."""

    def __init__(self) -> None:
        processors = {name: SimpleNamespace() for name in ("cpuparams", "cpuparams_batch")}
        super().__init__(model=SimpleNamespace(path=""), **processors)


class Server:
    """Server in a thread."""

    def __init__(self, parameters: CommonParams) -> None:
        content = Path(parameters.model.path).read_text()
        if content == "broken":
            raise RuntimeError("failed to load the model")
        ALWAYS[:] = content.removeprefix(SAYS).split() if content.startswith(SAYS) else []
        print("a library that prints to standard output", flush=True)
        if content == "noisy":
            threading.Thread(target=_print_always, daemon=True).start()
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.listening_address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()


def _print_always() -> None:
    while True:
        os.write(1, b"log without an end of line ")
        time.sleep(SECONDS_OF_SILENCE)


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        PATHS[self.path](self, asked)

    def apply_template(self, asked: dict) -> None:
        said = " ".join(message["content"] for message in asked["messages"])
        if "slow template" in said:
            time.sleep(SECONDS_OF_SLOW_TEMPLATE)
        if "refused" in said:
            self.reply({"error": {"message": "roles must alternate"}}, 400)
        else:
            self.reply({"prompt": said})

    def tokenize(self, asked: dict) -> None:
        WORDS[:] = asked["content"].split()
        self.reply({"tokens": list(range(len(WORDS)))})

    def completion(self, asked: dict) -> None:
        if not asked.get("stream"):
            self.complete(asked)
            return
        self.send_response(200)
        self.end_headers()
        words = WORDS * 9999 if ENDLESS in WORDS else list(WORDS)
        words.append(f"t={asked['temperature']} seed={asked['seed']}")
        ending = "limit" if len(words) > asked["n_predict"] else "eos"
        for number, word in enumerate(words[: asked["n_predict"]], start=1):
            time.sleep(SECONDS_BETWEEN_WORDS)
            self.event(content=f"{word} ", stop=False, tokens_predicted=number)
        self.event(content="", stop=True, stop_type=ending, tokens_predicted=number)

    def complete(self, asked: dict) -> None:
        """Answer a whole prompt with its words. A token that is forced is as likely as its number
        is small, and one of HALF_A_CHARACTER is not told of."""
        if "die" in WORDS:
            os.kill(os.getpid(), signal.SIGKILL)
        if "wait" in WORDS:
            time.sleep(SECONDS_OF_SLOW_ANSWER)
        answer: dict = {
            "content": f" {' '.join(ALWAYS or WORDS)} ",
            "tokens": [],
            "stop_type": "eos",
        }
        for token, _bias in asked.get("logit_bias", ()):
            told = {"id": token, "logprob": -1.0 - token}
            every = [{"id": each, "logprob": -1.0 - each} for each in range(MANY)]
            told["top_logprobs"] = every[: asked["n_probs"]]
            answer["completion_probabilities"] = [] if token == HALF_A_CHARACTER else [told]
        self.reply(answer)

    def event(self, **event: object) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()

    def reply(self, answer: dict, status: int = 200) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        pass


ALWAYS: list[str] = []
"""Answer to all prompts, if the file of the model says so."""
WORDS: list[str] = []
"""Words of the last text that was tokenized."""
PATHS = {
    "/apply-template": _Handler.apply_template,
    "/tokenize": _Handler.tokenize,
    "/completion": _Handler.completion,
}
