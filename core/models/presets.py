"""The catalogue: GPUs, base models and the settings of the demo. The only reader of presets/; never writes there.

Every reader raises PresetError, which names the file, the table and the key, for a file that does not say what it must.
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

T = TypeVar("T")


@dataclass(frozen=True)
class Gpu:
    """The facts of a card that an estimate needs."""

    id: str
    name: str
    capacity_bytes: int
    """Usable memory: what NVML calls the total."""
    compute_capability: tuple[int, int]
    supports_bf16: bool
    """True if it computes in bfloat16, rather than emulating it."""
    memory_bandwidth_bytes_per_second: float
    flops: float
    """Floating-point operations per second of the tensor cores: dense, 16 bits, FP32 accumulate."""
    usd_per_hour: float | None
    """What renting one costs; None if no price is known."""
    sources: tuple[str, ...]
    """Where the numbers are from, each opening with what it is the source of."""
    lacks_for_compiling: str = ""
    """Why torch.compile can build no kernels for it, if it is this machine's; empty where it can."""


@dataclass(frozen=True)
class BaseModel:
    """A model to start from."""

    id: str
    """Its id on the Hugging Face Hub."""
    name: str
    family: str
    license: str
    num_parameters: int
    """As published."""
    shape: ModelShape
    source: str
    config: Mapping[str, object] = field(repr=False, hash=False)
    """What its config.json says on the shape."""


@cache
def gpus() -> Mapping[str, Gpu]:
    """The cards of presets/gpus.toml by id, in file order."""
    return read_gpus(PRESETS_DIR / "gpus.toml")


@cache
def models() -> Mapping[str, BaseModel]:
    """The base models of presets/models.toml by Hub id, in file order."""
    return read_models(PRESETS_DIR / "models.toml")


@cache
def demo_fields(stage: str = "sft") -> Mapping[str, object]:
    """Return the job fields of the demo for a stage: JobSpec field -> value."""
    file = _Table(DEMO_SETTINGS, "", _load(DEMO_SETTINGS))
    fields = dict(file.table("first_stage").values)
    if stage != DEFAULT_STAGE:
        fields |= file.table("other_stages").values
    return MappingProxyType(fields)


def read_gpus(path: Path) -> Mapping[str, Gpu]:
    """The cards in a file like presets/gpus.toml. Raises PresetError."""
    return MappingProxyType({table.name: _gpu(table) for table in _tables(path)})


def read_models(path: Path) -> Mapping[str, BaseModel]:
    """The base models in a file like presets/models.toml. Raises PresetError."""
    return MappingProxyType({table.name: _base_model(table) for table in _tables(path)})


@dataclass(frozen=True)
class _Table:
    """A TOML table that knows where it stands, so that every complaint can say so."""

    path: Path
    name: str
    values: Mapping[str, object]

    def error(self, key: str, problem: str) -> PresetError:
        return _preset_error(self.path, self.name, key, problem)

    def refuse_keys_other_than(self, known: tuple[str, ...]) -> None:
        """A mistyped key would otherwise be the same as none."""
        for key in self.values:
            if key not in known:
                raise self.error(key, f"unknown key; known are {', '.join(known)}")

    def text(self, key: str) -> str:
        if not (text := self._of(str, "a text", key)).strip():
            raise self.error(key, "is empty")
        return text

    def flag(self, key: str) -> bool:
        return self._of(bool, "true or false", key)

    def whole(self, key: str) -> int:
        return self._above_zero(key, self._of(int, "a whole number", key))

    def number(self, key: str) -> float:
        integer = type(self.values.get(key)) is int
        return self._above_zero(key, float(self._of(int if integer else float, "a number", key)))

    def texts(self, key: str) -> tuple[str, ...]:
        texts = self._of(list, "a list of texts", key)
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise self.error(key, f"{texts!r} is not a list of texts")
        return tuple(texts)

    def table(self, key: str) -> "_Table":
        name = f"{self.name}.{key}" if self.name else key
        return _Table(self.path, name, self._of(dict, "a table", key))

    def _of(self, kind: type[T], says: str, key: str) -> T:
        if key not in self.values:
            raise self.error(key, "is missing")
        value = self.values[key]
        if type(value) is not kind:  # not isinstance: true is an int
            raise self.error(key, f"{value!r} is not {says}")
        return value

    def _above_zero(self, key: str, value: T) -> T:
        if not (isinstance(value, int | float) and 0 < value < math.inf):
            raise self.error(key, f"{value!r} is not above 0")
        return value


def _preset_error(path: Path, table: str, key: str, problem: str) -> PresetError:
    place = (path.name, f"[{table}]" if table else "", key)
    return PresetError(Problem(": ".join(filter(None, place)), problem, "correct the file"))


def _load(path: Path) -> Mapping[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _preset_error(path, "", "", f"cannot be read: {error}") from None


def _tables(path: Path) -> tuple[_Table, ...]:
    file = _Table(path, "", _load(path))
    return tuple(file.table(name) for name in file.values)


GPU_KEYS = (
    "name",
    "memory_mib",
    "compute_capability",
    "bf16",
    "memory_bandwidth_gb_per_second",
    "tflops",
    "usd_per_hour",
    "sources",
)
MODEL_KEYS = ("name", "family", "license", "num_parameters", "source", "config")


def _gpu(table: _Table) -> Gpu:
    table.refuse_keys_other_than(GPU_KEYS)
    return Gpu(
        id=table.name,
        name=table.text("name"),
        capacity_bytes=table.whole("memory_mib") * MIB,
        compute_capability=_compute_capability(table),
        supports_bf16=table.flag("bf16"),
        memory_bandwidth_bytes_per_second=table.number("memory_bandwidth_gb_per_second") * GB,
        flops=table.number("tflops") * TFLOP,
        usd_per_hour=table.number("usd_per_hour") if "usd_per_hour" in table.values else None,
        sources=table.texts("sources"),
    )


def _compute_capability(table: _Table) -> tuple[int, int]:
    major, dot, minor = (text := table.text("compute_capability")).partition(".")
    if not (dot and major.isdecimal() and minor.isdecimal()):
        raise table.error("compute_capability", f'{text!r} is not written like "8.9"')
    return int(major), int(minor)


def _base_model(table: _Table) -> BaseModel:
    table.refuse_keys_other_than(MODEL_KEYS)
    return BaseModel(
        id=table.name,
        name=table.text("name"),
        family=table.text("family"),
        license=table.text("license"),
        num_parameters=table.whole("num_parameters"),
        shape=_shape(table),
        source=table.text("source"),
        config=table.table("config").values,
    )


def _shape(table: _Table) -> ModelShape:
    try:
        return ModelShape.from_config(table.table("config").values)
    except UnknownArchitecture as error:
        raise table.error("config", error.reason) from None
    except ValueError as error:
        raise table.error("config", str(error)) from None
