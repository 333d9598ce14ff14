"""The input of the model card: records of a run as plain values. What was not made is None."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ich.report.evidence import Artifact


class Count(NamedTuple):
    patients: int
    studies: int
    series: int
    slices: int


class Spread(NamedTuple):
    """Percentiles of a quantity over series; NaN where no series has it."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class ModelFacts:
    """One model of the ensemble; the blend is the last."""

    stage: str
    inputs: Sequence[str]
    settings: str
    """The main settings and all that differ from the defaults, as YAML."""
    weights: str
    """The initial weights of a network; empty for other models."""
    parameters: int
    """Of the network of one fold; 0 for other models."""
    balanced: bool
    """True if the loss weights the classes."""


@dataclass(frozen=True)
class Facts:
    name: str
    version: str
    """Of ich."""
    synthetic: bool
    values: str
    """hu | grey"""
    image: str
    """Size and crop, for a sentence."""
    classes: Sequence[str]
    counts: Mapping[str, Count]
    """By set of slices: labelled, unlabelled, test."""
    positives: Mapping[str, Count]
    """Positive labelled slices and their series, studies and patients, by class."""
    acquisition: Mapping[str, Mapping[str, Spread]]
    """Quantity, then set of slices."""
    folds: Mapping[str, Any]
    """Record of the folds: by, n, seed (settings), studies, slices, positives."""
    in_several_folds: int
    """Patients."""
    in_train_and_test: int
    """Patients."""
    unknown_patients: int
    """Labelled studies without PatientID."""
    quarantined: Mapping[tuple[str, str], int]
    """Files by split and reason."""
    labels: str
    """A sentence about labels from a table; empty without one."""
    pseudonyms: bool
    burned_in: str
    models: Mapping[str, ModelFacts]
    blends: Sequence[Mapping[str, Any]]
    """blend.json of each fold."""
    artifacts: Sequence[Artifact]
    exported: str = ""
    """What a bundle holds, if that is not everything."""
    scores: Mapping[str, Any] | None = None
    """scores.json"""
    decisions: Mapping[tuple[str, str], Mapping[str, int]] | None = None
    """tp, fp, fn and tn of the blend at the tuned thresholds, by set of rows and class."""
    tuned: Mapping[str, Any] | None = None
    """thresholds.json"""
    explained: bool = False
    checked: Mapping[tuple[str, str], int] | None = None
    """Findings of `ich check` by severity and rule."""
