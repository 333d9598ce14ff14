"""Combine the models of a class into one: candidate combinations, fitted and compared by cross-fitting."""

from ich.ensemble.blend.combination import METHODS, Combination
from ich.ensemble.blend.cross_fitting import CombinationChoice, choose_combination

__all__ = ["METHODS", "Combination", "CombinationChoice", "choose_combination"]
