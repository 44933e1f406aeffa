"""Model of a training: precision, weights, quantization, adapter, kernels, compilation."""

__all__ = ["adapter", "attention", "compiling", "layer_checkpointing", "load", "weights"]
