"""Model card of a result: what it is, what it was trained on, and how to use it. Text only."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PureWindowsPath

from core.after_training.export.licences import licence_lines, licence_text
from core.after_training.export.loss_plot import LOSS_PLOT, loss_caption
from core.after_training.export.origin import base_name, origin_folder, origin_name
from core.after_training.export.records import data_files, exports_folder, list_exports
from core.after_training.export.serve import SCORING
from core.job import JobSpec
from core.models import HUB_ID
from core.resolve import default_fields
from core.runs import Run
from core.runs.checks import sentences
from core.runs.results import checking
from core.training.contract.files import write_text
from core.training.contract.stages import STAGES
from core.wording import as_markdown

CARD = "README.md"
"""Card of a run in its folder of exports: a user may edit it before it is sent."""
PLACES = ("model", "adapter", "dataset", "eval_dataset", "reward_model")
"""Job fields that may name files of this machine."""
LEFT_OUT = frozenset({*PLACES, "dataset_sha256", "gpu", "device", "profile", "revision"})
LISTS_OF_PLACES = ("mix", "check_suites")
"""Job fields that may name several files of this machine; the card says their names alone."""
LIBRARIES = {"adapter": "peft", "gguf": "gguf"}
"""What is sent -> library that reads it, as the Hub calls it; others are for transformers."""
GIB = 2**30


def card_of(run: Run, repo_id: str, sent: str, *, with_data: bool = False) -> str:
    """Return the card of a run: the edited one if there is one, else a new one.

    Either says whether the rows are there.
    """
    is_new, not_new = _rows_sentence(run, with_data), _rows_sentence(run, not with_data)
    with suppress(OSError):
        edited = (exports_folder(run) / CARD).read_text(encoding="utf-8")
        return edited.replace(not_new, is_new)
    return new_card(run, repo_id, sent, with_data=with_data)


def keep_card(run: Run, text: str) -> Path:
    """Keep an edited card, which the next upload sends. Raises OSError."""
    exports_folder(run).mkdir(exist_ok=True)
    path = exports_folder(run) / CARD
    write_text(path, text)
    return path


def new_card(run: Run, repo_id: str, sent: str, *, with_data: bool = False) -> str:
    """Return a card with everything that the run knows, and no path of this machine."""
    name = repo_id.rpartition("/")[2] or run.id
    parts = [_front_matter(run, sent), f"# {name}\n", _summary(run, sent)]
    parts += [
        _data(run, with_data),
        _settings(run),
        _losses(run),
        _memory(run),
        _checks(run, sent),
        _usage(run, repo_id, sent),
        _licence(run),
    ]
    return "\n".join(filter(None, parts))


def _front_matter(run: Run, sent: str) -> str:
    origin = origin_name(run)
    base = base_name(run) if sent == "adapter" else origin
    lines = [f"library_name: {LIBRARIES.get(sent, 'transformers')}"]
    if HUB_ID.fullmatch(base):
        relation = "adapter" if sent == "adapter" else "finetune"
        lines.insert(0, f"base_model: {json.dumps(base)}")
        lines.insert(1, f"base_model_relation: {relation}")
    lines += licence_lines(origin, origin_folder(run))
    tags = [run.job.stage, run.job.method]
    if sent == "gguf":
        tags.append(sent)
    task = "text-classification" if _gives_scores(run) else "text-generation"
    lines += [f"pipeline_tag: {task}", f"tags: {json.dumps(tags)}"]
    return "---\n" + "\n".join(lines) + "\n---\n"


def _gives_scores(run: Run) -> bool:
    return STAGES[run.job.stage].head == "score"


def _summary(run: Run, sent: str) -> str:
    kind = {"adapter": "LoRA adapter over", "gguf": "GGUF file of"}.get(sent, "Fine-tuned")
    base, origin = as_markdown(base_name(run)), as_markdown(origin_name(run))
    over = base if base == origin else f"{base}, which was made from {origin}"
    return (
        f"{kind} {over}, trained with {run.job.stage} and the method {run.job.method}: "
        f"{run.result_step or run.step:,} steps.\n"
    )


def _data(run: Run, with_data: bool) -> str:
    rows = run.status.num_train_rows
    said = f"{rows:,} rows" if rows else "Rows"
    digest = run.job.dataset_sha256
    with suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
        manifest = json.loads((run.folder / "data" / "manifest.json").read_text("utf-8"))
        digest = str(manifest["train.jsonl"]["sha256"])
    proof = f", SHA-256 `{digest}`" if digest else ""
    return f"## Data\n\n{said}{proof}. {_rows_sentence(run, with_data)}\n"


def _rows_sentence(run: Run, with_data: bool) -> str:
    """Return whether the rows are sent beside the model, and where they are."""
    if not with_data:
        return "The rows are not part of this repository."
    names = [f"`data/{path.name}`" for path in data_files(run.folder)]
    return f"The rows are in {' and '.join(names)}."


def _settings(run: Run) -> str:
    usual = default_fields(run.job.model, run.job.method, run.job.stage)
    rows = [f"| {name} | {_cell(name, value)} |" for name, value in _differing(run.job, usual)]
    if not rows:
        return ""
    return "## Settings\n\n| setting | value |\n|---|---|\n" + "\n".join(rows) + "\n"


def _differing(job: JobSpec, usual: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for name, field in JobSpec.model_fields.items():
        value = getattr(job, name)
        if name not in LEFT_OUT and value != usual.get(name, field.default):
            yield name, value


def _cell(name: str, value: object) -> str:
    """Return the value of a setting as a cell of a table, without a path of this machine."""
    text = str(value)
    if name in LISTS_OF_PLACES:
        # A Windows path has both kinds of separators.
        text = ", ".join(PureWindowsPath(each.strip()).name for each in re.split(r"[,\n]", text))
    return as_markdown(text)


def _losses(run: Run) -> str:
    caption = loss_caption(run)
    if not caption:
        return ""
    return f"## Loss\n\n![{caption}]({LOSS_PLOT})\n\n{caption}\n"


def _memory(run: Run) -> str:
    if not run.peak_bytes:
        return ""
    said = f"Peak {run.peak_bytes / GIB:.2f} GiB ({run.peak_kind})"
    if run.status.device:
        said += f" on {as_markdown(run.status.device)}"
    predicted = run.prediction().peak_allocated_bytes
    if predicted and run.peak_kind == "allocated":
        said += f", predicted {predicted / GIB:.2f} GiB"
    return f"## Memory\n\n{said}.\n"


def _checks(run: Run, sent: str) -> str:
    """Return what the checks of the result say, and what they do not."""
    counts = run.checks_of_result
    if not counts:
        return ""
    parts = ["## Checks\n", sentences.check_table(counts) + "\n", sentences.NOT_SAID]
    perplexity = checking.perplexity_of(run)
    if perplexity and counts == run.checks:
        parts.insert(2, " ".join(sentences.perplexity_sentences(perplexity)) + "\n")
    if sent == "gguf":
        parts.append("Measured before the conversion to GGUF.\n")
    parts += _checks_of_exports(run, sent)
    return "\n".join(parts)


def _checks_of_exports(run: Run, sent: str) -> Iterator[str]:
    """Yield what exports of the kind that is sent have passed, beside the result as trained."""
    step = run.result_step or run.step
    for export in list_exports(run):
        is_gguf = export.gguf is not None
        if sent == "adapter" or is_gguf != (sent == "gguf"):
            continue
        said = []
        for each in export.checks:
            if each.step == step:
                numbers = f"{each.before} of {each.total} as trained, {each.after} as exported"
                said.append(f"{as_markdown(each.name)} {numbers}")
        if said:
            base = "16-bit base" if export.manifest.base == "original" else "base as it trained"
            kind = export.manifest.quant or "merged"
            yield f"{kind}, over the {base}: {'; '.join(said)}.\n"


def _usage(run: Run, repo_id: str, sent: str) -> str:
    if sent == "gguf":
        return f"## How to use it\n\n    llama-server -hf {repo_id} --jinja\n"
    if _gives_scores(run):
        return (
            "## How to use it\n\n"
            "It gives a text a score: of two answers, the better one should get the higher.\n\n"
            f"```python\n{SCORING.format(path=repo_id)}\n```\n"
        )
    return (
        "## How to use it\n\n"
        "```python\n"
        "from transformers import pipeline\n"
        f'model = pipeline("text-generation", "{repo_id}")\n'
        'messages = [{"role": "user", "content": "Who are you?"}]\n'
        'print(model(messages, max_new_tokens=128)[0]["generated_text"][-1]["content"])\n'
        "```\n"
    )


def _licence(run: Run) -> str:
    return f"## Licence\n\n{licence_text(origin_name(run), origin_folder(run))}\n"
