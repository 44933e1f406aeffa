"""Catalogue of GPUs, base models and the settings of the demo. The only reader of presets/.

Readers raise PresetError, which names file, table and key, for an entry that is missing or wrong.
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from core.job import PresetError, Problem, UnknownArchitecture
from core.models.shapes import ModelShape
from core.training.contract.stages import DEFAULT_STAGE

PRESETS_DIR = Path(__file__).resolve().parent.parent.parent / "presets"
DEMO_SETTINGS = PRESETS_DIR / "demo" / "settings.toml"
MIB = 2**20
GB = 10**9
TFLOP = 10**12
GPU_KEYS = {
    "name",
    "memory_mib",
    "compute_capability",
    "bf16",
    "memory_bandwidth_gb_per_second",
    "tflops",
    "link_gb_per_second",
    "usd_per_hour",
    "sources",
}
MODEL_KEYS = {"name", "family", "license", "num_parameters", "source", "config"}
T = TypeVar("T")


@dataclass(frozen=True)
class Gpu:
    """Facts of a graphics card that an estimate needs."""

    id: str
    name: str
    capacity_bytes: int
    """Usable memory, which NVML calls the total."""
    compute_capability: tuple[int, int]
    supports_bf16: bool
    """True if it computes in bfloat16 instead of emulating it."""
    memory_bandwidth_bytes_per_second: float
    flops: float
    """Floating-point operations per second of the tensor cores: dense, 16 bits, FP32 accumulate."""
    usd_per_hour: float | None
    """Price of renting one; None if it is not known."""
    sources: tuple[str, ...]
    """Sources of the numbers, each beginning with the number's name."""
    link_bytes_per_second: float | None = None
    """Rate to other cards over NVLink, one direction; None if they talk over PCIe."""
    lacks_for_compiling: str = ""
    """Why this machine cannot compile for it; "" if it can, or if it is another machine's."""


@dataclass(frozen=True)
class ModelPreset:
    """Base model of the catalogue."""

    id: str
    """Id on the Hugging Face Hub."""
    name: str
    family: str
    license: str
    num_parameters: int
    """As published."""
    shape: ModelShape
    source: str
    config: Mapping[str, object] = field(repr=False, hash=False)
    """Keys of its config.json that determine its shape."""


@cache
def gpus() -> Mapping[str, Gpu]:
    """Return the GPUs of presets/gpus.toml by id, in file order."""
    return read_gpus(PRESETS_DIR / "gpus.toml")


@cache
def models() -> Mapping[str, ModelPreset]:
    """Return the base models of presets/models.toml by Hub id, in file order."""
    return read_models(PRESETS_DIR / "models.toml")


@cache
def demo_fields(stage: str = "sft") -> Mapping[str, object]:
    """Return the job fields of the demo for a stage: JobSpec field -> value."""
    tables = _tables(DEMO_SETTINGS)
    fields = dict(tables["first_stage"].values)
    if stage != DEFAULT_STAGE:
        fields |= tables["other_stages"].values
    return MappingProxyType(fields)


def read_gpus(path: Path) -> Mapping[str, Gpu]:
    """Read a file like presets/gpus.toml. Raises PresetError."""
    return MappingProxyType({name: _gpu(table) for name, table in _tables(path).items()})


def read_models(path: Path) -> Mapping[str, ModelPreset]:
    """Read a file like presets/models.toml. Raises PresetError."""
    return MappingProxyType({name: _model(table) for name, table in _tables(path).items()})


@dataclass(frozen=True)
class _Table:
    """TOML table that knows its file and name, so that every error can state them."""

    path: Path
    name: str
    values: Mapping[str, object]

    def error(self, key: str, problem: str) -> PresetError:
        table = f"[{self.name}]" if self.name else ""
        place = ": ".join(filter(None, (self.path.name, table, key)))
        return PresetError(Problem(place, problem, "correct the file"))

    def refuse_unknown_keys(self, known: set[str]) -> None:
        """Raise PresetError for a mistyped key, which would otherwise be ignored."""
        for key in self.values:
            if key not in known:
                raise self.error(key, f"unknown key; known are {', '.join(sorted(known))}")

    def text(self, key: str) -> str:
        text = self._of(str, "a text", key)
        if not text.strip():
            raise self.error(key, "is empty")
        return text

    def flag(self, key: str) -> bool:
        return self._of(bool, "true or false", key)

    def whole(self, key: str) -> int:
        return self._above_zero(key, self._of(int, "a whole number", key))

    def number(self, key: str) -> float:
        kind = int if type(self.values.get(key)) is int else float
        return self._above_zero(key, float(self._of(kind, "a number", key)))

    def texts(self, key: str) -> tuple[str, ...]:
        texts = self._of(list, "a list of texts", key)
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise self.error(key, f"{texts!r} is not a list of texts")
        return tuple(texts)

    def table(self, key: str) -> "_Table":
        name = f"{self.name}.{key}" if self.name else key
        return _Table(self.path, name, self._of(dict, "a table", key))

    def _of(self, kind: type[T], description: str, key: str) -> T:
        if key not in self.values:
            raise self.error(key, "is missing")
        value = self.values[key]
        if type(value) is not kind:  # not isinstance, because True is an int
            raise self.error(key, f"{value!r} is not {description}")
        return value

    def _above_zero(self, key: str, value: T) -> T:
        if not (isinstance(value, int | float) and 0 < value < math.inf):
            raise self.error(key, f"{value!r} is not above 0")
        return value


def _tables(path: Path) -> Mapping[str, _Table]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _Table(path, "", {}).error("", f"cannot be read: {error}") from None
    file = _Table(path, "", values)
    return {name: file.table(name) for name in values}


def _gpu(table: _Table) -> Gpu:
    table.refuse_unknown_keys(GPU_KEYS)
    usd_per_hour = None
    if "usd_per_hour" in table.values:
        usd_per_hour = table.number("usd_per_hour")
    link_bytes_per_second = None
    if "link_gb_per_second" in table.values:
        link_bytes_per_second = table.number("link_gb_per_second") * GB
    return Gpu(
        id=table.name,
        name=table.text("name"),
        capacity_bytes=table.whole("memory_mib") * MIB,
        compute_capability=_compute_capability(table),
        supports_bf16=table.flag("bf16"),
        memory_bandwidth_bytes_per_second=table.number("memory_bandwidth_gb_per_second") * GB,
        flops=table.number("tflops") * TFLOP,
        usd_per_hour=usd_per_hour,
        sources=table.texts("sources"),
        link_bytes_per_second=link_bytes_per_second,
    )


def _compute_capability(table: _Table) -> tuple[int, int]:
    text = table.text("compute_capability")
    major, _, minor = text.partition(".")
    if not (major.isdecimal() and minor.isdecimal()):
        raise table.error("compute_capability", f'{text!r} is not written like "8.9"')
    return int(major), int(minor)


def _model(table: _Table) -> ModelPreset:
    table.refuse_unknown_keys(MODEL_KEYS)
    config = table.table("config").values
    try:
        shape = ModelShape.from_config(config)
    except UnknownArchitecture as error:
        raise table.error("config", error.reason) from None
    except ValueError as error:
        raise table.error("config", str(error)) from None
    return ModelPreset(
        id=table.name,
        name=table.text("name"),
        family=table.text("family"),
        license=table.text("license"),
        num_parameters=table.whole("num_parameters"),
        shape=shape,
        source=table.text("source"),
        config=config,
    )
