"""Tailor's front door: reads the command line and makes one call. Holds no logic.

python app.py [serve] | train | estimate | check | runs | doctor      (each explains itself with --help)
"""

import argparse
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Any, NoReturn

from core.job import JobSpec


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line instead of a page of usage, and leaves out what was not given."""

    def __init__(self, **settings: Any):
        super().__init__(argument_default=argparse.SUPPRESS, **settings)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message}; see `{self.prog} --help`\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 done, 1 failed, 2 bad input, 130 stopped."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(
            errors="replace"
        )  # an output that lacks a letter, such as a file on Windows, gets a ?
    given = vars(parser().parse_args(arguments))
    command = given.pop("command", None) or "serve"
    try:
        if command == "serve":
            return _serve(**given)
        from ui.terminal import commands as terminal

        return terminal.COMMANDS[command](**given)
    except KeyboardInterrupt:  # a second Ctrl-C, or one where there is nothing to stop
        return 130


def _serve(**given: Any) -> int:
    from ui.quick_import import import_gradio  # only this command needs it

    import_gradio()
    from ui.server import serve

    return serve(**given)


def parser() -> OneLineParser:
    """The whole command line. What is not given is left to the defaults of the function that is called."""
    top = OneLineParser(
        prog="python app.py", description="Fits a language model to your data and to your GPU."
    )
    _add_serve(top)
    commands = top.add_subparsers(dest="command", metavar="command", parser_class=OneLineParser)

    _add_serve(commands.add_parser("serve", help="open the page (what no command does)"))
    train = commands.add_parser(
        "train", help="train in the foreground; Ctrl-C stops with a checkpoint"
    )
    train.add_argument(
        "--demo",
        action="store_true",
        help="start from the demo: tiny model, tiny data, no GPU needed",
    )
    estimate = commands.add_parser("estimate", help="what a job will take")
    for command in (train, estimate):
        command.add_argument(
            "job", nargs="?", metavar="JOB.json", help="a job file; flags override its fields"
        )
        _add_job_fields(command)

    check = commands.add_parser("check", help="what is in a dataset, and what is wrong with it")
    check.add_argument("file", metavar="FILE.jsonl")
    check.add_argument("--stage", help="what it is for (default sft)")
    check.add_argument("--model", help="whose tokens the rows are measured in")
    check.add_argument("--max-length", help="tokens at which rows are cut (default 2048)")

    runs = commands.add_parser("runs", help="the runs: list, show, stop, resume, delete and more")
    actions = [
        "list",
        "show",
        "stop",
        "resume",
        "queue",
        "move",
        "delete",
        "restore",
        "empty-trash",
    ]
    actions += ("title", "note", "tag", "compare", "bundle")
    runs.add_argument("action", nargs="?", default="list", choices=actions)
    runs.add_argument("id", nargs="?", metavar="ID")
    runs.add_argument(
        "more",
        nargs="*",
        metavar="WORD",
        help="what the action needs besides: up, FILE.zip, another ID",
    )

    doctor = commands.add_parser(
        "doctor", help="what this machine has, what is missing, and how to get it"
    )
    for command in (estimate, check, runs, doctor):
        command.add_argument("--json", action="store_true", help="print one JSON value")
    for command in (train, estimate, check, runs, doctor):
        command.add_argument(
            "--home", help="where runs and uploads live (default TAILOR_HOME or ~/.tailor)"
        )
    return top


def _add_serve(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--host", help="address to listen on (default 127.0.0.1); any other asks for the token"
    )
    command.add_argument("--port", type=int, help="port (default: the first free one from 7860)")
    command.add_argument(
        "--share", action="store_true", help="also make a public Gradio link, guarded by the token"
    )
    command.add_argument(
        "--no-browser", action="store_true", help="do not open the page in a browser"
    )
    command.add_argument(
        "--home", help="where runs and uploads live (default TAILOR_HOME or ~/.tailor)"
    )


def _add_job_fields(command: argparse.ArgumentParser) -> None:
    """One flag for each JobSpec field. Values stay text: JobSpec reads and judges them, and names every problem."""
    group = command.add_argument_group("job fields")
    for name, field in JobSpec.model_fields.items():
        bare: dict[str, Any] = {"nargs": "?", "const": "true"} if field.annotation is bool else {}
        help_text = f"{field.description} (default {field.default})".replace("%", "%%")
        flag = f"--{name.replace('_', '-')}"
        group.add_argument(flag, dest=f"field_{name}", metavar="VALUE", help=help_text, **bare)


if __name__ == "__main__":
    sys.exit(main())
