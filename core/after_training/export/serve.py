"""Lines to copy that use an export in other programs. Text only."""

from collections.abc import Iterator
from shlex import quote

from core.after_training.export.ollama import name_in_ollama
from core.after_training.export.records import Export

PYTHON = """\
from transformers import pipeline
model = pipeline("text-generation", {path!r})
messages = [{{"role": "user", "content": "Who are you?"}}]
answer = model(messages, max_new_tokens=128)
print(answer[0]["generated_text"][-1]["content"])"""

SCORING = """\
from transformers import pipeline
model = pipeline("text-classification", {path!r}, function_to_apply="none")
messages = [
    {{"role": "user", "content": "Who are you?"}},
    {{"role": "assistant", "content": "I am a small language model."}},
]
text = model.tokenizer.apply_chat_template(messages, tokenize=False)
print(model(text)[0]["score"])"""
"""Lines that score an answer with a reward model."""


def serve_lines(export: Export) -> Iterator[tuple[str, str]]:
    """Yield (program, lines to type) for an export."""
    path = quote(str(export.folder))
    ggufs = [each.name for each in export.manifest.files if each.name.endswith(".gguf")]
    form = export.manifest.form
    if export.gives_scores:
        yield "transformers", SCORING.format(path=str(export.folder))
        return
    if form == "merged":
        yield "transformers", PYTHON.format(path=str(export.folder))
        yield "vLLM", f"vllm serve {path}"
        yield "SGLang", f"python -m sglang.launch_server --model-path {path}"
    if form == "adapter-gguf":
        yield "llama.cpp", f"llama-server -m BASE.gguf --lora {path}/{ggufs[0]} --jinja"
        return
    if form == "ollama":
        name = name_in_ollama(export.folder.parent.parent.name, export.name)
        yield "Ollama", f"cd {path} && ollama create {name} -f Modelfile\nollama run {name}"
    for gguf in ggufs:
        yield "llama.cpp", f"llama-server -m {path}/{gguf} --jinja"
        yield "LM Studio", f"lms import {path}/{gguf}"
