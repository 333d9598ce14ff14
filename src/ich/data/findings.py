"""Findings of `ich check`: the closed list of rules with severity and advice, their instances, the table to print.

Findings are a frame with the columns `COLUMNS`, one row per instance.
"""

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
    "layout": Rule("error", "mend what the line names; nothing behind it could be checked"),
    "value_out_of_place": Rule("error", "correct the row, or write the table anew"),
    "nothing_to_read": Rule("error", "see the quarantined files; is this the competition's folder?"),
    "duplicate_id": Rule("error", "keep one of the files; prepare stops here"),
    "study_of_two_patients": Rule("error", "mend PatientID or StudyInstanceUID; folds stop here"),
    "folds": Rule("error", "`ich folds --force` makes new folds; every member is then trained again"),
    "label_without_file": Rule("warning", "download it again, or leave it: training goes on without it"),
    "test_image_without_file": Rule("warning", "download it again, or leave it: it gets the training prevalence"),
    "file_without_label": Rule("warning", "nothing, or add its label: unlabelled slices train nothing"),
    "test_file_not_asked_for": Rule("warning", "nothing, if the sample submission is the right one"),
    "extra_file": Rule("warning", "move it away: no table and no split of this format knows it"),
    "quarantined": Rule("warning", "see docs/reference/quarantine.md for each reason; the run goes on without"),
    "duplicate_uid": Rule("warning", "keep one of the files: SOPInstanceUID names one picture"),
    "duplicate_pixels": Rule("warning", "look at them: copies count twice, and across splits they leak"),
    "patient_in_train_and_test": Rule("warning", "competition.exclude_overlap: true leaves them out of training"),
    "class_without_positives": Rule("warning", "add positives or drop the class: nothing can be learnt of it"),
    "class_without_negatives": Rule("warning", "add negatives or drop the class: nothing can be learnt of it"),
    "fold_without_class": Rule("warning", "fewer folds.n, or another folds.seed"),
    "single_slice": Rule("warning", "look whether the other slices are missing: a sequence needs neighbours"),
    "no_position": Rule("warning", "nothing: these series are ordered by instance number"),
    "duplicate_position": Rule("warning", "nothing: acquisition, then instance number decide; look for copies"),
    "gap": Rule("warning", "look whether slices are missing there"),
    "mixed_series": Rule("warning", "nothing: each series is a sequence of its own"),
    "mixed_sizes": Rule("warning", "look at the study: images of several sizes are resized alike"),
    "mixed_tilt": Rule("warning", "look at the series: its slices do not lie in parallel"),
    "not_axial": Rule("warning", "take the reformatted series out: the rest is axial"),
    "irregular_spacing": Rule("info", "nothing: gaps are given to the sequence models"),
    "tilted": Rule("info", "nothing: slices are ordered along their normal"),
    "overlap_left_out": Rule("info", "nothing: competition.exclude_overlap is set"),
    "unlabelled_study": Rule("info", "nothing, if it is meant so: unlabelled studies train nothing"),
    "other_series": Rule("info", "nothing: another series of the scan serves better"),
    "blank_picture": Rule("info", "nothing: one value all over, not counted as copies"),
    "study_lengths": Rule("info", ""),
    "prevalence": Rule("info", ""),
    "fold_prevalence": Rule("info", ""),
    "note": Rule("info", ""),
}


def findings(rule: str, names: Iterable[Any] = ("",), detail: Any = "", row: Any = None) -> pd.DataFrame:
    """Instances of a rule: names of files, images, studies or classes; detail and row are one value or one per name."""
    names = pd.Series(list(names), dtype="object").astype(str)
    found = pd.DataFrame({"severity": RULES[rule].severity, "rule": rule, "name": names})
    found["row"] = row if isinstance(row, str) or row is None else list(row)
    found["detail"] = detail if isinstance(detail, str) else list(detail)
    return found


def joined(*parts: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(parts, ignore_index=True)


def layout(text: str) -> pd.DataFrame:
    """The line with which an adapter stopped, as a finding: file, first row it names, and the rest."""
    name, colon, rest = text.partition(": ")
    row = re.search(r"\brow (\d+)", text)
    return findings("layout", [name if colon else ""], [rest if colon else text], [row[1] if row else ""])


TOLD = ("layout", "value_out_of_place", "nothing_to_read", "folds", "quarantined", "study_lengths", "prevalence")
TOLD += ("fold_prevalence", "note")  # whose details are printed too
WIDTH = 64  # of a column of words on the screen


def summary(found: pd.DataFrame, examples: int = 3) -> list[list[str]]:
    """The table on the screen, errors first: finding, severity, count, examples, what to do; long cells go on below."""
    rows: list[list[str]] = []
    rules = {str(rule): part for rule, part in found.groupby("rule")}
    for rule in sorted(rules, key=list(RULES).index):
        told, few = RULES[rule], rules[rule] if RULES[rule].severity == "info" else rules[rule].head(examples)
        few = few if rule in TOLD else few.head(examples)
        said = few["name"] + (": " + few["detail"]).where(few["detail"] != "", "") if rule in TOLD else few["name"]
        more = ["..."] if len(few) < len(rules[rule]) else []
        shown = ("; " if rule in TOLD else ", ").join([*said, *more])
        # The line that says why nothing else could be checked stays one line.
        lines = [[shown], [told.advice]] if rule == "layout" else [wrap(shown, WIDTH), wrap(told.advice, WIDTH)]
        head = [rule.replace("_", " "), told.severity, f"{len(rules[rule])}"]
        for i, (left, right) in enumerate(zip_longest(*lines, fillvalue="")):
            rows.append([*(head if i == 0 else ["", "", ""]), left, right])
    return rows
