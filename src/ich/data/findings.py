"""Findings of `ich check`: a table with the columns `COLUMNS` and one row per instance of a rule."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from textwrap import wrap
from typing import Any, Literal

import pandas as pd

Severity = Literal["error", "warning", "info"]
COLUMNS = ("severity", "rule", "name", "row", "detail")


@dataclass(frozen=True)
class Rule:
    severity: Severity
    advice: str


RULES: Mapping[str, Rule] = {
    "layout": Rule("error", "fix this first; the remaining checks need it"),
    "value_out_of_place": Rule("error", "correct the row, or write the table again"),
    "nothing_to_read": Rule("error", "see the quarantined files; is competition.root correct?"),
    "no_labels": Rule("error", "prepare stops here; the files are checked all the same"),
    "duplicate_id": Rule("error", "keep one of the files; prepare stops here"),
    "study_of_two_patients": Rule("error", "correct PatientID or StudyInstanceUID; folds stop here"),
    "network": Rule("error", "correct this model in the recipe: it cannot be trained"),
    "too_few_patients": Rule("error", "folds stop here"),
    "folds": Rule("error", "`ich folds --force` makes new folds; all models are then trained again"),
    "label_without_file": Rule("warning", "download it again, or ignore it: it is not used in training"),
    "test_image_without_file": Rule("warning", "download it again, or ignore it: it gets the training prevalence"),
    "file_without_label": Rule("warning", "add its label, or ignore it: unlabelled slices are not used in training"),
    "test_file_not_asked_for": Rule("warning", "none, if the sample submission is the right one"),
    "extra_file": Rule("warning", "move it away: it is not part of this format"),
    "quarantined": Rule("warning", "see docs/reference/quarantine.md for each reason; these files are ignored"),
    "duplicate_uid": Rule("warning", "keep one of the files: a SOPInstanceUID belongs to one slice"),
    "duplicate_pixels": Rule("warning", "inspect them: copies count twice, and across splits they leak"),
    "no_patient_id": Rule(
        "warning", "add a column patient_id to labels.csv: each counts as a patient, and scores may leak"
    ),
    "burned_in": Rule("warning", "inspect them: the pixels may show the patient's name"),
    "patient_in_train_and_test": Rule("warning", "competition.exclude_overlap: true excludes them from training"),
    "class_without_positives": Rule("warning", "add positives or drop the class: it cannot be learnt"),
    "class_without_negatives": Rule("warning", "add negatives or drop the class: it cannot be learnt"),
    "fold_without_class": Rule("warning", "decrease folds.n, or change folds.seed"),
    "single_slice": Rule("warning", "check for missing slices: sequence models need neighbours"),
    "no_position": Rule("warning", "none: these series are ordered by instance number"),
    "duplicate_position": Rule("warning", "check for copies; slices are ordered by acquisition and instance number"),
    "gap": Rule("warning", "check for missing slices"),
    "mixed_series": Rule("warning", "none: each series is a separate sequence"),
    "mixed_sizes": Rule("warning", "inspect the study: all slices are resized to one size"),
    "mixed_tilt": Rule("warning", "inspect the series: its slices are not parallel"),
    "not_axial": Rule("warning", "remove the coronal or sagittal series"),
    "irregular_spacing": Rule("info", "none: sequence models use the gaps"),
    "tilted": Rule("info", "none: slices are ordered along their normal"),
    "overlap_left_out": Rule("info", "none: competition.exclude_overlap is set"),
    "unlabelled_study": Rule("info", "none, if intended: unlabelled studies are not used in training"),
    "other_series": Rule("info", "none: another series of the scan is used"),
    "blank_image": Rule("info", "none: all pixels are equal; not counted as copies"),
    "study_lengths": Rule("info", ""),
    "prevalence": Rule("info", ""),
    "fold_prevalence": Rule("info", ""),
    "note": Rule("info", ""),
}


def findings(rule: str, names: Iterable[Any] = ("",), detail: Any = "", row: Any = None) -> pd.DataFrame:
    """Instances of a rule, one per name (of a file, image, study or class); detail and row: one value, or one each."""
    names = pd.Series(list(names), dtype="object").astype(str)
    found = pd.DataFrame({"severity": RULES[rule].severity, "rule": rule, "name": names})
    found["row"] = row if isinstance(row, str) or row is None else list(row)
    found["detail"] = detail if isinstance(detail, str) else list(detail)
    return found


def joined(*parts: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(parts, ignore_index=True)


def layout(text: str) -> pd.DataFrame:
    """A LayoutError's text as a finding with file, first row and the rest."""
    name, colon, rest = text.partition(": ")
    row = re.search(r"\brow (\d+)", text)
    return findings("layout", [name if colon else ""], [rest if colon else text], [row[1] if row else ""])


DETAILED = ("layout", "value_out_of_place", "nothing_to_read", "no_labels", "too_few_patients", "network", "folds")
DETAILED += ("quarantined", "study_lengths", "prevalence", "fold_prevalence", "note")  # details are printed too
WIDTH = 64  # of the last two columns on the screen, and of names


def summary(found: pd.DataFrame, examples: int = 3) -> list[list[str]]:
    """Rows to print, errors first: finding, severity, count, examples, advice. Long cells continue in further rows."""
    table: list[list[str]] = []
    for name, rule in RULES.items():
        part = found[found["rule"] == name]
        if part.empty:
            continue
        detailed = name in DETAILED
        shown = part if detailed and rule.severity == "info" else part.head(examples)
        complete = name == "layout"  # one line, to be copied
        words = shown["name"] if complete or name == "note" else shown["name"].map(_shortened)
        words += (": " + shown["detail"]).where(detailed & (shown["detail"] != ""), "")
        text = ("; " if detailed else ", ").join([*words, *["..."] * (len(shown) < len(part))])
        lines = [[text], [rule.advice]] if complete else [wrap(text, WIDTH), wrap(rule.advice, WIDTH)]
        head = [name.replace("_", " "), rule.severity, f"{len(part)}"]
        for cells in zip_longest(*lines, fillvalue=""):
            table.append([*head, *cells])
            head = ["", "", ""]
    return table


def _shortened(name: str) -> str:
    half = WIDTH // 2 - 2
    return name if len(name) <= WIDTH else f"{name[:half]}...{name[-half:]}"
