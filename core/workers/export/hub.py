"""Send a result to the Hugging Face Hub. The token is neither written nor logged."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from core.after_training.export.card import CARD, card_of
from core.after_training.export.loss_plot import LOSS_PLOT, loss_plot
from core.after_training.export.records import DATA_FILES, data_files
from core.runs import Home, read
from core.training.contract.failures import TrainingError
from core.training.contract.files import sha256_of
from core.workers.export.model_files import LICENCES
from core.workers.export.task import ExportTask

HUB_SENDS = (
    *("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.md", "*.gguf"),
    *LICENCES,
    LOSS_PLOT,
)
"""Files that are sent, with the rows only if that is asked for; others of the folder, such as
pickles, never are."""
PUBLIC = (
    "It is not sent: {repo} is there already, and everybody can read it. Make it private on the "
    "Hub, name another, or send it as public."
)


def send(task: ExportTask, token: str) -> str:
    """Send the files of the export with a model card; return their address.

    What the Hub has already is not sent again. Raises TrainingError.
    """
    request = task.request
    run = _run(task)
    card = card_of(run, request.repo_id, request.sent, with_data=request.with_data)
    (task.files / CARD).write_text(card, encoding="utf-8")
    if plot := loss_plot(run):
        (task.files / LOSS_PLOT).write_text(plot, encoding="utf-8")
    patterns = [*HUB_SENDS, *_copy_rows(task)]
    task.enter(f"Sending to {request.repo_id}")
    api = HfApi(token=token or None)
    try:
        url = api.create_repo(request.repo_id, private=request.is_private, exist_ok=True)
        if request.is_private and not api.model_info(request.repo_id).private:
            raise TrainingError(PUBLIC.format(repo=request.repo_id))  # it was there before
        api.upload_folder(
            repo_id=request.repo_id,
            folder_path=task.files,
            allow_patterns=patterns,
            delete_patterns=_rows_to_delete(task, api),
            commit_message="Add the model",
        )
    except (HfHubHTTPError, RepositoryNotFoundError) as error:
        raise TrainingError(f"The Hub refuses it: {_reason(error)}.") from None
    except (OSError, ValueError) as error:
        raise TrainingError(f"The Hub cannot be reached or refuses it: {error}.") from None
    return str(url)


def _copy_rows(task: ExportTask) -> Iterator[str]:
    """Copy the rows of the training beside the model if they shall be sent; yield their names."""
    if not task.request.with_data:
        return
    folder = task.files / "data"
    folder.mkdir(exist_ok=True)
    for path in data_files(Path(task.request.run_folder)):
        shutil.copyfile(path, folder / path.name)
        yield f"data/{path.name}"


def _rows_to_delete(task: ExportTask, api: HfApi) -> list[str] | None:
    """Return the rows that an earlier upload of this run has sent and this one shall not have; None
    if there are none. Note what becomes of them, and of other files of their names."""
    request = task.request
    if request.with_data:
        return None
    ours = {f"data/{path.name}": path for path in data_files(Path(request.run_folder))}
    try:
        found = api.get_paths_info(request.repo_id, [f"data/{name}" for name in DATA_FILES])
    except RevisionNotFoundError:  # nothing was ever sent there
        return None
    there = {each.path: each for each in found if isinstance(each, RepoFile)}
    same = [name for name, each in there.items() if name in ours and _is_same(each, ours[name])]
    others = [name for name in there if name not in same]
    if same:
        task.notes.append(
            f"Deleted from {request.repo_id}: {', '.join(same)}, which an earlier upload had sent. "
            "The history of the repository still has them: delete the repository to remove them."
        )
    if others:
        task.notes.append(
            f"{request.repo_id} still has {', '.join(others)}, of another upload: delete them "
            "there if they shall not be read."
        )
    return same or None


def _is_same(there: RepoFile, path: Path) -> bool:
    """Return True if the Hub has the content of a file, by the hash that it keeps."""
    if there.lfs:
        return bool(there.lfs.sha256 == sha256_of(path))
    with path.open("rb") as file:
        return bool(there.blob_id == git_hash(file.read()))  # larger files have the other hash


def _reason(error: HfHubHTTPError) -> str:
    status = error.response.status_code if error.response is not None else 0
    reasons = {
        401: "the token is missing or wrong",
        403: "the token may not write there",
        404: "there is no such repository or owner",
        409: "the repository is being changed; try again",
    }
    return reasons.get(status, f"{type(error).__name__} {status}")


def _run(task: ExportTask) -> Any:
    folder = Path(task.request.run_folder)
    return read(Home(folder.parent.parent), folder.name)
