"""Test how a node tells that it does not see a folder, with nodes that are functions."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from core.runs.engines import why_not_seen


def sees(words: Sequence[str]) -> Sequence[str]:
    """Print the file of the probe, as a node on the same storage does."""
    return [f"{Path(words[1]).read_text()}node-1\n"]


def test_node_that_prints_the_file_sees_the_folder(tmp_path: Path) -> None:
    assert why_not_seen(tmp_path, sees) is None


def test_node_that_prints_its_name_alone_is_named(tmp_path: Path) -> None:
    problem = why_not_seen(tmp_path, lambda _words: ["node-7\n"])
    assert problem
    assert problem.problem == f"the node node-7 does not see {tmp_path}"


def test_one_node_of_several_that_does_not_see_it_is_enough(tmp_path: Path) -> None:
    assert why_not_seen(tmp_path, lambda words: [*sees(words), "node-2\n"])


@pytest.mark.parametrize("answers", [(), ("",), ("\n",)])
def test_nodes_that_do_not_answer_say_nothing(tmp_path: Path, answers: Sequence[str]) -> None:
    assert why_not_seen(tmp_path, lambda _words: answers) is None


def test_nothing_of_the_probe_stays(tmp_path: Path) -> None:
    why_not_seen(tmp_path, sees)
    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_written_to_is_no_fault_of_a_node(tmp_path: Path) -> None:
    assert why_not_seen(tmp_path / "missing", sees) is None
