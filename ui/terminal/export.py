"""Command `export`: take the result of a run to other programs. Prints; exports nothing itself."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from textwrap import indent

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from core.after_training.export import FORMS, Export, ExportStatus, launch, list_exports
from core.after_training.export import plan as plans
from core.after_training.export import tools as converters
from core.after_training.export.ollama import add_to_ollama, find_ollama
from core.after_training.export.sentences import (
    asked_sentence,
    export_facts,
    export_size,
    verified_sentence,
)
from core.after_training.export.serve import serve_lines
from core.after_training.export_checks import Numbers, measure_both, require_both
from core.after_training.export_checks.sentences import both_sentences, checks_in_short
from core.job import ChildError, Problem, SpecError
from core.runs import Home, Run
from core.runs.results import checking
from core.runs.results.checking import find_run
from core.training.contract.stages import STAGES
from core.wording import file_size
from ui.terminal.check_model import check_export
from ui.terminal.printing import out, print_json, say

STOPPED, UNTRUSTED = 130, 1
BOTH = "both"
"""Base of --base that measures both."""
STATES_OF_FAILURE = ("failed", "stopped")
FOR_HUB = ("repo", "send", "public", "with-data")
"""Words that say something about an upload."""
UNCHECKED: Mapping[str, str] = {
    "adapter-gguf": "check the run itself with `python app.py check-model RUN`",
    "hub": "check an export to gguf or merged first: the model card then says its numbers",
}
"""Form of export that answers no suites -> what to do instead."""


def export(
    *,
    home: str | None = None,
    run: str | None = None,
    to: str = "",
    quant: str = "",
    base: str = "",
    llama_cpp: str = "",
    imatrix: str = "",
    repo: str = "",
    send: str = "",
    public: bool = False,
    with_data: bool = False,
    create: bool = False,
    checks: bool = False,
    install: bool = False,
    json: bool = False,
) -> int:
    """Export the result of a run, or list its exports. Raises TailorError."""
    place = Home.find(home)
    if install and not _install(place, run):
        return 0
    chosen = _require_run(place, run)
    words: dict[str, str | bool] = {"quant": quant, "base": base, "imatrix": imatrix}
    words |= {"llama-cpp": llama_cpp, "repo": repo, "send": send, "public": public}
    words |= {"with-data": with_data, "create": create, "checks": checks}
    _require_use(to, base, [word for word, value in words.items() if value])
    if not to:
        return _list(chosen, json)
    _require_ollama(to, create)
    numbers = Numbers(quant, llama_cpp, imatrix)
    if base == BOTH:
        return _measure_both(chosen, to, numbers, as_json=json)
    upload = plans.Upload(repo, send, not public, with_data) if to == "hub" else None
    _require_checkable(chosen, to, checks)
    plan = plans.plan_export(chosen, to, base=base, upload=upload, **asdict(numbers))
    say(export_facts(plan), *plan.notes)
    token = _token() if upload else ""
    return _make(chosen, plan, token, checks=checks, create=create, as_json=json)


def _make(
    run: Run, plan: plans.ExportPlan, token: str, *, checks: bool, create: bool, as_json: bool
) -> int:
    """Make an export and print it; check it and give it to Ollama if that is wanted. Return the
    exit code."""
    name = launch.start(run, plan, token)
    status = _follow(run, name)
    if status.state in STATES_OF_FAILURE:
        return _report_failure(run, name, status)
    result = launch.result_of(run, name)
    if not as_json:
        _print(result)
    code = check_export(run, result, is_silent=as_json) if checks else 0
    if as_json:
        print_json(result.to_json())
    verified = result.verified
    if verified and not verified.trusted:
        return UNTRUSTED
    if create:
        say(f"Ollama has it now: ollama run {add_to_ollama(result)}")
    return code


def _measure_both(run: Run, form: str, numbers: Numbers, *, as_json: bool) -> int:
    """Export over both bases, check both, and say which is better. Ctrl-C stops it."""
    require_both(run, form)
    suites = checking.find_suites(run, ())
    with _progress_bar() as bar:
        task = bar.add_task("starting", total=1.0)

        def show(text: str, share: float) -> None:
            bar.update(task, description=text, completed=share)

        try:
            both = measure_both(run, form, suites, show, numbers=numbers)
        except KeyboardInterrupt:
            launch.request_stop(run, launch.active_export(run))
            say("Stopped. Measure again to continue with the files that are finished.")
            return STOPPED
        except ChildError as error:
            say(checking.died_sentence(error))
            return 1
    made = [each for each in list_exports(run) if each.name in both.names.values()]
    code = UNTRUSTED if both.untrusted else 0
    if as_json:
        print_json({**both.to_json(), "exports": [each.to_json() for each in made]})
        return code
    for each in made:
        out.print(f"{each.name}: {verified_sentence(each.verified)}")
    for sentence in both_sentences(both):
        out.print(sentence)
    return code


def _require_run(home: Home, reference: str | None) -> Run:
    """Return the run that is named. Raises RunNotFound, SpecError."""
    if not reference:
        fix = "name one that `python app.py runs` lists, or latest: export latest --to merged"
        raise SpecError(Problem("RUN", "is missing", fix))
    return find_run(home, reference)


def _require_use(form: str, base: str, words: Sequence[str]) -> None:
    """Raise SpecError for words of the command line that an export would ignore."""
    if not form and words:
        problem = f"is missing, which --{words[0]} needs"
        raise SpecError(Problem("--to", problem, f"choose {', '.join(FORMS)}"))
    problems = []
    for word in words:
        if word in FOR_HUB and form in FORMS and form != "hub":
            problem = f"has no use with --to {form}"
            problems.append(Problem(f"--{word}", problem, "leave it out, or choose --to hub"))
        if word == "create" and base == BOTH:
            fix = f"export again over the one that is better: --base trained --{word}"
            problems.append(Problem(f"--{word}", f"has no use with --base {base}", fix))
    if problems:
        raise SpecError(*problems)


def _require_ollama(form: str, is_created: bool) -> None:
    """Raise SpecError if an Ollama that is not here shall take it, or it is not for Ollama."""
    if not is_created:
        return
    if form != "ollama":
        raise SpecError(Problem("--create", "is for Ollama alone", "add --to ollama"))
    if find_ollama() is None:
        fix = "install it from ollama.com, or export without --create"
        raise SpecError(Problem("--create", "Ollama is not on the PATH", fix))


def _require_checkable(run: Run, form: str, is_checked: bool) -> None:
    """Raise SpecError if an export shall be checked that answers no suites."""
    if is_checked and STAGES[run.job.stage].head == "score":
        problem = "has no use: a reward model answers no suites"
        raise SpecError(Problem("--checks", problem, "leave it out"))
    if is_checked and form in UNCHECKED:
        raise SpecError(Problem("--checks", f"has no use with --to {form}", UNCHECKED[form]))


def _install(home: Home, run: str | None) -> bool:
    """Install the converters. Return False if there is nothing else to do."""
    say(f"Installing the converters to GGUF ({converters.DOWNLOAD}).")
    out.print(f"Installed in {converters.install(home)}.")
    return bool(run)


def _token() -> str:
    """Return the token of the Hub that the user has logged in with. Raises SpecError."""
    from huggingface_hub import get_token

    token = get_token()
    if not token:
        fix = "run `hf auth login`, or set HF_TOKEN, with a token that may write"
        raise SpecError(Problem("token", "you are not logged in to the Hub", fix))
    return token


def _list(run: Run, as_json: bool) -> int:
    exports = list_exports(run)
    if as_json:
        print_json([each.to_json() for each in exports])
        return 0
    for each in exports:
        facts = ", ".join(filter(None, (export_size(each), checks_in_short(each))))
        out.print(f"{each.name}: {facts} · {each.folder}")
    if not exports:
        out.print(f"No exports yet. Make one: python app.py export {run.id} --to merged")
    return 0


def _follow(run: Run, name: str) -> ExportStatus:
    """Return the last status of an export, with a bar while it is made. Ctrl-C stops it."""
    with _progress_bar() as bar:
        task = bar.add_task("starting", total=1.0)

        def show(status: ExportStatus) -> None:
            bar.update(task, description=status.phase or status.state, completed=status.share)

        try:
            return launch.wait(run, name, show)
        except KeyboardInterrupt:
            launch.request_stop(run, name)
            return launch.status_of(run, name)


def _report_failure(run: Run, name: str, status: ExportStatus) -> int:
    if status.state == "stopped":
        say("Stopped. Export it again to continue with the files that are finished.")
        return STOPPED
    fix = f"{status.fix[:1].upper()}{status.fix[1:]}." if status.fix else ""
    say(f"export: {status.error} {fix}".strip())
    log = launch.log_of(run, name)
    if log.is_file():
        say(f"Log: {log}")
    return 1


def _print(export: Export) -> None:
    for each in export.manifest.files:
        out.print(f"  {each.name}  {file_size(each.bytes)}")
    for note in export.manifest.notes:
        out.print(note)
    out.print(verified_sentence(export.verified), style="bold")
    if asked := asked_sentence(export.manifest):
        out.print(asked)
    out.print(f"Result: {export.manifest.url or export.folder}")
    if export.verified and not export.verified.trusted:
        return
    for program, lines in serve_lines(export):
        out.print(f"\nUse it in {program}:\n\n{indent(lines, ' ' * 4)}")


@contextmanager
def _progress_bar() -> Iterator[Progress]:
    from rich.console import Console

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        yield bar
