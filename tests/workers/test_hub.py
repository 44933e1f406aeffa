"""A Hub that does not answer: one question, no second one, and the reason at once."""

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from core.dataset import import_dataset
from core.dataset.preview import Preview
from core.job import DatasetError, ModelNotFound, PreviewError
from core.models import find as models
from core.models import find_model
from tests.builders.paths import DEMO


@dataclass
class Deaf:
    """A server that hangs up on everybody, and counts them."""

    server: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    num_calls: int = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.getsockname()[1]}"

    def hang_up(self) -> None:
        while True:
            try:
                caller, _ = self.server.accept()
            except OSError:
                return
            self.num_calls += 1  # before the caller learns of it
            caller.close()


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Deaf]:
    """What the children take for the Hub."""
    made = Deaf()
    thread = threading.Thread(target=made.hang_up)
    thread.start()
    for name, value in {
        "HF_ENDPOINT": made.address,
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "0",
    }.items():
        monkeypatch.setenv(name, value)
    yield made
    made.server.shutdown(socket.SHUT_RDWR)
    made.server.close()
    thread.join()


def test_rows_are_not_waited_for_where_the_hub_does_not_answer(deaf: Deaf) -> None:
    with (
        Preview(DEMO / "data.jsonl", "owner/model") as preview,
        pytest.raises(
            PreviewError,
            match="owner/model is not on this machine, and the Hugging Face Hub cannot",
        ),
    ):
        preview.about()
    assert deaf.num_calls == 1


def test_a_dataset_is_not_waited_for_where_the_hub_does_not_answer(
    deaf: Deaf, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match="cannot be reached from here"):
        import_dataset("owner/name", tmp_path)
    assert deaf.num_calls == 1


def test_a_model_is_asked_for_once_a_moment(deaf: Deaf, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", deaf.address)
    monkeypatch.setattr(models, "HUB_RETRY_SECONDS", 10**9)
    models.hub_answers.cache_clear()
    for _edit in range(3):
        with pytest.raises(ModelNotFound, match="cannot be reached"):
            find_model("owner/model")
    models.hub_answers.cache_clear()
    assert deaf.num_calls == 1
