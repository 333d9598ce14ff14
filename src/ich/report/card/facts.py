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
    settings: str  # the main settings and all that differ from the defaults, as YAML
    weights: str  # the initial weights of a network; empty for other models
    parameters: int  # of the network of one fold; 0 for other models
    balanced: bool  # True if the loss weights the classes


@dataclass(frozen=True)
class Facts:
    name: str
    version: str  # of ich
    synthetic: bool
    values: str  # hu | grey
    image: str  # size and crop, for a sentence
    classes: Sequence[str]
    counts: Mapping[str, Count]  # by set of slices: labelled, unlabelled, test
    positives: Mapping[str, Count]  # positive labelled slices and their series, studies and patients, by class
    acquisition: Mapping[str, Mapping[str, Spread]]  # quantity, then set of slices
    folds: Mapping[str, Any]  # record of the folds: by, n, seed (settings), studies, slices, positives
    in_several_folds: int  # patients
    in_train_and_test: int  # patients
    unknown_patients: int  # labelled studies without PatientID
    quarantined: Mapping[tuple[str, str], int]  # files by split and reason
    labels: str  # a sentence about labels from a table; empty without one
    pseudonyms: bool
    burned_in: str
    models: Mapping[str, ModelFacts]
    blends: Sequence[Mapping[str, Any]]  # blend.json of each fold
    artifacts: Sequence[Artifact]
    exported: str = ""  # what a bundle holds, if that is not everything
    scores: Mapping[str, Any] | None = None  # scores.json
    decisions: Mapping[tuple[str, str], Mapping[str, int]] | None = None
    """tp, fp, fn and tn of the blend at the tuned thresholds, by set of rows and class."""
    tuned: Mapping[str, Any] | None = None  # thresholds.json
    explained: bool = False
    checked: Mapping[tuple[str, str], int] | None = None  # findings of `ich check` by severity and rule
