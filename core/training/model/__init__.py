"""Model of a training: precision, weights, quantization, adapter, kernels, compilation."""

__all__ = [
    "adapter",
    "attention",
    "compiling",
    "ends",
    "experts",
    "layer_checkpointing",
    "load",
    "weights",
]
