"""Runs: create, read, list, start and stop them.

The folder of a run is the only truth about it:

    runs/<id>/  job.json          job with resolved paths: everything that the program needs
                training/         copy of the training program: what you see is what runs
                data/             the run's own copy of its rows, with hashes in manifest.json
                requirements.txt  versions of the packages
                estimate.json     predicted memory and speed
                earlier_estimates.json   those of attempts on another number of devices
                process.json      process that runs it (written by the launcher)
                cluster.json      job of a cluster that runs it, and what the cluster last said
                submit.sh         script that the cluster runs   probe.txt (shows it the folder)
                submit.sh.before  the one of the settings before, with what a user wrote there
                exit.json         how that process ended (written by the launcher, if it saw it)
                status.json       state, step, phase, measured peaks (replaced by the program)
                metrics.jsonl     one object per logging step (appended by the program)
                samples.jsonl     answers before and after training
                checks/           results of suites, and suites of its own
                about.json        title, notes and tags (written by users)
                log.txt           output of the program; if very long, its beginning and end
                checkpoints/      output/   stop (a request)
                output-original/  result of the training, once a checkpoint took its place
"""

from core.runs.creation import create
from core.runs.data import writer_of_rows
from core.runs.home import Home
from core.runs.run import Run, read

__all__ = [
    "Home",
    "Run",
    "checks",
    "create",
    "edits",
    "engines",
    "files",
    "launch",
    "listing",
    "past_runs",
    "queue",
    "read",
    "results",
    "sentences",
    "writer_of_rows",
]
