"""What a file is by its first bytes: text that can be read, or something else under a wrong name. Unpacks nothing."""

from dataclasses import dataclass

HEAD_BYTES = 4096


@dataclass(frozen=True)
class Signature:
    """Bytes that a kind of file begins with."""

    magic: bytes
    name: str
    fix: str


SIGNATURES = (
    Signature(b"\x1f\x8b", "gzip data", "unpack it first: gunzip FILE"),
    Signature(b"PK\x03\x04", "a zip archive", "unpack it first"),
    Signature(b"BZh", "bzip2 data", "unpack it first: bunzip2 FILE"),
    Signature(b"\xfd7zXZ\x00", "xz data", "unpack it first: unxz FILE"),
    Signature(b"\x28\xb5\x2f\xfd", "zstd data", "unpack it first: unzstd FILE"),
    Signature(b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    Signature(b"PAR1", "a Parquet table", "take it in as a dataset, which makes JSON lines of it"),
    Signature(b"ARROW1", "an Arrow table", "save it as JSON lines"),
    Signature(b"SQLite format 3\x00", "a database", "export its rows as JSON lines"),
    Signature(b"\x89PNG\r\n", "a PNG image", "give a text file with one JSON object a line"),
    Signature(b"\xff\xd8\xff", "a JPEG image", "give a text file with one JSON object a line"),
    Signature(b"GIF8", "a GIF image", "give a text file with one JSON object a line"),
    Signature(b"%PDF", "a PDF document", "give a text file with one JSON object a line"),
    Signature(b"\x7fELF", "a program", "give a text file with one JSON object a line"),
    Signature(b"MZ\x90\x00", "a program", "give a text file with one JSON object a line"),
    Signature(b"\x80\x04\x95", "a Python pickle", "save the rows as JSON lines"),
    Signature(b"<!DOCTYPE", "a web page", "download the file itself, not the page about it"),
    Signature(b"<html", "a web page", "download the file itself, not the page about it"),
    Signature(
        b"version https://git-lfs", "a Git LFS pointer", "fetch the file itself: git lfs pull"
    ),
)

WIDE_ENCODINGS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
    (b"{\x00", "utf-16-le"),
    (b"\x00{", "utf-16-be"),
    (b"[\x00", "utf-16-le"),
    (b"\x00[", "utf-16-be"),
)
"""Beginnings of text in units of two or four bytes, the longer first."""


def foreign_signature(head: bytes) -> Signature | None:
    """The kind of file that these first bytes belong to, if it is not text."""
    return next((each for each in SIGNATURES if head.startswith(each.magic)), None)


def wide_encoding(head: bytes) -> str | None:
    """Python's name of the encoding, if the text is written in units of two or four bytes."""
    return next((name for magic, name in WIDE_ENCODINGS if head.startswith(magic)), None)
