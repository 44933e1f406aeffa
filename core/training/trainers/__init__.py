"""Trainers: how TRL's classes are configured and extended, one builder for each stage."""

__all__ = ["builders"]
