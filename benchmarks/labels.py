"""`python -m benchmarks.labels`: train on cleaned labels and on pseudo-labels, in the demo competition.

One CNN, five seeds, scored on the hidden test set. Cleaned: without the most suspicious labels of its own out-of-fold
audit, the 200 (1.6 %) that `ich explain` lists, and without all labels that the generator made wrong, the best that
cleaning could reach. Pseudo: half of the training studies are unlabelled, then labelled by the models of each fold.
"""

import json
import subprocess
import sys

import pandas as pd

from benchmarks.harness import ROOT, environment
from ich.ensemble.ablation import order, summary

SEEDS = (1, 2, 3, 4, 5)
METRICS = {"log_loss": False, "auc": True, "f2": True}  # whether larger is better
FOLDS = 3
FOLDER = ROOT / "input" / "labels"  # of the label tables
SUBMISSIONS = ROOT / "submissions"
ONE_MODEL = [
    *(f"{section}=null" for section in ("sequence", "smooth", "stack")),
    *(f"cnn.{model}=null" for model in ("resnext", "seresnet", "densenet")),
    "blend.inputs=[resnet]",
    "cnn.resnet.masks=0",  # with a table of labels they have no effect
]


def changes(name: str, seed: int, labels: dict[str, object] | None) -> list[str]:
    """Settings of a run of one CNN, called labels_<name>_s<seed>."""
    table = [] if labels is None else [f"labels={json.dumps(labels)}"]
    return [*ONE_MODEL, f"name=labels_{name}_s{seed}", f"folds.seed={seed}", f"cnn.resnet.seed={seed}", *table]


def trained(
    name: str, seed: int, labels: dict[str, object] | None = None, *, explain: bool = False
) -> dict[str, float]:
    """Run the stages; return the scores of the CNN on the hidden test set."""
    settings = changes(name, seed, labels)
    for stage in ("demo", "prepare", "folds", "cnn", "blend", "thresholds", "score", *(["explain"] if explain else [])):
        ich(stage, settings)
    scores = pd.read_csv(SUBMISSIONS / f"labels_{name}_s{seed}" / "scores.csv")
    row = scores[(scores["model"] == "resnet") & (scores["rows"] == "test")].iloc[0]
    return {metric: float(row[metric]) for metric in METRICS}


def ich(command: str, settings: list[str], *words: str) -> None:
    options = [word for setting in settings for word in ("--set", setting)]
    line = [sys.executable, "-m", "ich.cli", command, "configs/demo.yaml", *words, *options, "--quiet"]
    subprocess.run(line, cwd=ROOT, env=environment(), check=True)


def cleaned(seed: int) -> dict[str, dict[str, float]]:
    found = {"all labels": trained("all", seed, explain=True)}
    suspects = pd.read_csv(SUBMISSIONS / f"labels_all_s{seed}" / "explain" / "suspicious_labels.csv", dtype=str)
    truth = pd.read_csv(ROOT / "input" / "demo" / "mislabelled.csv")["ID"].str.rsplit("_", n=1, expand=True)
    tables = {
        "without suspicious labels": suspects,
        "without wrong labels": pd.DataFrame({"image_id": truth[0], "class": truth[1]}),
    }
    for number, (title, table) in enumerate(tables.items()):
        path = FOLDER / f"cleaned{number}_s{seed}.csv"
        table.assign(label="")[["image_id", "class", "label"]].to_csv(path, index=False)
        found[title] = trained(f"cleaned{number}", seed, {"table": str(path.relative_to(ROOT))})
    return found


def pseudo(seed: int) -> dict[str, dict[str, float]]:
    slices = pd.read_parquet(next((ROOT / "input" / "cache").glob("*/slices.parquet")))
    slices = slices[slices["split"] == "train"]
    studies = slices["study_id"].drop_duplicates().sample(frac=0.5, random_state=seed)
    unlabelled = slices.loc[slices["study_id"].isin(studies), "image_id"]
    path = FOLDER / f"half_s{seed}.csv"
    classes = list(pd.read_csv(SUBMISSIONS / f"labels_all_s{seed}" / "scores_by_class.csv")["class"].unique())
    pd.DataFrame({"image_id": unlabelled, **dict.fromkeys(classes, "")}).to_csv(path, index=False)
    labels: dict[str, object] = {"table": str(path.relative_to(ROOT))}
    found = {"half of the labels": trained("half", seed, labels)}
    for fold in range(FOLDS):
        path = FOLDER / f"pseudo{fold}_s{seed}.csv"
        ich("predict", changes("half", seed, labels), "input/demo/stage_2_train", "--fold", str(fold), "-o", str(path))
        table = pd.read_csv(path)
        table[table["image_id"].isin(unlabelled)].to_csv(path, index=False)
    table = f"input/labels/pseudo{{fold}}_s{seed}.csv"
    found["and pseudo-labels"] = trained("pseudo", seed, {"table": table, "weight": 0.5})
    return found


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    runs = [{**cleaned(seed), **pseudo(seed)} for seed in SEEDS]
    for better, worse in (
        ("without suspicious labels", "all labels"),
        ("without wrong labels", "all labels"),
        ("half of the labels", "all labels"),
        ("and pseudo-labels", "half of the labels"),
    ):
        for metric, larger in METRICS.items():
            ours, theirs = ([run[title][metric] for run in runs] for title in (better, worse))
            difference, half_width, verdict = order(ours, theirs, larger_is_better=larger)
            gain = f"over {worse} {difference:+.4f} ± {half_width:.4f}, {verdict}"
            print(f"{metric} {better}: {summary(ours)[0]:.4f}; {gain}")
