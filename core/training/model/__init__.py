"""The model: precision, weights, quantisation, adapter, attention kernels."""
