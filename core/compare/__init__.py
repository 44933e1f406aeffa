"""Comparisons: what a card can train, and the same job trained in several ways, with a report.

Above runs: it creates them, puts them into the queue and reads their folders. Never trains.
"""

from core.compare import on_card
from core.compare.on_card import ModelOnCard, Wish, find_gpu, fitting_models, models_on_card

__all__ = ["ModelOnCard", "Wish", "find_gpu", "fitting_models", "models_on_card", "on_card"]
