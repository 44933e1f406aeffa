"""First bytes of a file: text, or something else under a wrong name. Unpacks nothing."""

from dataclasses import dataclass

HEAD_BYTES = 4096
FEWEST_WIDE_BYTES = 8
"""Bytes that show whether every second one is 0."""
UNPACK = "unpack it first"
GIVE_TEXT = "give a text file with one JSON object a line"
DOWNLOAD = "download the file itself, not the page about it"


@dataclass(frozen=True)
class Signature:
    """Bytes that a kind of file begins with."""

    magic: bytes
    name: str
    fix: str


SIGNATURES = (
    Signature(b"\x1f\x8b", "gzip data", f"{UNPACK}: gunzip FILE"),
    Signature(b"PK\x03\x04", "a zip archive", UNPACK),
    Signature(b"BZh", "bzip2 data", f"{UNPACK}: bunzip2 FILE"),
    Signature(b"\xfd7zXZ\x00", "xz data", f"{UNPACK}: unxz FILE"),
    Signature(b"\x28\xb5\x2f\xfd", "zstd data", f"{UNPACK}: unzstd FILE"),
    Signature(b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    Signature(b"PAR1", "a Parquet table", "import it, which makes JSON lines of it"),
    Signature(b"ARROW1", "an Arrow table", "save it as JSON lines or Parquet"),
    Signature(b"\xff\xff\xff\xff", "an Arrow table", "save it as JSON lines or Parquet"),
    Signature(b"SQLite format 3\x00", "a database", "export its rows as JSON lines"),
    Signature(b"\x89PNG\r\n", "a PNG image", GIVE_TEXT),
    Signature(b"\xff\xd8\xff", "a JPEG image", GIVE_TEXT),
    Signature(b"GIF8", "a GIF image", GIVE_TEXT),
    Signature(b"%PDF", "a PDF document", GIVE_TEXT),
    Signature(b"\x7fELF", "a program", GIVE_TEXT),
    Signature(b"MZ\x90\x00", "a program", GIVE_TEXT),
    Signature(b"\x80\x04\x95", "a Python pickle", "save the rows as JSON lines"),
    Signature(b"<!DOCTYPE", "a web page", DOWNLOAD),
    Signature(b"<html", "a web page", DOWNLOAD),
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
"""(first bytes of text in units of two or four bytes, its encoding), the longer first."""


def foreign_signature(head: bytes) -> Signature | None:
    """Return the kind of file that these first bytes belong to; None for text."""
    for signature in SIGNATURES:
        if head.startswith(signature.magic):
            return signature
    return None


def wide_encoding(head: bytes) -> str | None:
    """Return Python's name of the encoding, if the text is in units of two or four bytes."""
    for magic, encoding in WIDE_ENCODINGS:
        if head.startswith(magic):
            return encoding
    # Text of usual letters, without a mark: every second byte is 0.
    for zeros, letters, encoding in ((1, 0, "utf-16-le"), (0, 1, "utf-16-be")):
        are_zero = len(head) >= FEWEST_WIDE_BYTES and not any(head[zeros:FEWEST_WIDE_BYTES:2])
        if are_zero and all(head[letters:FEWEST_WIDE_BYTES:2]):
            return encoding
    return None
