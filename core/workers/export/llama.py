"""Convert, quantize and ask with llama.cpp, each in a process of its own."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

from core.after_training.export.forms import Quant
from core.training.contract.failures import TrainingError
from core.workers.export.adapter_files import write_for_llama_cpp
from core.workers.export.questions import MAX_NEW_TOKENS, ExportAnswer, ExportQuestion
from core.workers.export.task import ExportTask

HERE = "core.workers.export"
ROOT = Path(__file__).resolve().parent.parent.parent.parent
SECONDS_BETWEEN_LOOKS = 0.5
LAST_LINES = 15
ANSWERS = "answers.json"
"""File in the folder of the task, with what llama.cpp has answered."""
DIRECT = ("F32", "F16", "BF16", "Q8_0")
"""Types that the converter itself writes."""
WITH_MATRIX = "importance matrix data with"
"""What llama.cpp says once it has one."""
NOT_EQUAL = "the chat template inside the file makes another text of "


def write_gguf(
    task: ExportTask, folder: Path, quant: Quant, target: Path, importance: Path | None = None
) -> None:
    """Write the model in a folder as a GGUF file. `importance` is an importance matrix, or the .npz
    file of one. Raises TrainingError, OSError, Stopped."""
    num_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if quant.name in DIRECT:
        task.enter(f"Converting to GGUF ({quant.name})")
        _convert(task, folder, quant.name.lower(), target, num_bytes * quant.bits / 16)
        return
    between = task.folder / "between.gguf"
    if not between.is_file():
        task.enter("Converting to GGUF")
        part = between.with_suffix(".part")
        _convert(task, folder, "auto", part, num_bytes)
        part.rename(between)
    if importance and importance.suffix == ".npz":
        matrix = importance.with_suffix(".gguf")
        command = _module("imatrix", task.request.tools)
        _run(task, [*command, str(importance), str(between), str(matrix)], None, 0)
        importance = matrix
    task.enter(f"Quantizing to {quant.name}")
    _quantize(task, between, target, quant, num_bytes, importance=importance)
    between.unlink()


def write_adapter_gguf(task: ExportTask, target: Path) -> None:
    """Write the run's adapter as a GGUF file."""
    task.enter("Converting the adapter to GGUF")
    request = task.request
    adapter = task.folder / "adapter"
    write_for_llama_cpp(task, adapter)
    command = [sys.executable, request.adapter_converter, "--base", request.base_folder]
    command += ["--outfile", str(target), str(adapter)]
    _run(task, command, target, 0)
    shutil.rmtree(adapter)


def answers_of_gguf(
    task: ExportTask,
    model: Path,
    questions: Sequence[ExportQuestion],
    trained: Sequence[ExportAnswer],
    adapter: str = "",
) -> tuple[tuple[ExportAnswer, ...], tuple[str, ...]]:
    """Return the answers of a GGUF file, and sentences about its chat template."""
    prompts = []
    for question, before in zip(questions, trained, strict=True):
        prompts.append(
            {
                "text": question.text,
                "adds_special_tokens": question.adds_special_tokens,
                "first_token": before.first_token,
                "messages": list(question.messages),
            }
        )
    longest = max(len(before.prompt) for before in trained)
    request = {
        "model": str(model),
        "adapter": adapter,
        "num_context": longest * 2 + MAX_NEW_TOKENS,  # its tokens may be others
        "max_new_tokens": MAX_NEW_TOKENS,
        "prompts": prompts,
    }
    found = []
    notes = []
    for question, before, each in zip(questions, trained, _answered(task, request), strict=True):
        found.append(_answer(before, each))
        if each["text"] != question.text:
            notes.append(f"{NOT_EQUAL}{question.shown[:60]!r}")
    return tuple(found), tuple(notes)


def _answered(task: ExportTask, request: Mapping[str, object]) -> Sequence[dict[str, Any]]:
    file = task.folder / ANSWERS
    file.unlink(missing_ok=True)
    command = [*_module("llama_answers", task.request.tools), str(file)]
    _run(task, command, None, 0, given=json.dumps(request))
    try:
        found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise TrainingError("llama.cpp ended without an answer.") from None
    return found


def _answer(before: ExportAnswer, found: dict[str, Any]) -> ExportAnswer:
    tokens = found["tokens"]
    if found["ended"] and len(tokens) == len(before.tokens) + 1:
        tokens = tokens[:-1]  # the end token
    return ExportAnswer(
        tuple(found["prompt"]),
        tuple(tokens),
        before.first_token,
        found["first_logprob"],
        found["ended"],
    )


def _convert(task: ExportTask, folder: Path, outtype: str, target: Path, num_bytes: float) -> None:
    name = Path(task.request.run_folder).name or folder.name
    arguments = ["--outtype", outtype, "--outfile", str(target), "--model-name", name, str(folder)]
    request = task.request
    if request.converter:
        try:
            command = [sys.executable, request.converter, *arguments]
            _run(task, command, target, num_bytes)
            return
        except TrainingError:
            if not request.tools:
                raise
            task.notes.append(f"{request.converter} failed, so the installed converter was taken")
    _run(task, [*_module("convert", request.tools), *arguments], target, num_bytes)


def _quantize(
    task: ExportTask,
    source: Path,
    target: Path,
    quant: Quant,
    num_bytes: float,
    *,
    importance: Path | None,
) -> None:
    request = task.request
    if request.quantizer:
        command = [request.quantizer, str(source), str(target), quant.name]
        if importance:
            command[1:1] = ["--imatrix", str(importance)]
    else:
        command = [*_module("quantize", request.tools), str(source), str(target)]
        command.append(str(quant.ftype))
        if importance:
            command.append(str(importance))
    output = _run(task, command, target, num_bytes * quant.bits / 16)
    if importance and WITH_MATRIX not in output:
        raise TrainingError("llama.cpp took no importance matrix.")


def _module(name: str, tools: str) -> list[str]:
    return [sys.executable, "-m", f"{HERE}.{name}", tools]


def _run(
    task: ExportTask, command: list[str], grows: Path | None, num_bytes: float, given: str = ""
) -> str:
    """Run a program to its end, and return its log.

    The progress is that of a file that grows to about `num_bytes`. Raises TrainingError with what
    the program said last, and Stopped.
    """
    lines: list[str] = []
    with _start(command) as process:
        listener = Thread(target=_listen, args=(process, lines), daemon=True)
        listener.start()
        try:
            assert process.stdin
            with process.stdin as pipe:
                pipe.write(given)
            while process.poll() is None:
                time.sleep(SECONDS_BETWEEN_LOOKS if num_bytes else 0.05)
                size = grows.stat().st_size if grows and grows.exists() else 0
                task.report(min(size / num_bytes, 0.99) if num_bytes else 0)
        except BaseException:
            process.kill()
            raise
        finally:
            listener.join()
    said = [line.rstrip() for line in lines if line.strip()]
    if process.returncode:
        print("\n".join(said[-LAST_LINES:]), flush=True)
        errors = [line for line in said if "Error" in line or "error" in line]
        reason = (errors or said or [f"it ended with {process.returncode}"])[-1][:300]
        raise TrainingError(f"llama.cpp could not do it: {reason}.")
    return "\n".join(said)


def _start(command: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def _listen(process: "subprocess.Popen[str]", lines: list[str]) -> None:
    assert process.stdout
    lines.extend(process.stdout)
