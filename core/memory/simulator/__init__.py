"""Device memory, autograd and PyTorch's allocator, simulated. Knows no model."""
