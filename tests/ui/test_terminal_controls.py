"""Texts of models, rows and files cannot control the terminal."""

import pytest

from ui.terminal.printing import harmless, out, say, table

HOSTILE = "\x1b]0;owned\x07\x9b2J\x08ok\r\n"
SHOWN = r"\x1b]0;owned\x07\x9b2J\x08ok"


def test_controls_are_written_out_and_languages_stay() -> None:
    assert harmless(HOSTILE) == f"{SHOWN}\n"
    assert harmless("a\tb\u00a0c\u200dd\u0663") == "a\tb\u00a0c\u200dd\u0663"


def test_no_printed_text_controls_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    out.print(HOSTILE)
    out.print(table(("question", "answer"), [("Who?", HOSTILE)]))
    printed = capsys.readouterr()
    assert printed.err.count(SHOWN) == 1
    assert printed.out.count(SHOWN) == 2
    assert not {"\x1b", "\x07", "\x9b", "\x08"} & set(printed.out + printed.err)
