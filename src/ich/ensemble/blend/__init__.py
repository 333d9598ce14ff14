"""The members of a class made one: which combination, fitted how, and judged on folds that it did not see."""

from ich.ensemble.blend.choosing import Choice, choose
from ich.ensemble.blend.combination import METHODS, Combination

__all__ = ["METHODS", "Choice", "Combination", "choose"]
