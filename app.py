"""Tailor's front door: read the command line and call one function. Holds no logic.

python app.py [serve] | train | estimate | check | preview | models | compare | runs | chat
             | export | doctor
(--help explains each)
"""

from ui.terminal import interrupts

if __name__ == "__main__":
    interrupts.end_at_ctrl_c()  # before the imports that take time

import argparse
import re
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Any, NoReturn

from core.job import JobSpec
from ui.terminal.usage import (
    PLACEMENT_FLAGS,
    RUN_ACTIONS,
    flag_of,
    help_on_actions,
    help_on_exports,
    unknown_argument,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code: 0 done, 1 failed, 2 bad input, 130 stopped."""
    if isinstance(sys.stdout, TextIOWrapper):
        # an output that lacks a character, such as a file on Windows, gets a ? instead
        sys.stdout.reconfigure(errors="replace")
    known, unknown = parser().parse_known_args(arguments)
    flags = vars(known)
    command = flags.pop("command", None) or "serve"
    if unknown:
        OneLineParser(prog=f"python app.py {command}").error(unknown_argument(unknown[0]))
    try:
        if command == "serve":
            return _serve(**flags)
        from ui.terminal import commands

        interrupts.interrupt_at_ctrl_c()
        return commands.run(command, **flags)
    except KeyboardInterrupt:  # a second Ctrl-C, or one with nothing to stop
        return interrupts.STOPPED


def _serve(**flags: Any) -> int:
    from ui.proxies import keep_own_addresses_direct
    from ui.quick_import import import_gradio  # only this command needs it

    if problem := keep_own_addresses_direct([flags.get("host", "127.0.0.1")]):
        print(problem, file=sys.stderr)
    import_gradio()
    from ui.server import serve

    return serve(**flags)


INVALID_CHOICE = re.compile(r"argument (\w+): invalid choice: (.+) \(choose from (.+)\)")
"""Message of argparse."""


class OneLineParser(argparse.ArgumentParser):
    """Parser that reports errors in one line and leaves out flags that are not given."""

    def __init__(self, **settings: Any):
        super().__init__(
            argument_default=argparse.SUPPRESS,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **settings,
        )

    def error(self, message: str) -> NoReturn:
        if match := INVALID_CHOICE.fullmatch(message):
            argument, value, choices = match.groups()
            message = f"unknown {argument.lower()} {value}; choose {choices.replace(chr(39), '')}"
        self.exit(2, f"{message}; see `{self.prog} --help`\n")


def parser() -> OneLineParser:
    """Return the parser of the whole command line. Each command has its own defaults."""
    top = OneLineParser(
        prog="python app.py", description="Fit a language model to your data and to your GPU."
    )
    _add_serve_flags(top)
    commands = top.add_subparsers(dest="command", metavar="command", parser_class=OneLineParser)

    def add(name: str, text: str, epilog: str = "") -> argparse.ArgumentParser:
        description = f"{text[0].upper()}{text[1:]}."
        return commands.add_parser(name, help=text, description=description, epilog=epilog)

    _add_serve_flags(add("serve", "open the page (the default)"))
    _add_train(add("train", "train a job; Ctrl-C stops with a checkpoint"))
    _add_estimate(add("estimate", "predict memory, speed and cost of a job"))
    _add_check(add("check", "check a dataset, line by line"))
    _add_preview(add("preview", "show rows as the model will see them"))
    _add_models(add("models", "list the base models that a card can train"))
    _add_compare(add("compare", "train one job in several ways and report how they differ"))
    _add_runs(add("runs", "list, stop, resume, compare or delete runs", help_on_actions()))
    _add_export(add("export", "take a run's result to other programs", help_on_exports()))
    _add_chat(add("chat", "talk to a run or a model; each line of a pipe is a message"))
    _add_check_model(add("check-model", "check what a run has learnt and lost"))
    _add_json_and_home(add("doctor", "show what this machine has and lacks"))
    return top


def _add_serve_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--host", help="address to listen on (default 127.0.0.1); any other needs the token"
    )
    command.add_argument("--port", type=int, help="port (default: the first free one from 7860)")
    command.add_argument(
        "--share", action="store_true", help="also create a public Gradio link, with the token"
    )
    command.add_argument(
        "--public-url",
        action="append",
        metavar="URL",
        help="address at which a proxy serves the page, such as https://host/path; with the token "
        "(may be given several times)",
    )
    command.add_argument("--token", action="store_true", help="ask for the token here too")
    command.add_argument(
        "--data",
        action="append",
        metavar="FOLDER",
        help="folder whose files those may use as data and models who came in by the token, beside "
        "uploads and the home (may be given several times)",
    )
    command.add_argument("--no-browser", action="store_true", help="do not open a browser")
    _add_home(command)


def _add_train(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--demo", action="store_true", help="train the demo: tiny model and data, no GPU needed"
    )
    _add_reading(command)
    _add_placement(command)
    _add_detach(command)
    _add_home(command)
    _add_job_fields(command)


def _add_placement(command: argparse.ArgumentParser) -> None:
    """Add the flags that say on which machines a run trains."""
    for name, (metavar, text) in PLACEMENT_FLAGS.items():
        command.add_argument(flag_of(name), dest=f"place_{name}", metavar=metavar, help=text)


def _add_detach(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--detach", action="store_true", help="send it to the cluster, and do not follow it"
    )


def _add_estimate(command: argparse.ArgumentParser) -> None:
    exact = "trace one training step too, and compare: seconds"
    command.add_argument("--exact", action="store_true", help=exact)
    measure = "count the rows of the dataset as long as they are, not as max_length"
    command.add_argument("--measure", action="store_true", help=measure)
    _add_json_and_home(command)
    _add_job_fields(command)


def _add_check(command: argparse.ArgumentParser) -> None:
    _add_file(command)
    command.add_argument(
        "--eval", dest="eval_file", metavar="FILE2", help="evaluation rows: warn of those in FILE"
    )
    command.add_argument("--model", help="say what its training would say of the rows")
    command.add_argument("--adapter", help="with --model: the adapter that it would continue from")
    command.add_argument(
        "--accept-unread", action="store_true", help="with --model: accept what is not read"
    )
    keep = "write FILE without the rows whose label is false to NEW"
    command.add_argument("--keep-wanted", metavar="NEW", help=keep)
    command.add_argument("--drop-bad", metavar="NEW", help="write FILE without its bad rows to NEW")
    command.add_argument(
        "--repair", metavar="NEW", help="write FILE to NEW with everything repaired that can be"
    )
    _add_json_and_home(command)


def _add_check_model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "run",
        metavar="RUN[@STEP|@EXPORT]",
        help="a run: its ID, the beginning of it, its folder, or latest; @STEP is a checkpoint, "
        "@EXPORT an exported model such as @gguf-Q4_K_M",
    )
    command.add_argument(
        "--suite",
        nargs="+",
        action="extend",
        metavar="NAME|FILE",
        help="suites by name, or .jsonl and .toml files (default identity and capabilities)",
    )
    command.add_argument(
        "--at-least",
        metavar="SUITE=N,...",
        help="fail unless so many tests pass, such as identity=95,capabilities=34",
    )
    command.add_argument(
        "--lm-eval",
        metavar="TASK,...",
        help="ask tasks of lm-evaluation-harness, if it is installed, or suites as its tasks",
    )
    command.add_argument(
        "--write-tasks", metavar="DIR", help="write the suites as tasks of lm-evaluation-harness"
    )
    _add_json_and_home(command)


def _add_preview(command: argparse.ArgumentParser) -> None:
    _add_file(command)
    command.add_argument("--line", metavar="N", help="line of the first row (default 1)")
    command.add_argument("--rows", metavar="N", help="number of rows (default 3)")
    command.add_argument("--model", help="model that sees them (default demo)")
    _add_json_and_home(command)


def _add_file(command: argparse.ArgumentParser) -> None:
    """Add a data file and the flags that say how its rows are read."""
    command.add_argument(
        "file",
        metavar="FILE",
        help="JSON lines or an array, a table, a text, a Hub dataset or demo",
    )
    command.add_argument("--stage", help="stage that it is for (default sft)")
    command.add_argument("--max-length", help="longest row in tokens (default 2048)")
    _add_reading(command)


def _add_reading(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--columns",
        "--map",
        metavar="OURS=THEIRS,...",
        help="its columns by our names: question=Frage,answer=Antwort, or a JSON object",
    )
    command.add_argument(
        "--split-text",
        metavar="WAY",
        help="how a plain text becomes rows: paragraphs, lines or whole (default: by its lines)",
    )


def _add_runs(command: argparse.ArgumentParser) -> None:
    command.add_argument("action", nargs="?", default="list", choices=RUN_ACTIONS, metavar="ACTION")
    command.add_argument("id", nargs="?", metavar="ID", help="a run, as `runs list` names it")
    command.add_argument("more", nargs="*", metavar="WORD", help="further words of the action")
    command.add_argument("--epochs", metavar="N", help="with continue: further epochs (default 1)")
    command.add_argument("--num-devices", metavar="N", help="with resume: GPUs of each machine")
    _add_placement(command)
    _add_detach(command)
    _add_json_and_home(command)


def _add_models(command: argparse.ArgumentParser) -> None:
    command.add_argument("--gpu", help="card: `local` or a GPU preset (default local)")
    command.add_argument("--stage", help="training objective (default sft)")
    command.add_argument("--max-length", metavar="N", help="longest row in tokens (default 2048)")
    command.add_argument("--dataset", metavar="FILE", help="your data: also say how long it takes")
    command.add_argument(
        "--sort",
        metavar="ORDER",
        help="largest, fastest or context, the longest rows that fit (default largest)",
    )
    _add_json_and_home(command)


def _add_export(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", nargs="?", metavar="RUN", help="a run, as `runs list` names it")
    command.add_argument("--to", metavar="FORM", help="form of the export (default: list them)")
    command.add_argument("--quant", metavar="TYPE", help="type of the numbers in a GGUF file")
    command.add_argument(
        "--base",
        metavar="BASE",
        help="after qlora: trained (the base as the training saw it, the default), original, or "
        "both, which measures each with the suites of the run",
    )
    command.add_argument(
        "--checks", action="store_true", help="let it answer the suites that the run answers"
    )
    command.add_argument("--repo", metavar="OWNER/NAME", help="repository on the Hub, for hub")
    command.add_argument(
        "--send", metavar="WHAT", help="what goes to the Hub: adapter, merged or gguf"
    )
    command.add_argument(
        "--public", action="store_true", help="create the repository for everybody to see"
    )
    command.add_argument(
        "--with-data",
        action="store_true",
        help="send the rows of the training too: who sees the repository can read them",
    )
    command.add_argument("--llama-cpp", metavar="DIR", help="folder of your own llama.cpp")
    command.add_argument(
        "--imatrix",
        metavar="FILE|rows",
        help="importance matrix for the quantization: a file of llama-imatrix, or rows to measure "
        "it on rows of the training",
    )
    command.add_argument(
        "--create", action="store_true", help="let this machine's Ollama take it, after --to ollama"
    )
    command.add_argument(
        "--install", action="store_true", help="install the converters to GGUF first (88 MB)"
    )
    _add_json_and_home(command)


def _add_chat(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "target",
        nargs="?",
        metavar="RUN|MODEL",
        help="a run, RUN@STEP, RUN@base, or a model (default: the newest run with a result)",
    )
    command.add_argument("--base", action="store_true", help="begin with the model before training")
    command.add_argument("--system", metavar="TEXT", help="system prompt")
    command.add_argument("--temperature", metavar="T", help="0 is the most probable (default 0.7)")
    command.add_argument("--top-p", metavar="P", help="share of probable tokens (default 0.95)")
    command.add_argument("--max-tokens", metavar="N", help="longest answer (default 512)")
    command.add_argument("--seed", metavar="N", help="seed of the answers (default 0)")
    command.add_argument("--device", metavar="N", help="GPU, as in a job (default 0)")
    _add_home(command)


def _add_compare(command: argparse.ArgumentParser) -> None:
    command.add_argument("--demo", action="store_true", help="compare on the demo: no GPU needed")
    command.add_argument("--methods", metavar="A,B", help="methods (default full,lora,qlora)")
    command.add_argument("--seeds", metavar="N", help="runs of each, for error bars (default 1)")
    command.add_argument(
        "--axis",
        "--vary",
        action="append",
        metavar="FIELD=A,B",
        help="settings to try, such as learning_rate=1e-4,2e-4, or with --optimize a range: "
        "learning_rate=1e-5..1e-3 (may be given several times)",
    )
    command.add_argument(
        "--optimize",
        metavar="N",
        help="let Optuna choose the settings of N runs (optional package)",
    )
    command.add_argument("--at-once", metavar="N", help="runs a cluster has at once (default 4)")
    command.add_argument("--max-runs", metavar="N", help="leave out what is beyond N runs")
    command.add_argument(
        "--max-hours", metavar="H", help="the same for the time: forecast, or measured"
    )
    command.add_argument("--max-usd", metavar="USD", help="the same for the price")
    command.add_argument("--estimate-only", action="store_true", help="estimate, train nothing")
    command.add_argument(
        "--no-checks", action="store_true", help="do not check the runs before and after training"
    )
    _add_placement(command)
    command.add_argument("--resume", metavar="ID", help="continue a comparison that was cut off")
    command.add_argument("--stop", metavar="ID", help="stop every run of a comparison")
    command.add_argument("--list", action="store_true", help="list the comparisons")
    _add_reading(command)
    _add_json_and_home(command)
    _add_job_fields(command)


def _add_json_and_home(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print one JSON value")
    _add_home(command)


def _add_home(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--home", help="folder of runs and uploads (default TAILOR_HOME or ~/.tailor)"
    )


def _add_job_fields(command: argparse.ArgumentParser) -> None:
    """Add a job file and one flag for each field. Values stay text, which JobSpec checks."""
    command.add_argument(
        "job", nargs="?", metavar="JOB.json", help="a job file, whose fields the flags override"
    )
    group = command.add_argument_group("job fields")
    for name, field in JobSpec.model_fields.items():
        bare: dict[str, Any] = {}
        if field.annotation is bool:
            bare = {"nargs": "?", "const": "true"}
        help_text = f"{field.description} (default {field.default})".replace("%", "%%")
        group.add_argument(
            flag_of(name), dest=f"field_{name}", metavar="VALUE", help=help_text, **bare
        )


if __name__ == "__main__":
    sys.exit(main())
