"""Plan of an export: where its base is, how large it gets, and why it cannot be made."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from core.after_training.export.base import find_base
from core.after_training.export.forms import (
    BLOCK,
    DEFAULT_QUANT,
    FORMS,
    FROM_ROWS,
    QUANTS,
    WITHOUT_MATRIX,
    BaseChoice,
    FormName,
)
from core.after_training.export.origin import origin_folder
from core.after_training.export.records import ExportRequest, data_files, exports_folder
from core.after_training.export.tools import NAME_YOUR_OWN, TO_INSTALL, Tools, find_tools
from core.job import Problem, SpecError
from core.models import HUB_ID
from core.runs import Run
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES
from core.training.contract.weights.adapters import EXPERTS, WRAPPED, read_adapter
from core.training.contract.weights.files import (
    StoredTensor,
    UnusableWeights,
    stored_tensors,
)
from core.wording import file_size

OTHER_FILES_BYTES = 64 * 2**20
"""Room for the tokenizer and everything else beside the weights."""
GGUF_MAGIC = b"GGUF"
"""First bytes of a GGUF file."""
OF_ONE_EXPERT = re.compile(rf"\.{EXPERTS}\.\d+\.")
SENT = ("", "adapter", "merged", "gguf")
PARAMETERS_PER_SECOND = 56e6
"""Merged on one core, measured. Slower disks count too, so this is the best case."""
PARAMETERS_PER_SECOND_4BIT = 14e6
PARAMETERS_PER_SECOND_QUANTIZED = 13e6


@dataclass(frozen=True)
class Upload:
    """Place on the Hub, and what goes there."""

    repo_id: str
    sent: str = ""
    """adapter, merged or gguf; "" sends what the run has trained."""
    is_private: bool = True
    with_data: bool = False
    """True sends the rows too, for everybody to read who sees the repository."""


@dataclass(frozen=True)
class ExportPlan:
    """Export that can be made."""

    request: ExportRequest
    num_bytes: int
    """Size of the result."""
    temporary_bytes: int
    """Further room that it needs while it is made."""
    seconds: float
    """Rough time without the verification."""
    notes: tuple[str, ...] = ()


def plan_export(
    run: Run,
    form: str,
    *,
    quant: str = "",
    base: str = "",
    llama_cpp: str = "",
    imatrix: str = "",
    upload: Upload | None = None,
) -> ExportPlan:
    """Return how to export a run's result. Raises SpecError with everything that is in the way."""
    tools = find_tools(run.home, llama_cpp)
    problems = [*_problems(run, form, quant, base), *_tool_problems(form, quant, tools)]
    problems += _upload_problems(run, form, upload, quant, tools)
    problems += _matrix_problems(run, form, quant, imatrix, tools)
    if problems:
        raise SpecError(*problems)
    known = FORMS[form]
    chosen: BaseChoice = "original" if base == "original" else "trained"
    if METHODS[run.job.method].base_bits == 16:
        chosen = "trained"
    sends_gguf = upload is not None and upload.sent == "gguf"
    sends_adapter = form == "hub" and _sent(run, upload) == "adapter"
    is_merged = form != "adapter-gguf" and not sends_adapter
    wanted = (quant or DEFAULT_QUANT) if known.has_quant or sends_gguf else ""
    request = _with_tools(
        ExportRequest(
            form=known.name,
            name=_name(known.name, wanted, chosen, bool(imatrix)),
            base=chosen,
            run_folder=str(run.folder),
            base_folder=str(find_base(run, is_merged)) if run.job.trains_adapter else "",
            origin_folder=str(origin_folder(run) or ""),
            quant=wanted,
            imatrix=_absolute(imatrix),
            sent=_sent(run, upload),
        ),
        tools,
    )
    return _with_room(run, _with_rows(run, _sized(run, _with_upload(request, upload))))


def _with_upload(request: ExportRequest, upload: Upload | None) -> ExportRequest:
    if upload is None:
        return request
    return replace(
        request,
        repo_id=upload.repo_id,
        is_private=upload.is_private,
        with_data=upload.with_data,
    )


def _with_rows(run: Run, plan: ExportPlan) -> ExportPlan:
    """Return the plan with the size of the rows, if they are sent, and what that means."""
    if not plan.request.with_data:
        return plan
    num_bytes = sum(path.stat().st_size for path in data_files(run.folder))
    readers = "you and those you share the repository with"
    if not plan.request.is_private:
        readers = "everybody"
    note = f"The rows of the training are sent too: {readers} can read them."
    return replace(plan, num_bytes=plan.num_bytes + num_bytes, notes=(*plan.notes, note))


def _with_tools(request: ExportRequest, tools: Tools) -> ExportRequest:
    return replace(
        request,
        tools=str(tools.folder or ""),
        converter=str(tools.converter or ""),
        adapter_converter=str(tools.adapter_converter or ""),
        quantizer=str(tools.quantizer or ""),
    )


def _absolute(imatrix: str) -> str:
    """Return an importance matrix as the worker finds it, which runs in another folder."""
    if imatrix in ("", FROM_ROWS):
        return imatrix
    return str(Path(imatrix).absolute())


def fallback_share(tensors: dict[str, StoredTensor], quant: str) -> tuple[int, int]:
    """Return (matrices whose rows a K-quant cannot divide, all matrices)."""
    if not quant.endswith(("_K", "_K_M", "_K_S")):
        return 0, 0
    rows = [each.shape[1] for each in tensors.values() if len(each.shape) == 2]
    return sum(length % BLOCK != 0 for length in rows), len(rows)


def _problems(run: Run, form: str, quant: str, base: str) -> Iterator[Problem]:
    if form not in FORMS:
        yield Problem("--to", f"{form!r} is no form of export", f"choose {', '.join(FORMS)}")
        return
    if run.is_active:
        yield Problem("run", f"{run.id} is still {run.state}", "export it when it has finished")
    elif not (run.folder / "output").is_dir():
        fix = "train it to its end first"
        yield Problem("run", f"{run.id} has no result: it is {run.state}", fix)
    if STAGES[run.job.stage].head == "score":
        yield from _score_problems(run, form)
    if quant and not FORMS[form].has_quant and form != "hub":
        yield Problem("--quant", f"{form} has none", "leave it out")
    elif quant and quant not in QUANTS:
        yield Problem("--quant", f"{quant!r} is not known", f"choose {', '.join(QUANTS)}")
    if base not in ("", "trained", "original"):
        yield Problem("--base", f"{base!r} is neither", "choose trained or original")
    elif base == "original" and run.job.init_lora_weights == "loftq":
        problem = "the adapter was started by LoftQ, which fits the quantized base only"
        yield Problem("--base", problem, "choose trained")
    if form == "adapter-gguf":
        yield from _adapter_problems(run)


def _score_problems(run: Run, form: str, sent: str = "") -> Iterator[Problem]:
    """Yield why a reward model cannot be a file of llama.cpp."""
    if FORMS[form].needs_tools or sent == "gguf":
        problem = f"{run.id} is a reward model: it scores texts, and a GGUF file is to answer"
        fix = "add --send merged or adapter" if sent else "choose merged or hub"
        yield Problem("--send" if sent else "--to", problem, fix)


def _adapter_problems(run: Run) -> Iterator[Problem]:
    if not run.job.trains_adapter:
        yield Problem("--to", "the run trained no adapter", "choose gguf")
    elif run.job.use_dora or run.job.modules_to_save:
        kind = "DoRA" if run.job.use_dora else "layers that were trained whole"
        yield Problem("--to", f"llama.cpp reads no adapter with {kind}", "choose gguf")
    elif _has_unread_experts(run):
        problem = "llama.cpp's converter reads an adapter on experts only if it changes all "
        problem += "matrices of each expert, over a base with tensors of their own for them"
        yield Problem("--to", problem, "choose gguf, which merges it first")


def _has_unread_experts(run: Run) -> bool:
    """Return True for an adapter on experts that llama.cpp's converter cannot read: it waits for
    all matrices of each expert, and takes none in one tensor (conversion/llama.py, gpt_oss.py)."""
    with suppress(UnusableWeights, SpecError):  # what is wrong then is said elsewhere
        places = read_adapter(run.folder / "output").parameters
        experts = {place for place in places if place.rpartition(".")[2] == EXPERTS}
        is_partial = any(f"{place}{WRAPPED}" not in places for place in experts)
        if is_partial or not experts:
            return is_partial
        names = stored_tensors(find_base(run, is_merged=False))
        return not any(map(OF_ONE_EXPERT.search, names))
    return False


def _tool_problems(form: str, quant: str, tools: Tools) -> Iterator[Problem]:
    if form not in FORMS or not FORMS[form].needs_tools:
        return
    missing = []
    if form == "adapter-gguf":
        if not tools.can_convert_adapters:
            problem = "this needs a converter of adapters to GGUF, which is not installed"
            yield Problem("--to", problem, f"{TO_INSTALL}, or {NAME_YOUR_OWN}")
        return
    if not tools.can_convert:
        missing.append("a converter to GGUF")
    elif not tools.can_quantize and (quant or DEFAULT_QUANT) not in ("F16", "BF16", "Q8_0"):
        missing.append("a program that quantizes GGUF files")
    if missing:
        fix = f"{TO_INSTALL}, or {NAME_YOUR_OWN}"
        yield Problem("--to", f"this needs {missing[0]}, which is not installed", fix)


def _matrix_problems(
    run: Run, form: str, quant: str, imatrix: str, tools: Tools
) -> Iterator[Problem]:
    if not imatrix or form not in FORMS:
        return
    numbers = quant or DEFAULT_QUANT
    if not FORMS[form].has_quant:
        yield Problem("--imatrix", f"has no use with --to {form}", "leave it out")
    elif numbers in WITHOUT_MATRIX:
        yield Problem("--imatrix", f"has no use with {numbers}", "leave it out")
    elif imatrix == FROM_ROWS and STAGES[run.job.stage].generates:
        problem = f"the rows of {run.job.stage} hold no answers to measure on"
        yield Problem("--imatrix", problem, "give a file that llama-imatrix has written")
    elif imatrix == FROM_ROWS and tools.folder is None:
        fix = "run `make export`, or give a file that llama-imatrix has written"
        yield Problem("--imatrix", "rows needs the packages of `make export`", fix)
    elif imatrix != FROM_ROWS and not Path(imatrix).is_file():
        fix = f"give the file of llama-imatrix, or {FROM_ROWS} to measure rows of the training"
        yield Problem("--imatrix", f"{imatrix[:200]} is no file", fix)
    elif imatrix != FROM_ROWS and tools.quantizer is None and not _is_gguf(Path(imatrix)):
        problem = f"{imatrix[:200]} is no GGUF file, as llama-imatrix writes it now"
        yield Problem("--imatrix", problem, "make it again with llama-imatrix, or choose rows")


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC
    except OSError:
        return False


def _upload_problems(
    run: Run, form: str, upload: Upload | None, quant: str, tools: Tools
) -> Iterator[Problem]:
    if form != "hub":
        return
    if upload is None or not HUB_ID.fullmatch(upload.repo_id):
        named = upload.repo_id if upload else ""
        problem = f"{named!r} is no repository" if named else "is missing"
        yield Problem("--repo", problem, "give owner/name, such as me/my-model")
    elif upload.sent not in SENT:
        yield Problem("--send", f"{upload.sent!r} is not known", "choose adapter, merged or gguf")
    elif upload.sent == "adapter" and not run.job.trains_adapter:
        yield Problem("--send", "the run trained no adapter", "choose merged")
    elif upload.sent == "gguf" and STAGES[run.job.stage].head == "score":
        yield from _score_problems(run, form, upload.sent)
    elif upload.sent == "gguf":
        yield from _tool_problems("gguf", quant, tools)
    elif quant:
        yield Problem("--quant", "is for GGUF files, and none is sent", "add --send gguf")
    if upload and upload.with_data and not data_files(run.folder):
        problem = "the rows of the run are not there any more"
        yield Problem("--with-data", problem, "leave it out")


def _sent(run: Run, upload: Upload | None) -> Literal["adapter", "merged", "gguf"]:
    if upload and upload.sent == "gguf":
        return "gguf"
    is_adapter = run.job.trains_adapter and (upload is None or upload.sent != "merged")
    if is_adapter:
        return "adapter"
    return "merged"


def _name(form: FormName, quant: str, base: BaseChoice, has_matrix: bool) -> str:
    over = "original-base" if base == "original" else ""
    parts = [form, quant, "imatrix" if has_matrix else "", over]
    return "-".join(filter(None, parts))


def _sized(run: Run, request: ExportRequest) -> ExportPlan:
    folder = Path(request.base_folder) if request.base_folder else run.folder / "output"
    try:
        tensors = dict(stored_tensors(folder))
    except UnusableWeights as error:
        raise SpecError(Problem("base", error.problem, error.fix)) from None
    num_bytes = sum(each.num_bytes for each in tensors.values())
    numel = sum(_numel(each) for each in tensors.values())
    is_rounded = METHODS[run.job.method].base_bits == 4 and request.base == "trained"
    merging = numel / (PARAMETERS_PER_SECOND_4BIT if is_rounded else PARAMETERS_PER_SECOND)
    if request.form == "merged" or (request.form == "hub" and request.sent == "merged"):
        return ExportPlan(request, num_bytes, 0, merging)
    if request.form == "adapter-gguf" or (request.sent == "adapter" and request.form == "hub"):
        size = sum(path.stat().st_size for path in (run.folder / "output").glob("adapter_model*"))
        return ExportPlan(request, size * 2, 0, 10.0)
    size = int(numel * QUANTS[request.quant].bits / 8)
    notes = []
    short, every = fallback_share(tensors, request.quant)
    if short:
        notes.append(
            f"{short} of {every} matrices have rows that {BLOCK} does not divide: llama.cpp stores "
            "them in larger types"
        )
    copies = 2 if request.form == "ollama" else 1
    is_direct = QUANTS[request.quant].is_16_bit
    temporary = num_bytes + (0 if is_direct else 2 * numel)
    seconds = merging * 2 + (0 if is_direct else numel / PARAMETERS_PER_SECOND_QUANTIZED)
    return ExportPlan(request, size * copies, temporary, seconds, tuple(notes))


def _numel(tensor: StoredTensor) -> int:
    numel = 1
    for size in tensor.shape:
        numel *= size
    return numel


def _with_room(run: Run, plan: ExportPlan) -> ExportPlan:
    """Return the plan. Raise SpecError if the disk is too full, or may not be written to."""
    place = exports_folder(run)
    parent = place if place.exists() else run.folder
    if not os.access(parent, os.W_OK):
        problem = f"{parent} cannot be written to"
        raise SpecError(Problem("exports", problem, "change its permissions, or move the home"))
    free = shutil.disk_usage(run.folder).free
    needed = plan.num_bytes + plan.temporary_bytes + OTHER_FILES_BYTES
    if needed > free:
        problem = f"the export needs {file_size(needed)}, and {file_size(free)} are free"
        raise SpecError(Problem("disk", problem, "free some space, or choose a smaller form"))
    return plan
