"""Combine the models of a class into one: candidate combinations, fitted and compared by cross-fitting."""

from ich.ensemble.blend.choosing import Choice, choose
from ich.ensemble.blend.combination import METHODS, Combination

__all__ = ["METHODS", "Choice", "Combination", "choose"]
