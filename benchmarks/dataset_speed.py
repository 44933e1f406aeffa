"""Measure how fast a dataset is checked, and in how much memory.

    python benchmarks/dataset_speed.py [--megabytes 200] [--rows 0]

Prints, for several kinds of rows, megabytes (10^6 bytes) per second of one core's time: each JSON
library by itself on the lines, the byte pass (cut, parse, keys, depth), and the whole check; then
the memory of a process that checked one large file of `--rows` short rows. Asserts nothing. msgspec
and simdjson are measured if installed.
"""

import argparse
import gc
import importlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.dataset import check_file
from core.dataset.reading.lines import ByteSource, blocks_of_lines, parse_block

ROOT = Path(__file__).resolve().parent.parent
MEGABYTE = 10**6
SYLLABLES = (
    "ta",
    "lor",
    "sil",
    "k",
    "ne",
    "dle",
    "thr",
    "ead",
    "co",
    "at",
    "mar",
    "ket",
    "é",
    "o",
    "un",
)
REPEATS = 3
ROWS_AT_ONCE = 500


def text(chance: random.Random, num_words: int) -> str:
    """Return words without a meaning."""
    words = []
    for _ in range(num_words):
        words.append("".join(chance.choices(SYLLABLES, k=chance.randint(1, 4))))
    return " ".join(words)


def chat(chance: random.Random) -> dict[str, Any]:
    """Return a question and its answer, about 600 bytes."""
    question, answer = text(chance, 25), text(chance, 60)
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


def turns(chance: random.Random) -> dict[str, Any]:
    """Return a conversation of ten turns with code in it."""
    roles = ("user", "assistant") * 5
    return {
        "messages": [
            {"role": role, "content": text(chance, 30) + '\nprint({"a": [1]})'} for role in roles
        ]
    }


def short(chance: random.Random) -> dict[str, Any]:
    """Return a row of about 100 bytes."""
    return {"question": text(chance, 6), "answer": text(chance, 5)}


def tools(chance: random.Random) -> dict[str, Any]:
    """Return a call of a tool and its result, about 900 bytes."""
    call = {
        "type": "function",
        "function": {"name": "look_up", "arguments": {"word": text(chance, 2)}},
    }
    parameters = {
        "type": "object",
        "properties": {"word": {"type": "string", "description": text(chance, 8)}},
    }
    return {
        "tools": [{"type": "function", "function": {"name": "look_up", "parameters": parameters}}],
        "messages": [
            {"role": "user", "content": text(chance, 20)},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "name": "look_up", "content": text(chance, 20)},
            {"role": "assistant", "content": text(chance, 30)},
        ],
    }


def plain(chance: random.Random) -> dict[str, Any]:
    """Return a page of text, about 4 kB."""
    return {"text": text(chance, 600)}


CORPORA: tuple[Callable[[random.Random], dict[str, Any]], ...] = (chat, turns, short, tools, plain)


def libraries() -> Iterator[tuple[str, Callable[[bytes], Any]]]:
    """Yield every JSON library that is installed."""
    yield "json", json.loads
    for module, function in (
        ("orjson", "loads"),
        ("msgspec.json", "decode"),
        ("simdjson", "loads"),
    ):
        try:
            yield module.split(".")[0], getattr(importlib.import_module(module), function)
        except ImportError:
            continue


def write(path: Path, make: Callable[[random.Random], dict[str, Any]], num_bytes: int) -> None:
    """Write a file of about so many bytes."""
    chance, size = random.Random(0), 0
    with path.open("wb") as file:
        while size < num_bytes:
            for _ in range(ROWS_AT_ONCE):
                line = json.dumps(make(chance), ensure_ascii=False) + "\n"
                size += file.write(line.encode())


def speed(work: Callable[[], object], num_bytes: int) -> float:
    """Return megabytes per second of processor time, the best of a few tries."""
    seconds = []
    for _ in range(REPEATS):
        begun = time.process_time()
        work()
        seconds.append(time.process_time() - begun)
    return num_bytes / min(seconds) / MEGABYTE


def decode_all(decode: Callable[[bytes], Any], lines: Sequence[bytes]) -> None:
    """Decode every line with one library."""
    for line in lines:
        decode(line)


def byte_pass(path: Path) -> None:
    """Parse a file as the check does before it looks at the rows."""
    with path.open("rb") as file:
        for block in blocks_of_lines(ByteSource(file)):
            for _line in parse_block(block):
                pass


def measure(path: Path) -> Mapping[str, float]:
    """Return megabytes per second of every step, by name."""
    num_bytes = path.stat().st_size
    lines = path.read_bytes().split(b"\n")[:-1]
    found = {
        name: speed(lambda decode=decode: decode_all(decode, lines), num_bytes)
        for name, decode in libraries()
    }
    found["byte pass"] = speed(lambda: byte_pass(path), num_bytes)
    found["whole check"] = speed(lambda: check_file(path), num_bytes)
    return {"bytes a row": num_bytes / len(lines)} | found


def write_short_rows(path: Path, num_rows: int) -> None:
    """Write a file of so many rows of about 50 bytes."""
    with path.open("wb") as file:
        for number in range(num_rows):
            file.write(b'{"question": "Question %d?", "answer": "Answer %d."}\n' % (number, number))


def memory_mib(path: Path) -> int:
    """Return the peak memory of a process that checks a file, in MiB. Needs /proc, as on Linux."""
    script = (
        "import sys; from pathlib import Path; from core.dataset import check_file;"
        "check_file(Path(sys.argv[1]));"
        "print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
    )
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return int(done.stdout) // 1024


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description="How fast a dataset is checked.")
    arguments.add_argument("--megabytes", type=int, default=100, help="size of each file")
    arguments.add_argument(
        "--rows",
        type=int,
        default=5_000_000,
        help="short rows of the file for the memory; 0 for none",
    )
    asked = arguments.parse_args()
    gc.set_threshold(100_000)  # as core/workers/dataset does
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        for number, make in enumerate(CORPORA):
            write(path, make, asked.megabytes * MEGABYTE)
            found = measure(path)
            if number == 0:
                names = "".join(f"{name:>13}" for name in found)
                print(f"{'MB/s of one core':<18}{names}")
            values = "".join(f"{value:>13,.0f}" for value in found.values())
            print(f"{make.__name__:<18}{values}", flush=True)
        if asked.rows:
            write_short_rows(path, asked.rows)
            rows = f"{asked.rows:,} short rows ({path.stat().st_size / MEGABYTE:,.0f} MB)"
            print(f"memory for {rows}: {memory_mib(path):,} MiB")


if __name__ == "__main__":
    main()
