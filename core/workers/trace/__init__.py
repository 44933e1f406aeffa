"""Trace one training step on tensors without data and report its memory."""
