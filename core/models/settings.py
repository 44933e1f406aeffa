"""Settings of a job that its files have decided: those of a quantized base, and of an adapter."""

from collections.abc import Mapping
from pathlib import Path

from core.models.shapes import ModelShape
from core.training.contract.weights.adapters import AdapterFiles, read_adapter, setting_of
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


def settings_of_adapter(folder: Path, shape: ModelShape | None = None) -> Mapping[str, object]:
    """Return the settings of an adapter that is continued: they are used, not those of the job.

    The shape of the model says what its experts are called. Raises UnusableWeights.
    """
    adapter = read_adapter(folder)
    known = adapter.settings
    saved = known.get("modules_to_save") or []
    names = saved if isinstance(saved, list) else [saved]
    return {
        "lora_r": max((rank for rank, _in, _out in adapter.modules.values()), default=known["r"]),
        "lora_alpha": float(str(known["lora_alpha"])) if "lora_alpha" in known else 8.0,
        "lora_dropout": float(str(known.get("lora_dropout", 0))),
        "target_modules": ",".join(_names(adapter, shape)),
        "use_dora": known.get("use_dora") is True,
        "use_rslora": known.get("use_rslora") is True,
        "modules_to_save": ",".join(map(str, names)),
    }


def _names(adapter: AdapterFiles, shape: ModelShape | None) -> list[str]:
    """Return what an adapter changes as a job names it: layers, and experts in one tensor.

    Layers that such a tensor holds are named if it has the rank of all of them together.
    """
    names = {name.rpartition(".")[2] for name in adapter.modules}
    targets = adapter.settings.get("target_parameters") or []
    assert isinstance(targets, list)
    layout = shape.family.experts if shape else None
    older = layout.older_names if layout else ()
    for target in map(str, targets):
        parameter = target.rpartition(".")[2]
        held = [name for name, holder in older if holder == parameter]
        rank = setting_of(adapter.settings, "rank_pattern", "r", target)
        if held and rank == len(held) * int(str(adapter.settings["r"])):
            names.update(held)
        elif layout and target.endswith(f"{layout.router}.weight"):
            names.add(layout.router)
        else:
            names.add(parameter)
    return sorted(names)
