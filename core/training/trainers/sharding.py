"""Settings under which FSDP2 divides a model among the ranks."""

from typing import Any


def sharding_settings(model: Any) -> dict[str, Any]:
    """Return the settings that divide weights, gradients and optimizer states among the ranks."""
    base = getattr(model, "base_model", model)
    layers = sorted(getattr(base, "_no_split_modules", None) or model._no_split_modules)
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "transformer_layer_cls_to_wrap": layers,
            "reshard_after_forward": True,
            # Each rank would else save its part in a form that nothing but FSDP can read.
            "state_dict_type": "FULL_STATE_DICT",
            "cpu_ram_efficient_loading": False,  # every rank has loaded and checked the model
        },
        # Else whole gradients stay on every rank until the last pass of a step.
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
    }
