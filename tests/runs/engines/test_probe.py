"""Test how it is told that a node does not see a folder, with nodes that are functions."""

from collections.abc import Sequence
from pathlib import Path

from core.runs.engines import why_not_seen


def sees(file: Path) -> Sequence[str]:
    """Find the file of the probe, as a node on the same storage does."""
    assert file.read_text()
    return ()


def test_node_that_finds_the_file_sees_the_folder(tmp_path: Path) -> None:
    assert why_not_seen(tmp_path, sees) is None


def test_node_that_does_not_find_it_is_named(tmp_path: Path) -> None:
    problem = why_not_seen(tmp_path, lambda _file: ["the node node-7"])
    assert problem
    assert problem.problem == f"the node node-7 does not see {tmp_path}"


def test_nothing_of_the_probe_stays(tmp_path: Path) -> None:
    why_not_seen(tmp_path, sees)
    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_written_to_is_no_fault_of_a_node(tmp_path: Path) -> None:
    assert why_not_seen(tmp_path / "missing", sees) is None
