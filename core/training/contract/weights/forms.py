"""FORMS: forms in which quantized models are published, and what a training does with each.

A form is named by `quantization_config` in config.json. Reads no weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from types import MappingProxyType
from typing import Literal

from ..methods import METHODS

Use = Literal["as it is", "dequantized", "refused"]
QUANTIZATION_KEYS = ("quantization_config", "compression_config")


@dataclass(frozen=True)
class Form:
    """Form of quantized weights."""

    id: str
    title: str
    use: Use
    """as it is: adapters train over the stored numbers. dequantized: loaded in the job's precision,
    and quantized again by a method with a quantized base. refused: a training cannot use it."""
    bits: tuple[int, ...] = ()
    """Bits per weight that it may have; of a form that is used as it is, those of a method."""
    packages: tuple[tuple[str, str], ...] = ()
    """(module, package) of what must be installed to load it."""
    refusal: str = "cannot be trained"
    """Sentence end that says why it is refused."""

    @property
    def fix(self) -> str:
        """Way out where no method can use the form."""
        return "choose the 16-bit model that it was made from"

    @property
    def missing_packages(self) -> list[str]:
        """Names of the packages that are not installed."""
        return [name for module, name in self.packages if find_spec(module) is None]


# GPTQHfQuantizer needs both (transformers/quantizers/quantizer_gptq.py). That of HQQ has no
# `get_quantize_ops` since transformers 5, so that its layers stay empty.
AWQ_PACKAGES = (("gptqmodel", "gptqmodel"),)
GPTQ_PACKAGES = (*AWQ_PACKAGES, ("optimum", "optimum"))
COMPRESSED_PACKAGES = (("compressed_tensors", "compressed-tensors"),)
# fmt: off
_FORMS = (
    Form("bitsandbytes_4bit", "bitsandbytes", "as it is", (4,)),
    Form("bitsandbytes_8bit", "bitsandbytes", "as it is", (8,)),
    Form("fp8", "FP8", "dequantized"),
    Form("mxfp4", "MXFP4", "dequantized"),
    Form("compressed-tensors", "compressed-tensors", "dequantized", packages=COMPRESSED_PACKAGES),
    Form("gptq", "GPTQ", "as it is", (4, 8), GPTQ_PACKAGES),
    Form("awq", "AWQ", "as it is", (4,), AWQ_PACKAGES),
    Form("hqq", "HQQ", "refused", refusal="transformers cannot load"),
    Form("torchao", "torchao", "refused"),
    Form("aqlm", "AQLM", "refused"),
    Form("gguf", "GGUF", "refused", refusal="is for running a model, not for training"),
)
# fmt: on
FORMS: Mapping[str, Form] = MappingProxyType({form.id: form for form in _FORMS})


@dataclass(frozen=True)
class Published:
    """Form of one model, with its settings."""

    form: Form
    bits: int | None
    """Bits per weight, if its settings say so."""
    settings: Mapping[str, object]

    def problem_with(self, method: str | None) -> tuple[str, str] | None:
        """Return (problem, fix) of training over this base, None if it works.

        Without a method: of what no method can do.
        """
        form = self.form
        if form.use == "refused":
            return f"is quantized with {form.title}, which {form.refusal}", form.fix
        missing = form.missing_packages
        if missing:
            noun = "a package" if len(missing) == 1 else "packages"
            verb = "is" if len(missing) == 1 else "are"
            problem = (
                f"is quantized with {form.title}, which needs {noun} that {verb} not installed"
            )
            return problem, f"pip install {' '.join(missing)}, or {form.fix}"
        if form.use == "dequantized":
            return None
        if form.bits and self.bits not in form.bits:
            problem = f"is quantized with {form.title} to {self.bits or 'unknown'} bits"
            return f"{problem}, which cannot be trained", form.fix
        if method is not None and METHODS[method].base_bits != self.bits:
            problem = f"is quantized with {form.title} to {self.bits} bits already"
            fix = f"choose the method {self.only_method}, which trains an adapter over it"
            return f"{problem}, so {METHODS[method].title} cannot train it", fix
        return None

    @property
    def only_method(self) -> str | None:
        """Return the only method that can train over this base; None unless there is one."""
        if self.form.use != "as it is" or self.problem_with(None):
            return None
        return _method_of(self.bits)


def published_form(config: Mapping[str, object]) -> Published | None:
    """Return the form that a config.json names; None for a model that is not quantized."""
    settings = _settings(config)
    if settings is None:
        return None
    method = str(settings.get("quant_method") or "").lower()
    bits = _bits(settings)
    if method == "bitsandbytes" or _is_on(settings, "load_in_4bit", "load_in_8bit"):
        bits = 8 if settings.get("load_in_8bit") is True else 4
        method = f"bitsandbytes_{bits}bit"
    form = FORMS.get(method)
    if form is None:
        title = method[:64] or "a method that it does not name"
        form = Form(method[:64], title, "refused", refusal="is not known here")
    return Published(form, bits, settings)


def _settings(config: Mapping[str, object]) -> Mapping[str, object] | None:
    """Return the quantization settings of a model or of its text decoder."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        for key in QUANTIZATION_KEYS:
            settings = part.get(key)
            if isinstance(settings, Mapping):
                return settings
            if settings:  # a text or a list: quantized, in a way that nobody can read
                return {}
    return None


def _bits(settings: Mapping[str, object]) -> int | None:
    """Return the bits per weight: `bits`, or as HQQ writes it under `weight_quant_params`."""
    for key in ("bits", "w_bit", "nbits"):
        value = settings.get(key)
        if type(value) is int:
            return value
    for value in settings.values():
        if isinstance(value, Mapping):
            found = _bits(value)
            if found is not None:
                return found
    return None


def _is_on(settings: Mapping[str, object], *keys: str) -> bool:
    return any(settings.get(key) is True for key in keys)


def _method_of(bits: int | None) -> str:
    names = [each.id for each in METHODS.values() if each.base_bits == bits]
    return names[0] if names else "qlora"
