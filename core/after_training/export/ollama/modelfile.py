"""Modelfile for Ollama, and the README that goes with it. Text only.

Ollama's reader of a Modelfile knows no escapes: a value ends at the end of the line on which its
quotes close. It drops characters that cannot be seen, line ends left out.
Source: parser/parser.go of github.com/ollama/ollama.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

DEFAULT_CONTEXT = 4096
"""Tokens of context where the model can hold more: what Ollama keeps grows with it."""
PASSED_ON = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
WHOLE_NUMBERS = ("top_k",)
QUOTES = '"' * 3
NAMES: Mapping[str, str] = {"repetition_penalty": "repeat_penalty"}
"""Setting of transformers -> Ollama's name."""


@dataclass(frozen=True)
class Modelfile:
    """Content of a Modelfile."""

    gguf: str
    """Name of the file beside it."""
    template: str
    stops: Sequence[str]
    """Texts at which an answer ends."""
    num_context: int
    generation: Mapping[str, object] = field(default_factory=dict)
    """Content of generation_config.json."""
    system: str = ""
    licence: str = ""

    def text(self) -> str:
        """Return the file."""
        lines = [f"FROM ./{self.gguf}", f"TEMPLATE {_quoted(self.template)}"]
        if self.system:
            lines.append(f"SYSTEM {_quoted(self.system)}")
        lines += [f"PARAMETER stop {_quoted(stop)}" for stop in self.stops]
        lines += [f"PARAMETER num_ctx {self.num_context}"]
        lines += [f"PARAMETER {name} {value}" for name, value in self._parameters().items()]
        if self.licence:
            lines.append(f"LICENSE {_quoted(self.licence)}")
        return "\n".join(lines) + "\n"

    def _parameters(self) -> Mapping[str, object]:
        # Ollama's own penalty of 1.1 would change the answers.
        found: dict[str, object] = {"repeat_penalty": 1.0}
        for name in PASSED_ON:
            value = self.generation.get(name)
            if isinstance(value, float) and name in WHOLE_NUMBERS:
                value = round(value)  # Ollama refuses the whole file for 50.0
            if isinstance(value, int | float) and not isinstance(value, bool):
                found[NAMES.get(name, name)] = value
        if self.generation.get("do_sample") is False:
            found["temperature"] = 0
        return found


def num_context(config: Mapping[str, object], max_length: int) -> int:
    """Return the tokens of context: as many as were trained, and a few thousand if it can."""
    text = config.get("text_config", config)
    most = text.get("max_position_embeddings") if isinstance(text, Mapping) else None
    wanted = max(max_length, DEFAULT_CONTEXT)
    if isinstance(most, int):
        return min(wanted, most)
    return wanted


def readme(name: str, gguf: str, verified: str) -> str:
    """Return how to use the files, for the zip."""
    return (
        f"# {name}\n\n{verified}\n\n"
        "In Ollama, in this folder:\n\n"
        f"    ollama create {name} -f Modelfile\n"
        f"    ollama run {name}\n\n"
        "In llama.cpp, with its own page at http://localhost:8080:\n\n"
        f"    llama-server -m {gguf} --jinja\n\n"
        f"In LM Studio: copy {gguf} into its folder of models.\n\n"
        "Modelfile's TEMPLATE was derived from the model's chat template and prints the same. "
        "Tools are not covered.\n"
    )


def can_hold(text: str) -> bool:
    """Return True if Ollama reads a text from a Modelfile as it stands."""
    is_seen = all(letter.isprintable() or letter in "\t\n" for letter in text)
    first, *others = _quoted(text).split("\n")[:-1] or [""]
    # Quotes that open a text do not close it too.
    closes_early = len(first.strip()) >= 2 * len(QUOTES) and first.rstrip().endswith(QUOTES)
    closes_early = closes_early or any(line.rstrip().endswith(QUOTES) for line in others)
    return is_seen and not closes_early


def _quoted(text: str) -> str:
    return f"{QUOTES}{text}{QUOTES}"
