"""Items of TRIPOD+AI (BMJ 2024;385:e078378) and CLAIM 2024 (Radiol Artif Intell 2024;6(4):e240300).

The records of a run answer a part of them. The authors of a study must answer the others.
"""

from collections.abc import Mapping

from ich.report.card.facts import Facts
from ich.report.page.blocks import Block, Notes, Table

TRIPOD = {
    "1": "title",
    "2": "abstract",
    "3a": "healthcare context",
    "3b": "target population, purpose and users",
    "3c": "health inequalities",
    "4": "objectives",
    "5a": "sources of data",
    "5b": "dates",
    "6a": "setting and centres",
    "6b": "eligibility criteria",
    "6c": "treatments",
    "7": "data preparation",
    "8a": "outcome definition",
    "8b": "outcome assessors",
    "8c": "blinding of outcome assessment",
    "9a": "choice of predictors",
    "9b": "definition of predictors",
    "9c": "predictor assessors",
    "10": "sample size",
    "11": "missing data",
    "12a": "use of the data",
    "12b": "handling of predictors",
    "12c": "model, building steps and internal validation",
    "12d": "heterogeneity across clusters",
    "12e": "performance measures",
    "12f": "model updating",
    "12g": "calculation of predictions",
    "13": "class imbalance",
    "14": "fairness",
    "15": "model output and thresholds",
    "16": "training versus evaluation data",
    "17": "ethical approval",
    "18a": "funding",
    "18b": "conflicts of interest",
    "18c": "protocol",
    "18d": "registration",
    "18e": "data sharing",
    "18f": "code sharing",
    "19": "patient and public involvement",
    "20a": "flow of participants",
    "20b": "characteristics of participants",
    "20c": "comparison with the development data",
    "21": "numbers in each analysis",
    "22": "model specification",
    "23a": "performance with confidence intervals",
    "23b": "heterogeneity of performance",
    "24": "results of model updating",
    "25": "interpretation",
    "26": "limitations",
    "27a": "input data of poor quality",
    "27b": "interaction and expertise of users",
    "27c": "next steps",
}
CLAIM = {
    "1": "title",
    "2": "abstract",
    "3": "background",
    "4": "objectives",
    "5": "prospective or retrospective design",
    "6": "study goal",
    "7": "data sources",
    "8": "inclusion and exclusion criteria",
    "9": "preprocessing",
    "10": "selection of data subsets",
    "11": "de-identification",
    "12": "missing data",
    "13": "image acquisition",
    "14": "definition of the reference standard",
    "15": "rationale of the reference standard",
    "16": "annotators",
    "17": "annotation of test data",
    "18": "variability of annotation",
    "19": "assignment to partitions",
    "20": "level of disjoint partitions",
    "21": "intended sample size",
    "22": "model description",
    "23": "software",
    "24": "initialization",
    "25": "training",
    "26": "selection of the final model",
    "27": "ensembling",
    "28": "metrics",
    "29": "uncertainty",
    "30": "robustness",
    "31": "explainability",
    "32": "internal testing",
    "33": "external testing",
    "34": "trial registration",
    "35": "numbers of included and excluded cases",
    "36": "demographic and clinical characteristics",
    "37": "performance",
    "38": "diagnostic accuracy with confidence intervals",
    "39": "failure analysis",
    "40": "limitations",
    "41": "implications for practice",
    "42": "protocol",
    "43": "availability of software, model and data",
    "44": "funding",
}
Answers = Mapping[str, tuple[str, str]]  # answer and evidence, by item


def tripod(facts: Facts) -> list[Block]:
    return _checklist(TRIPOD, _tripod(facts))


def claim(facts: Facts) -> list[Block]:
    return _checklist(CLAIM, _claim(facts))


def _checklist(items: Mapping[str, str], answers: Answers) -> list[Block]:
    """A table of the items that are answered, and a list of the others."""
    rows = [[number, topic, *answers[number]] for number, topic in items.items() if number in answers]
    missing = ", ".join(f"{number} ({topic})" for number, topic in items.items() if number not in answers)
    title = f"{len(rows)} of {len(items)} items are answered from records"
    return [Table(title, ["item", "topic", "answer", "evidence"], rows), Notes([f"Open, for the authors: {missing}."])]


def _tripod(facts: Facts) -> Answers:
    count, settings = facts.counts["labelled"], facts.folds["settings"]
    size = f"{count.slices:,} labelled slices of {count.patients:,} patients"
    test = f"; test set: {facts.counts['test'].slices:,} slices" if facts.counts["test"].slices else ""
    return {
        "7": (f"{_preparation(facts)}; not compared across sociodemographic groups", "Exclusions; quarantine.csv"),
        "9b": ("pixels of the slice and of its neighbours", "Models and training"),
        "11": (_missing(facts), "Exclusions"),
        "12a": (f"{settings['n']}-fold cross-validation by {settings['by']}; {size}{test}", "Folds"),
        "12b": (f"{facts.image}; windowing per model", "Models and training"),
        "12c": (f"{len(facts.models)} models, combined by a blend; out-of-fold predictions", "Models and training"),
        "12e": (_measures(facts), "Performance"),
        "12f": ("calibration of the blend, fitted out of fold and only where it is better", "Calibration"),
        "12g": ("mean of the folds' blends", "`ich predict`; bundle.json"),
        "13": (_balance(facts), "Models and training; Calibration"),
        "15": (f"probability per class; {_thresholds(facts)}", "Thresholds"),
        "18f": (f"ich {facts.version}, MIT licence", "LICENSE"),
        "20a": (f"{size}{test}; {sum(facts.quarantined.values()):,} files excluded", "Data; Exclusions"),
        "20c": ("prevalence and acquisition; no demographics", "Data"),
        "21": (f"{size} in {settings['n']} folds; positives per class and fold", "Data; Folds"),
        "22": ("weights and the graph of models", "fold folders and bundle.json of `ich export`"),
        "23a": (_scores(facts, "by class and study; no sociodemographic subgroups"), "Performance; scores.json"),
        "26": ("facts from the records only", "Limits"),
        "27a": ("unreadable files are refused with a reason; single slices cause a warning", "`ich predict`"),
        "27b": ("none: a folder of DICOM files is scored by one command", "`ich predict`"),
    }


def _claim(facts: Facts) -> Answers:
    settings, scored = facts.folds["settings"], facts.scores
    parts = "cross-validation and a test set" if facts.counts["test"].slices else "cross-validation"
    weights = sorted({one.weights for one in facts.models.values() if one.weights})
    hidden = "pseudonyms in shared files; " if facts.pseudonyms else "ids as published; "
    tested = _scores(facts, "out of fold" + (" and on the test set" if scored and "test" in scored["rows"] else ""))
    explained = "Grad-CAM and saliency" if facts.explained else "not made: run `ich explain`"
    overlap = f"{facts.in_several_folds} patients in several folds, {facts.in_train_and_test} in training and test set"
    return {
        "8": ("technical reasons only", "Exclusions; quarantine.csv"),
        "9": (f"{facts.image}; windowing per model", "Models and training"),
        "11": (f"{hidden}names, dates and other identifying tags are not read", "docs/reference/privacy.md"),
        "12": (_missing(facts), "Exclusions"),
        "13": ("matrix, pixel size, spacing, tilt; not the manufacturer or dose", "Data"),
        "19": (f"{settings['n']} folds, balanced over the classes, seed {settings['seed']}; {parts}", "Folds"),
        "20": (f"by {settings['by']}: {overlap}", "Leak checks"),
        "22": ("architecture and number of parameters", "Models and training; model.json of each fold"),
        "23": (f"ich {facts.version} and its libraries", "Time and hardware"),
        "24": ("; ".join(weights) or "no networks", "Models and training"),
        "25": ("optimizer, schedule, loss, augmentation, epochs", "Models and training; history.csv of each fold"),
        "26": ("last epoch, or early stopping as set; no selection by the test set", "Models and training"),
        "27": (
            f"{len(facts.models['blend'].inputs)} models in the blend, weights per class",
            "Calibration; blend.json",
        ),
        "28": (_measures(facts), "Performance"),
        "29": (_scores(facts, "bootstrap over patients; standard deviation over folds"), "Performance"),
        "31": (explained, "explain/; report.html"),
        "32": (tested, "Performance"),
        "35": (f"{sum(facts.quarantined.values()):,} files excluded", "Data; Exclusions"),
        "37": (_scores(facts, "all models and the baseline"), "Performance; scores.csv"),
        "38": (_scores(facts, "sensitivity, specificity, AUC"), "Performance; scores_by_class.csv"),
        "39": (_scores(facts, "confusion matrix; the worst errors as images"), "confusion.csv; report.html, Errors"),
        "40": ("facts from the records only", "Limits"),
        "43": (f"software: ich {facts.version}, MIT licence; model: `ich export`", "LICENSE; bundle.json"),
    }


def _preparation(facts: Facts) -> str:
    unit = "Hounsfield units" if facts.values == "hu" else "grey values"
    return f"{unit}, {facts.image}; {sum(facts.quarantined.values()):,} files quarantined"


def _missing(facts: Facts) -> str:
    return f"excluded: {facts.counts['unlabelled'].slices:,} slices without labels, and unreadable files; no imputation"


def _measures(facts: Facts) -> str:
    return _scores(facts, "AUC, average precision, log loss, F, sensitivity, specificity, calibration error")


def _scores(facts: Facts, answer: str) -> str:
    return answer if facts.scores is not None else "not made: run `ich score`"


def _thresholds(facts: Facts) -> str:
    if facts.tuned is None:
        return "thresholds not made: run `ich thresholds`"
    return f"one threshold per class, tuned for {facts.tuned['average']} {facts.tuned['metric'].upper()}"


def _balance(facts: Facts) -> str:
    weighted = [name for name, one in facts.models.items() if one.balanced]
    return f"class weights in the loss of {', '.join(weighted)}" if weighted else "no class weights in the losses"
