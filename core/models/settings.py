"""Settings of a job that its files have decided: those of a quantized base, and of an adapter."""

from collections.abc import Mapping
from pathlib import Path

from core.training.contract.weights.adapters import read_adapter
from core.training.contract.weights.forms import Published


def settings_of_base(published: Published | None) -> Mapping[str, object]:
    """Return the quantization settings of a base that is published in 4 bits: they are used."""
    if published is None or published.form.id != "bitsandbytes_4bit":
        return {}
    settings = published.settings
    return {
        "bnb_4bit_quant_type": "nf4" if settings.get("bnb_4bit_quant_type") == "nf4" else "fp4",
        "bnb_4bit_use_double_quant": settings.get("bnb_4bit_use_double_quant") is True,
    }


def settings_of_adapter(folder: Path) -> Mapping[str, object]:
    """Return the settings of an adapter that is continued: they are used, not those of the job.

    Raises UnusableWeights.
    """
    adapter = read_adapter(folder)
    known = adapter.settings
    saved = known.get("modules_to_save") or []
    names = saved if isinstance(saved, list) else [saved]
    return {
        "lora_r": max(rank for rank, _in, _out in adapter.modules.values()),
        "lora_alpha": float(str(known["lora_alpha"])) if "lora_alpha" in known else 8.0,
        "lora_dropout": float(str(known.get("lora_dropout", 0))),
        "target_modules": ",".join(sorted({name.rpartition(".")[2] for name in adapter.modules})),
        "use_dora": known.get("use_dora") is True,
        "use_rslora": known.get("use_rslora") is True,
        "modules_to_save": ",".join(map(str, names)),
    }
