"""submit.sh: the script in a run folder that a cluster runs on its node. Readable, and editable.

A run that is sent with other settings gets a new one, beside the earlier one; otherwise the changes
of a user stay.
"""

import re
import secrets
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from core.training.contract.files import write_content, write_text

NAME = "submit.sh"
EARLIER = "submit.sh.before"
"""Script of the settings before, with the lines that a user may have written there."""
PROBE = "probe.txt"
"""File with a random text, by which a node knows that it sees this folder and no other."""
TOKEN = re.compile(rb":-[0-9a-f]{32}\b")
"""Where submit.sh names that text."""
FOLDER_NOT_SEEN = 72
"""Exit code of the script on a node that does not see the run folder."""
NOT_SEEN = "the node does not see the run folder"
NOT_SEEN_FIX = "put --home on storage that all nodes see"
TRAIN = ("-m", "training", "job.json")
NODE_PORTS = "20000 + SLURM_JOB_ID % 20000"
"""Port at which the processes of several nodes meet: two jobs on one node need two."""
SECONDS_FOR_LAST_WORDS = 20
"""Longest time until the run folder says why all end, once a program has failed."""
INTRODUCTION = """\
#!/bin/bash
# Trains this run on a node of the cluster, from its newest checkpoint if there is one.
# What you change here stays when the run is resumed. With other settings there is a new script, and
# this one is kept as submit.sh.before.
"""
GO_TO_FOLDER = """
cd "$(dirname "$0")" || exit
"""
CHECK = """
# On a node that does not see this folder, nothing of the training would be kept.
if [ "$(cat {probe} 2>/dev/null)" != "${{1:-{token}}}" ]; then
  echo "{not_seen}, $PWD: {fix}" >&2
  exit {code}
fi
"""
DRIVER = Path(__file__).with_name("ray_train.py")
"""Program that speaks to Ray Train. It runs as a copy in the run folder."""
RAY_TRAIN = """
# Ray Train runs under the Python of Ray, which starts that of the training.
ray=$(command -v ray) || {{ echo "this node has no ray on its PATH" >> log.txt; exit 1; }}
rm -rf ranks  # what the programs of an earlier attempt said
exec "$(dirname "$ray")/python" {program} --job "$1" {options} >> log.txt 2>&1
"""
FORGET_SIGNAL = """
# In a job that starts again, an empty file is of the signal that ended it; a user's has words.
if [ -n "$SLURM_RESTART_COUNT" ] && [ ! -s stop ]; then rm -f stop; fi
"""
SEVERAL_NODES = """
# The first signal asks for a checkpoint; each program looks for this file after every step.
trap 'touch stop' TERM
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
head=$(scontrol show node --oneliner "$first" | grep -o 'NodeAddr=[^ ]*' | cut -d = -f 2)
rm -rf ranks  # what the programs of an earlier attempt said
# Where one node fails, the others have some seconds to say why they end.
wait_for_words='"$@" && exit
for second in {{1..{seconds}}}; do
  [ -e stop ] || grep -qs "state.: .failed" status.json && break
  sleep 1
done
exit 1'
srun --ntasks-per-node=1 --kill-on-bad-exit=1 bash -c "$wait_for_words" - \\
  {torchrun} --nnodes="$SLURM_NNODES" --nproc-per-node={num_devices} \\
  --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" \\
  --rdzv-endpoint="$head:$(({ports}))" {train} &
wait $!  # a signal ends this wait, but not the programs
wait $!
"""
ARRAY = """
# Each task trains one run by the submit.sh in its folder, which you may change.
folders=(
{folders}
)
texts=(
{texts}
)
cd "${{folders[$SLURM_ARRAY_TASK_ID]}}" || exit {code}
exec bash {name} "${{texts[$SLURM_ARRAY_TASK_ID]}}" >> log.txt 2>&1
"""


def write_array(path: Path, options: Sequence[str], folders: Sequence[Path]) -> None:
    """Write the script of a job that has a task for each run folder. Raises OSError."""
    lines = "\n".join(f"  {shlex.quote(str(folder))}" for folder in folders)
    texts = "\n".join(f"  {shlex.quote(_text_of_probe(folder))}" for folder in folders)
    body = ARRAY.format(folders=lines, texts=texts, code=FOLDER_NOT_SEEN, name=NAME)
    directives = "".join(f"#SBATCH {option}\n" for option in options)
    write_text(path, f"#!/bin/bash\n{directives}{body}")


def _text_of_probe(folder: Path) -> str:
    """Return the random text of a run folder, "" where a user has removed it with its check."""
    path = folder / PROBE
    return path.read_text().strip() if path.exists() else ""


def write_script(
    folder: Path, options: Sequence[str], body: str, *, starts_elsewhere: bool = False
) -> None:
    """Write submit.sh with options such as `--nodes=2` for sbatch. Raises OSError.

    `starts_elsewhere` says that the cluster does not start it in its own folder.
    """
    token = secrets.token_hex(16)
    check = CHECK.format(
        probe=PROBE, token=token, not_seen=NOT_SEEN, fix=NOT_SEEN_FIX, code=FOLDER_NOT_SEEN
    )
    directives = "".join(f"#SBATCH {option}\n" for option in options)
    write_text(folder / PROBE, f"{token}\n")
    start = GO_TO_FOLDER if starts_elsewhere else ""
    write_text(folder / NAME, f"{INTRODUCTION}{directives}{start}{check}{body}")


def keep_earlier(folder: Path, name: str = NAME) -> None:
    """Keep a script for other settings beside the one that will be written. Raises OSError."""
    if (folder / name).exists():
        (folder / name).replace(folder / EARLIER)


def renew_token(folder: Path) -> None:
    """Give submit.sh and the folder another random text. Raises OSError.

    A job that was made of the script before finds that text and does not train.
    """
    path, token = folder / NAME, secrets.token_hex(16)
    if path.exists() or (folder / PROBE).exists():
        write_text(folder / PROBE, f"{token}\n")
    if path.exists():
        script = TOKEN.sub(f":-{token}".encode(), path.read_bytes())  # of any encoding
        write_content(path, script)


def one_node(*, logs: bool = False) -> str:
    """Return the body that trains on one node; `logs` where the cluster writes no log.txt."""
    line = f"exec {shlex.join([sys.executable, *TRAIN])}"
    if logs:
        return f"\n{line} >> log.txt 2>&1\n"
    return f"{FORGET_SIGNAL}\n{line}\n"


def several_nodes(num_devices: int) -> str:
    """Return the body that starts torchrun on each node of a job of Slurm."""
    return FORGET_SIGNAL + SEVERAL_NODES.format(
        torchrun=shlex.join(torchrun()),
        num_devices=num_devices,
        ports=NODE_PORTS,
        train=shlex.join(TRAIN),
        seconds=SECONDS_FOR_LAST_WORDS,
    )


def ray_train(num_workers: int, *, has_gpus: bool) -> str:
    """Return the body that lets Ray Train start the programs on several nodes."""
    words = ["--workers", str(num_workers), "--python", sys.executable]
    if has_gpus:
        words.append("--gpu")
    return RAY_TRAIN.format(program=DRIVER.name, options=shlex.join(words))


def torchrun() -> tuple[str, ...]:
    """Return the words that start torchrun with the Python of this program."""
    return (sys.executable, "-m", "torch.distributed.run")
