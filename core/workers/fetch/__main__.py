"""Import what needs a library: the files of a dataset on the Hub, and Parquet tables.

Run `python -m core.workers.fetch`, which core/workers/child.py serves. Writes only into the folder
that it is given. Runs no code of a dataset, follows no link out of it.
"""

import bz2
import errno
import gzip
import lzma
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from core.job import DatasetError, Problem
from core.training.data.hub import stay_offline_without_answer
from core.workers.child import Reporter, serve

CHUNK_BYTES = 2**20
MAX_NAMED = 20
NO_ROOM = (errno.EFBIG, errno.ENOSPC, errno.EDQUOT)
FORMS = ("json", "csv", "parquet", "text")
"""Forms of files that can be read, as `datasets` calls them; json is JSON lines too."""
UNPACK: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
)
OTHER_SOURCE = "correct that, or give another source"


class HubFailure(NamedTuple):
    """One kind of failure on the Hub; {id} is the dataset."""

    types: str
    """Regular expression, searched in the names of the error's types."""
    problem: str
    fix: str


HUB_FAILURES = (
    HubFailure(
        "GatedRepoError",
        "{id} is gated",
        "accept its terms at https://huggingface.co/datasets/{id}, "
        "then log in with `hf auth login`",
    ),
    HubFailure(
        "RepositoryNotFoundError|HFValidationError",
        "there is no dataset {id} on the Hugging Face Hub, or it is private",
        "check the name, or log in with `hf auth login`",
    ),
    HubFailure(
        "OfflineModeIsEnabled|LocalEntryNotFoundError|Connect|Timeout|NetworkError",
        "the Hugging Face Hub cannot be reached from here",
        "fetch {id} where there is a network, and give the file",
    ),
    HubFailure(
        "EmptyDatasetError|DataFilesNotFoundError",
        "{id} has no files that can be read as rows",
        "give another dataset; one that is a program is never run",
    ),
)


@dataclass(frozen=True)
class SplitFiles:
    """Files of one split of a dataset."""

    form: str
    """One of FORMS."""
    paths: tuple[str, ...]
    """As the Hub's file system names them."""
    config: str
    split: str
    delimiter: str


def main() -> None:
    """Answer requests on standard input."""
    # Hide torch: `datasets` does not need its 200 MB.
    sys.modules["torch"] = None  # type: ignore[assignment]
    serve(lambda request, report: TASKS[request["do"]](request, report), explain)


def download(request: Mapping[str, Any], report: Reporter) -> dict[str, Any]:
    """Fetch the files of one split of a dataset into a folder. Raises DatasetError."""
    stay_offline_without_answer()
    from huggingface_hub import HfFileSystem

    hub, max_bytes = HfFileSystem(), request["max_bytes"]
    found = find_files(request["id"], request["config"], request["split"])
    total_bytes = sum(hub.info(path)["size"] for path in found.paths)
    if total_bytes > max_bytes:
        size, limit = total_bytes / 2**30, max_bytes / 2**30
        raise _refusal(f"its files are {size:.1f} GiB, more than {limit:.1f} GiB")
    num_bytes, names = 0, []
    for number, path in enumerate(found.paths):
        name = f"{number:05}.{found.form}"  # the Hub's name could lead out of the folder
        target = Path(request["folder"]) / name
        with hub.open(path, "rb", block_size=0) as packed, target.open("xb") as out:
            for chunk in _unpacked(packed, path):
                num_bytes += out.write(chunk)
                if num_bytes > max_bytes:
                    raise _refusal("unpacked, its files are too large")
                report(num_bytes / max(1, total_bytes))
        names.append(name)
    return {
        "files": names,
        "form": found.form,
        "config": found.config,
        "split": found.split,
        "delimiter": found.delimiter,
    }


def find_files(id: str, config: str, split: str) -> SplitFiles:
    """Return where a split's files are. Raises DatasetError.

    An empty config or split is chosen as the dataset says.
    """
    from datasets import DownloadConfig
    from datasets.load import HubDatasetModuleFactory
    from huggingface_hub import HfApi

    commit = HfApi().dataset_info(id).sha
    module = HubDatasetModuleFactory(id, commit_hash=commit).get_module()
    parameters = module.builder_configs_parameters
    configs = {each.name: each for each in parameters.builder_configs}
    name = _choose("config", config, list(configs), [parameters.default_config_name, "default"])
    chosen = configs[name]
    chosen._resolve_data_files(module.builder_kwargs["base_path"], DownloadConfig())
    splits = {str(each): files for each, files in chosen.data_files.items()}
    wanted = _choose("split", split, list(splits), ["train"])
    form = module.module_path.rpartition(".")[2]
    paths = tuple(map(str, splits[wanted]))
    if form not in FORMS or getattr(chosen, "field", None):
        raise _refusal(
            f"the rows of {id} are in files of the form {form}; "
            "JSON, CSV, Parquet and text can be read"
        )
    _require_own_files(id, paths, f"hf://datasets/{id}@{commit}/")
    delimiter = getattr(chosen, "delimiter", None) or getattr(chosen, "sep", None) or ","
    return SplitFiles(form, paths, name, wanted, str(delimiter))


def _require_own_files(id: str, paths: Sequence[str], home: str) -> None:
    """Raise DatasetError for a dataset that names files outside of it, such as this machine's."""
    for path in paths:
        if not path.startswith(home) or ".." in path:
            raise _refusal(f"{id} names a file that is not its own: {path[:200]}")


def convert_tables(request: Mapping[str, Any], report: Reporter) -> dict[str, Any]:
    """Write Parquet tables as JSON lines. Raises DatasetError."""
    from .json_values import JsonValues
    from .parquet import BadTable, require_tables, write_rows

    paths = [Path(path) for path in request["paths"]]
    total_bytes = max(1, sum(path.stat().st_size for path in paths))
    values = JsonValues()
    try:
        require_tables(paths)
        with Path(request["target"]).open("xb") as out:
            rows = write_rows(paths, values, out, lambda num_bytes: report(num_bytes / total_bytes))
    except BadTable as error:
        raise _refusal(str(error)) from None
    return {"rows": rows, "num_nan": values.num_nan, "num_bytes": values.num_bytes}


TASKS: Mapping[str, Callable[[Mapping[str, Any], Reporter], dict[str, Any]]] = MappingProxyType(
    {"download": download, "tables": convert_tables}
)


def _refusal(problem: str) -> DatasetError:
    return DatasetError(Problem("file", problem, OTHER_SOURCE))


def _choose(what: str, wanted: str, known: list[str], usual: list[str | None]) -> str:
    """Return the wanted name, else the only one, else a usual one. Raises DatasetError."""
    if wanted in known:
        return wanted
    names = ", ".join(known[:MAX_NAMED])
    if len(known) > MAX_NAMED:
        names += " ..."
    if wanted:
        raise _refusal(f"there is no {what} {wanted!r}, but {names}")
    if len(known) == 1:
        return known[0]
    for name in usual:
        if name in known:
            return name
    raise _refusal(f"say which {what}: {names}")


def _unpacked(packed: Any, path: str) -> Iterator[bytes]:
    unpack = UNPACK.get(Path(path).suffix)
    with unpack(packed) if unpack else packed as stream:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk


def explain(error: Exception, request: Mapping[str, Any]) -> Problem:
    """Return what went wrong and what to do, in plain words."""
    id = str(request.get("id", "it"))
    if isinstance(error, DatasetError):
        return error.problems[0]
    if isinstance(error, MemoryError):
        return Problem("file", "it takes too much memory", "give it in parts")
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        problem = "there is no room on the disk, or it is larger than allowed"
        return Problem("file", problem, "make room, or give a part of it")
    types = " ".join(type.__name__ for type in type(error).__mro__)
    for failure in HUB_FAILURES:
        if re.search(failure.types, types):
            return Problem("file", failure.problem.format(id=id), failure.fix.format(id=id))
    first_line = (str(error).strip().splitlines() or ["no message"])[0]
    return Problem("file", f"{type(error).__name__}: {first_line[:300]}", OTHER_SOURCE)


if __name__ == "__main__":
    main()
