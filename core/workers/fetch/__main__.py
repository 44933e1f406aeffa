"""A program that takes in what needs a library: the files of a dataset on the Hub, and Parquet tables.

Run `python -m core.workers.fetch`: one JSON request on standard input; progress, and at last what became of it, on
standard output. Writes into the folder that it was told only. Runs no code of a dataset, follows no link out of it.
"""

import bz2
import errno
import gzip
import json
import lzma
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from core.training.contract.failures import TrainingError
from core.workers.hub import stay_offline_without_answer

SECONDS_BETWEEN_REPORTS = 0.2
CHUNK_BYTES = 2**20
MOST_NAMED = 20
NO_ROOM = (errno.EFBIG, errno.ENOSPC, errno.EDQUOT)
FORMS = ("json", "csv", "parquet")
"""The kinds of files that can be read, as `datasets` calls them; json is JSON lines too."""
UNPACK: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
)
OTHER_SOURCE = "correct that, or give another source"


class Cause(NamedTuple):
    """One kind of failure on the Hub: how it is recognised, what to say of it and what to do; {id} is the dataset."""

    types: str
    """Regular expression, searched in the names of the error's types."""
    problem: str
    fix: str


CAUSES = (
    Cause(
        "GatedRepoError",
        "{id} is gated",
        "accept its terms at https://huggingface.co/datasets/{id}, then log in with `hf auth login`",
    ),
    Cause(
        "RevisionNotFoundError",
        "{id} has no such revision",
        "give a branch, a tag or a commit that it has",
    ),
    Cause(
        "RepositoryNotFoundError|HFValidationError",
        "there is no dataset {id} on the Hugging Face Hub, or it is private",
        "check the name, or log in with `hf auth login`",
    ),
    Cause(
        "OfflineModeIsEnabled|LocalEntryNotFoundError|Connect|Timeout|NetworkError",
        "the Hugging Face Hub cannot be reached from here",
        "fetch {id} where there is a network, and give the file",
    ),
    Cause(
        "EmptyDatasetError|DataFilesNotFoundError",
        "{id} has no files that can be read as rows",
        "give another dataset; one that is a program is never run",
    ),
)


@dataclass(frozen=True)
class Found:
    """The files of one split."""

    form: str
    """One of FORMS."""
    paths: tuple[str, ...]
    """As the Hub's file system names them."""
    config: str
    split: str
    delimiter: str


class Reporter:
    """Says how many bytes are done, now and then."""

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._said_at = 0.0

    def __call__(self, num_bytes: int) -> None:
        if time.monotonic() - self._said_at > SECONDS_BETWEEN_REPORTS:
            self._said_at = time.monotonic()
            say({"num_bytes": num_bytes, "total_bytes": self._total_bytes})


def main() -> None:
    """Does what it is asked on standard input."""
    request = json.loads(sys.stdin.readline())
    _limit(request)
    sys.modules["torch"] = None  # type: ignore[assignment]  # hidden: `datasets` needs none of its 200 MB
    try:
        say({"done": WORK[request["do"]](request)})
    except MemoryError:
        say({"problem": ("it takes too much memory", "give it in parts")})
    except Exception as error:
        say({"problem": _reason(error, str(request.get("id", "it")))})


def download(request: Mapping[str, Any]) -> dict[str, Any]:
    """Fetches the files of one split of a dataset into a folder. Raises TrainingError."""
    stay_offline_without_answer()
    from huggingface_hub import HfFileSystem

    hub = HfFileSystem()
    found = find_files(request["id"], request["config"], request["split"], request["revision"])
    total = sum(hub.info(path)["size"] for path in found.paths)
    if total > request["max_bytes"]:
        raise TrainingError(
            f"its files are {total / 2**30:.1f} GiB, more than {request['max_bytes'] / 2**30:.1f} GiB"
        )
    report, num_bytes, names = Reporter(total), 0, []
    for number, path in enumerate(found.paths):
        name = f"{number:05}.{found.form}"  # never a name of theirs
        with (
            hub.open(path, "rb", block_size=0) as packed,
            (Path(request["folder"]) / name).open("xb") as out,
        ):
            for chunk in _unpacked(packed, path):
                num_bytes += out.write(chunk)
                if num_bytes > request["max_bytes"]:
                    raise TrainingError("unpacked, its files are too large")
                report(num_bytes)
        names.append(name)
    return {"files": names} | {
        name: getattr(found, name) for name in ("form", "config", "split", "delimiter")
    }


def find_files(id: str, config: str, split: str, revision: str) -> Found:
    """Where a split's files are. An empty config or split is the dataset's own choice. Raises TrainingError."""
    from datasets import DownloadConfig
    from datasets.load import HubDatasetModuleFactory
    from huggingface_hub import HfApi

    commit = HfApi().dataset_info(id, revision=revision).sha
    module = HubDatasetModuleFactory(id, commit_hash=commit).get_module()
    parameters = module.builder_configs_parameters
    configs = {each.name: each for each in parameters.builder_configs}
    name = _choose("config", config, list(configs), [parameters.default_config_name, "default"])
    chosen = configs[name]
    chosen._resolve_data_files(module.builder_kwargs["base_path"], DownloadConfig())
    splits = {str(each): files for each, files in chosen.data_files.items()}
    wanted = _choose("split", split, list(splits), ["train"])
    form = module.module_path.rpartition(".")[2]
    home = f"hf://datasets/{id}@{commit}/"
    paths = tuple(map(str, splits[wanted]))
    if form not in FORMS or getattr(chosen, "field", None):
        raise TrainingError(
            f"the rows of {id} are in files of the kind {form}; JSON, CSV and Parquet can be read"
        )
    if strange := next((path for path in paths if not path.startswith(home) or ".." in path), None):
        raise TrainingError(f"{id} names a file that is not its own: {strange[:200]}")
    delimiter = getattr(chosen, "delimiter", None) or getattr(chosen, "sep", None) or ","
    return Found(form, paths, name, wanted, str(delimiter))


def convert_tables(request: Mapping[str, Any]) -> dict[str, Any]:
    """Writes Parquet tables as JSON lines. Raises TrainingError."""
    from .parquet import BadTable, columns_of, write_rows

    paths = [Path(path) for path in request["paths"]]
    try:
        kept = columns_of(paths, request["needed"])
        with Path(request["target"]).open("xb") as out:
            rows = write_rows(
                paths, kept, out, Reporter(sum(path.stat().st_size for path in paths))
            )
    except BadTable as error:
        raise TrainingError(str(error)) from None
    return {"rows": rows, "left_out": kept.left_out}


WORK: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = MappingProxyType(
    {"download": download, "tables": convert_tables}
)


def say(message: Mapping[str, Any]) -> None:
    """One line for the parent."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _choose(what: str, wanted: str, known: list[str], usual: list[str | None]) -> str:
    """The one that is wanted, else the only one, else a usual one. Raises TrainingError with those that there are."""
    if wanted in known:
        return wanted
    names = ", ".join(known[:MOST_NAMED]) + (" ..." if len(known) > MOST_NAMED else "")
    if wanted:
        raise TrainingError(f"there is no {what} {wanted!r}, but {names}")
    choice = known[0] if len(known) == 1 else next((name for name in usual if name in known), None)
    if choice is None:
        raise TrainingError(f"say which {what}: {names}")
    return choice


def _unpacked(packed: Any, path: str) -> Iterator[bytes]:
    unpack = UNPACK.get(Path(path).suffix)
    with unpack(packed) if unpack else packed as stream:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk


def _reason(error: Exception, id: str) -> tuple[str, str]:
    """(what went wrong, what to do), in a few plain words."""
    if isinstance(error, TrainingError):
        return str(error), OTHER_SOURCE
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return (
            "there is no room on the disk, or it is larger than allowed",
            "make room, or give a part of it",
        )
    types = " ".join(type.__name__ for type in type(error).__mro__)
    if cause := next((each for each in CAUSES if re.search(each.types, types)), None):
        return cause.problem.format(id=id), cause.fix.format(id=id)
    first_line = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {first_line[:300]}", OTHER_SOURCE


def _limit(request: Mapping[str, Any]) -> None:
    """Takes from this process what a hostile file could make it use. Windows has no such limits."""
    if os.name == "posix":
        import resource
        import signal

        signal.signal(
            signal.SIGXFSZ, signal.SIG_IGN
        )  # a file that grows too large is an error, not the end
        for limit, value in (
            (resource.RLIMIT_AS, request["memory_bytes"]),
            (resource.RLIMIT_CPU, request["cpu_seconds"]),
            (resource.RLIMIT_FSIZE, request["max_bytes"]),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(limit, (value, value))


if __name__ == "__main__":
    main()
