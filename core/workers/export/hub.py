"""Send a result to the Hugging Face Hub. The token is neither written nor logged."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from core.after_training.export.card import CARD, card_of
from core.after_training.export.loss_plot import LOSS_PLOT, loss_plot
from core.after_training.export.records import data_files
from core.runs import Home, read
from core.training.contract.failures import TrainingError
from core.workers.export.model_files import LICENCES
from core.workers.export.task import ExportTask

HUB_SENDS = (
    *("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.md", "*.gguf"),
    *LICENCES,
    LOSS_PLOT,
)
"""Files that are sent, with the rows only if that is asked for; others of the folder, such as
pickles, never are."""


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
        api.upload_folder(
            repo_id=request.repo_id,
            folder_path=task.files,
            allow_patterns=patterns,
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
