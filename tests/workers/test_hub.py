"""Children ask a Hub that does not answer once, and give up soon."""

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from core.dataset.intake import import_dataset
from core.dataset.preview import Preview
from core.job import DatasetError, ModelNotFound, PreviewError
from core.models import find as models
from core.models import find_model
from tests.builders.paths import DEMO


@dataclass
class SilentServer:
    """Server that hangs up on every caller, and counts them."""

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
def silent_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SilentServer]:
    """Give a server that the children take for the Hub."""
    made = SilentServer()
    thread = threading.Thread(target=made.hang_up)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", made.address)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    yield made
    made.server.shutdown(socket.SHUT_RDWR)
    made.server.close()
    thread.join()


def test_a_preview_does_not_wait_for_a_silent_hub(silent_hub: SilentServer) -> None:
    says = "owner/model is not on this machine, and the Hugging Face Hub cannot"
    with (
        Preview(DEMO / "data.jsonl", "owner/model") as preview,
        pytest.raises(PreviewError, match=says),
    ):
        preview.info()
    assert silent_hub.num_calls == 1


def test_an_import_does_not_wait_for_a_silent_hub(silent_hub: SilentServer, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be reached from here"):
        import_dataset("owner/name", tmp_path)
    assert silent_hub.num_calls == 1


def test_a_model_is_asked_for_once_a_moment(
    silent_hub: SilentServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", silent_hub.address)
    monkeypatch.setattr(models, "HUB_RETRY_SECONDS", 10**9)
    models.hub_answers.cache_clear()
    for _edit in range(3):
        with pytest.raises(ModelNotFound, match="cannot be reached"):
            find_model("owner/model")
    models.hub_answers.cache_clear()
    assert silent_hub.num_calls == 1
