"""Command line: output, place of the output, exit code."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import app
from core import runs
from core.job import JobSpec
from core.runs import Home, Run, launch
from tests.builders.dataset_files import CHAT_LINE, write_lines_of
from tests.builders.fake_runs import APP, CRASH_AT_STEP_3, NEVER_END, start
from tests.builders.paths import DATA, ROOT
from ui.terminal import commands as terminal

pytestmark = pytest.mark.training

NewRun = Callable[..., Run]
Printed = pytest.CaptureFixture[str]


def test_every_field_of_a_job_is_a_flag(capsys: Printed) -> None:
    with pytest.raises(SystemExit) as end:
        app.main(["train", "--help"])
    printed = capsys.readouterr().out
    assert end.value.code == 0
    assert all(f"--{name.replace('_', '-')} " in printed for name in JobSpec.model_fields)


def test_an_estimate_is_printed_as_contracted(tailor: Callable[..., int], capsys: Printed) -> None:
    flags = (
        "--model",
        "meta-llama/Llama-3.1-8B",
        "--method",
        "qlora",
        "--gpu",
        "rtx-4090",
        "--json",
    )
    assert tailor("estimate", *flags) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.keys() >= {
        "components",
        "phases",
        "peak_allocated_bytes",
        "peak_reserved_bytes",
        "total_bytes",
        "capacity_bytes",
        "verdict",
        "num_parameters",
        "num_trainable_parameters",
        "fixes",
        "speed",
    }
    assert printed["speed"].keys() == {"tokens_per_second", "seconds_per_step", "hours", "usd"}
    assert all(
        fix.keys() >= {"change", "total_bytes", "saves_bytes", "why"} for fix in printed["fixes"]
    )
    assert printed["num_parameters"] == 8_030_261_248
    assert printed["num_trainable_parameters"] == 41_943_040
    assert sum(part["bytes"] for part in printed["components"]) == printed["total_bytes"]


def test_an_estimate_prints_what_would_make_the_job_fit(
    tailor: Callable[..., int], capsys: Printed
) -> None:
    flags = ("--model", "meta-llama/Llama-3.1-8B", "--method", "full", "--gpu", "rtx-4090")
    assert tailor("estimate", *flags) == 0
    assert "✓ LoRA instead of full" in capsys.readouterr().out


def test_an_estimate_without_json_is_a_sentence_and_a_table(
    tailor: Callable[..., int], capsys: Printed
) -> None:
    assert tailor("estimate", "--model", "meta-llama/Llama-3.1-8B", "--gpu", "rtx-4090") == 0
    printed = capsys.readouterr().out
    assert "Llama 3.1 8B" in printed
    assert "of 24.0 GiB" in printed
    assert "Optimizer states" in printed


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        (("estimate", "--lora-r", "-1"), ["lora_r"]),
        (("train", "--learning-rate", "nan", "--lora-r", "0"), ["learning_rate", "lora_r"]),
        (
            ("train", "--dataset", "/no/such/file.jsonl", "--model", "/no/such/model"),
            ["model", "dataset"],
        ),
        (("train", "--dataset", "/no/such/file.jsonl", "--lora-r", "-1"), ["lora_r", "dataset"]),
        (("train", "/no/such/job.json"), ["job file"]),
        (("estimate", "--gpu", "abacus"), ["gpu"]),
        (("check", "/no/such/file.jsonl"), ["file"]),
        (("check", "~nobody-here/rows.jsonl"), ["file"]),
        (("check", "x" * 300), ["file"]),
        (
            ("train", "--dataset", "x" * 300, "--mix", "x" * 300, "--adapter", "x" * 300),
            ["dataset", "mix", "adapter"],
        ),
        (
            ("train", "--dataset", "~nobody-here/rows.jsonl", "--adapter", "~nobody-here/a"),
            ["dataset", "adapter"],
        ),
        (("train", "--mix", "~nobody-here/rows.jsonl"), ["mix"]),
        (("runs", "--home", "~nobody-here/runs"), ["home"]),
        (("check", "demo", "--max-length", "many"), ["max_length"]),
        (("check", "demo", "--max-length", "-5"), ["max_length"]),
        (("check", "demo", "--max-length", "99999999999"), ["max_length"]),
        (("check", "demo", "--stage", "magic"), ["stage"]),
        (("runs", "show"), ["ID"]),
        (
            ("estimate", "--max-length", "999999", "--model", "meta-llama/Llama-3.1-8B"),
            ["max_length"],
        ),
    ],
)
def test_bad_input_is_one_line_per_problem_and_exit_2(
    tailor: Callable[..., int], capsys: Printed, arguments: tuple[str, ...], fields: list[str]
) -> None:
    assert tailor(*arguments) == 2
    printed = capsys.readouterr()
    assert [line.partition(":")[0] for line in printed.err.strip().splitlines()] == fields
    assert "Traceback" not in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("arguments", [("train", "--colour", "blue"), ("dance",), ("runs", "burn")])
def test_an_unknown_command_is_one_line_and_exit_2(
    capsys: Printed, arguments: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as end:
        app.main(list(arguments))
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_unknown_flag_gets_a_suggestion(capsys: Printed) -> None:
    with pytest.raises(SystemExit):
        app.main(["train", "--epochs", "3"])
    assert "did you mean --num-train-epochs?" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--lora-r", "--lora-r=1"])
def test_a_flag_of_another_command_is_not_suggested_again(capsys: Printed, flag: str) -> None:
    with pytest.raises(SystemExit):
        app.main(["runs", "resume", "x", flag])
    assert f"{flag} sets a job, and this command takes no job" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["grpo", "dpo"])
def test_the_demo_trains_every_stage(
    tailor: Callable[..., int], fake_program: None, stage: str
) -> None:
    assert tailor("train", "--demo", "--stage", stage) == 0


def test_a_long_list_of_problems_is_cut(
    tailor: Callable[..., int], capsys: Printed, tmp_path: Path
) -> None:
    row = CHAT_LINE.replace("user", "{}")
    roles = (chr(ord("a") + n % 26) * (n // 26 + 1) for n in range(50))
    write_lines_of(tmp_path / "rows.jsonl", [CHAT_LINE, *(row.replace("{}", r) for r in roles)])
    assert tailor("check", tmp_path / "rows.jsonl") == 2
    assert capsys.readouterr().err.endswith("... and 30 more problems\n")


def test_warnings_are_printed(tailor: Callable[..., int], capsys: Printed) -> None:
    assert tailor("check", DATA / "duplicates.jsonl") == 0
    assert capsys.readouterr().err.startswith("warning: 2 rows (lines 3, 4), row: is the same as")


def test_an_unknown_field_of_a_job_file_is_named(
    tailor: Callable[..., int], capsys: Printed, tmp_path: Path
) -> None:
    file = tmp_path / "job.json"
    file.write_text('{"colour": "blue", "lora_r": "many"}')
    assert tailor("train", file) == 2
    assert [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        "lora_r",
        "colour",
    ]


@pytest.mark.parametrize("parallelism", ["ddp", "fsdp"])
def test_an_exact_estimate_of_several_devices_traces_one(
    tailor: Callable[..., int], capsys: Printed, parallelism: str
) -> None:
    together = ("--num-devices", "2", "--parallelism", parallelism)
    assert tailor("estimate", "--model", "demo", "--exact", *together) == 0
    printed = capsys.readouterr().out
    assert "Traced one training step of one of 2 devices" in printed
    assert "The estimate agrees." in printed


def test_an_exact_estimate_is_printed_as_json(tailor: Callable[..., int], capsys: Printed) -> None:
    assert tailor("estimate", "--model", "demo", "--exact", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    traced = printed["traced"]["peak_allocated_bytes"]
    assert printed["peak_allocated_bytes"] == pytest.approx(traced, rel=0.02)


def test_a_job_that_cannot_be_traced_says_why(tailor: Callable[..., int], capsys: Printed) -> None:
    liger = ("--model", "meta-llama/Llama-3.1-8B", "--gpu", "h100", "--use-liger-kernel", "true")
    assert tailor("estimate", "--exact", *liger) == 2
    assert "Liger's kernels cannot run without a GPU" in capsys.readouterr().err


def test_a_job_file_may_begin_with_a_byte_order_mark(
    tailor: Callable[..., int], capsys: Printed, tmp_path: Path
) -> None:
    (tmp_path / "job.json").write_text('{"model": "demo"}', encoding="utf-8-sig")
    assert tailor("estimate", tmp_path / "job.json") == 0


def test_a_job_file_that_is_nested_too_deep_is_refused(
    tailor: Callable[..., int], capsys: Printed, tmp_path: Path
) -> None:
    (tmp_path / "job.json").write_text("[" * 100_000)
    assert tailor("estimate", tmp_path / "job.json") == 2
    assert capsys.readouterr().err.startswith("job file: ")


def test_training_in_the_foreground_follows_to_the_end(
    tailor: Callable[..., int], capsys: Printed, fake_program: None
) -> None:
    assert tailor("train", "--demo", "--lora-r", "4") == 0
    printed = capsys.readouterr().out
    assert "step 20/20" in printed
    assert "Finished" in printed
    assert "output" in printed


def test_a_profile_plans_for_the_measured_rows(
    tailor: Callable[..., int], capsys: Printed, fake_program: None
) -> None:
    assert tailor("train", "--demo", "--profile", "fastest") == 0
    printed = capsys.readouterr().out
    assert "Rows count as " in printed
    assert "Rows count as 256 tokens" not in printed  # max_length, while nothing is measured


def test_measured_rows_need_less_than_rows_that_fill_max_length(
    tailor: Callable[..., int], capsys: Printed
) -> None:
    peaks = []
    for flags in ((), ("--measure",)):
        assert tailor("estimate", "--dataset", "demo", "--gpu", "rtx-4090", "--json", *flags) == 0
        peaks.append(json.loads(capsys.readouterr().out)["peak_allocated_bytes"])
    assert peaks[1] < peaks[0] / 2


def test_a_table_is_imported_to_be_measured(
    tailor: Callable[..., int], capsys: Printed, tmp_path: Path
) -> None:
    table = tmp_path / "rows.csv"
    table.write_text("prompt,completion\n" + "Hi,Hello\n" * 8)
    assert tailor("estimate", "--dataset", table, "--gpu", "rtx-4090", "--measure") == 0
    printed = capsys.readouterr()
    assert "not measured" not in printed.err
    assert "if every row fills max_length" not in " ".join(printed.out.split())


def test_an_estimate_says_whether_the_rows_are_measured(
    tailor: Callable[..., int], capsys: Printed
) -> None:
    said = []
    for flags in ((), ("--measure",)):
        assert tailor("estimate", "--dataset", "demo", "--gpu", "rtx-4090", *flags) == 0
        said.append("if every row fills max_length" in " ".join(capsys.readouterr().out.split()))
    assert said == [True, False]


def test_a_failed_training_exits_1_and_names_the_log(
    tailor: Callable[..., int], capsys: Printed, fake_program: None
) -> None:
    assert tailor("train", "--demo", "--seed", CRASH_AT_STEP_3) == 1
    printed = capsys.readouterr().out
    assert "backward" in printed
    assert "log.txt" in printed


def test_runs_are_listed_shown_stopped_resumed_and_deleted(
    tailor: Callable[..., int], capsys: Printed, home: Home, new_run: NewRun
) -> None:
    run = new_run(seed=NEVER_END)
    start(home, run)
    while not runs.read(home, run.id).step:
        time.sleep(0.02)
    assert tailor("runs", "stop", run.id) == 0
    assert runs.read(home, run.id).state == "stopped"
    assert "runs resume" in capsys.readouterr().out
    assert tailor("runs", "list", "--json") == 0
    assert [each["id"] for each in json.loads(capsys.readouterr().out)] == [run.id]
    assert tailor("runs", "show", run.id, "--json") == 0
    assert json.loads(capsys.readouterr().out)["status"]["state"] == "stopped"
    assert tailor("runs", "delete", run.id) == 0
    assert runs.listing.list_runs(home) == ()


def test_runs_alone_lists_them(
    tailor: Callable[..., int], capsys: Printed, new_run: NewRun
) -> None:
    assert tailor("runs") == 0
    assert "No runs yet" in capsys.readouterr().out
    run = new_run()
    assert tailor("runs") == 0
    assert run.id in capsys.readouterr().out


def test_a_finished_run_is_not_resumed(
    tailor: Callable[..., int], capsys: Printed, home: Home, new_run: NewRun
) -> None:
    run = new_run()
    start(home, run)
    launch.wait(home, run.id, 20)
    assert tailor("runs", "resume", run.id) == 2
    assert "finished" in capsys.readouterr().err


def test_doctor_says_what_this_machine_has(tailor: Callable[..., int], capsys: Printed) -> None:
    assert tailor("doctor", "--json") == 0
    assert json.loads(capsys.readouterr().out)["ram_bytes"] > 0


def test_ctrl_c_stops_with_a_checkpoint_and_exit_130(home: Home, tmp_path: Path) -> None:
    arguments = ["train", "--demo", "--seed", str(NEVER_END), "--home", str(home.path)]
    command = [sys.executable, "-c", APP, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        next(line for line in process.stdout if line.startswith("step 3"))
        process.send_signal(2)
        assert process.wait(30) == 130
    (run,) = runs.listing.list_runs(home)
    assert run.state == "stopped"
    assert run.has_checkpoint


def test_a_second_ctrl_c_exits_without_a_traceback(
    tailor: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(terminal.COMMANDS, "doctor", interrupted)
    assert tailor("doctor") == 130


def test_killing_the_foreground_does_not_stop_the_run(home: Home) -> None:
    command = [sys.executable, "-c", APP, "train", "--demo", "--home", str(home.path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        next(line for line in process.stdout if line.startswith("step 3"))
        process.kill()
    (run,) = runs.listing.list_runs(home)
    assert run.is_active
    assert launch.wait(home, run.id, 20).state == "finished"


def test_the_command_line_answers_without_gradio_or_torch() -> None:
    heavy = "'gradio' in sys.modules or 'torch' in sys.modules"
    script = f"import sys, app; app.main(['estimate', '--json']); sys.exit({heavy})"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_an_output_that_lacks_a_character_gets_another(home: Home) -> None:
    command = [sys.executable, "app.py", "doctor", "--home", home.path]
    environment = os.environ | {
        "PYTHONIOENCODING": "cp1252"
    }  # as on Windows where the output goes to a file
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert done.stdout


def test_a_job_that_chooses_nothing_is_refused(tailor: Callable[..., int], capsys: Printed) -> None:
    assert tailor("train") == 2
    assert "give --model and --dataset, or --demo" in capsys.readouterr().err
