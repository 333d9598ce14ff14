"""A synthetic run: slices, predictions, and the evidence of its report page."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ich.ensemble import thresholds
from ich.ensemble.predictions import sigmoid
from ich.report import evaluation
from ich.report.evaluation import Rows
from ich.report.evidence import Artifact, Evidence, Training

CLASSES = ["epidural", "intraparenchymal", "any"]
MODELS = {"resnet": "cnn", "densenet": "cnn", "lgbm": "stack", "blend": "blend"}
WEIGHTS = [0.5, 0.3, 0.2]
CUT = 0.4
EPOCHS = [{"epoch": float(e), "loss": 0.5 - 0.1 * e, "valid_loss": 0.4, "valid_f1": 0.1 * (e == 1)} for e in range(3)]


def slice_table(never: Sequence[str] = (), classes: Sequence[str] = CLASSES) -> pd.DataFrame:
    """Ten slices of each of 30 patients, in 3 folds; every third patient is in the test set. No slice has `never`."""
    random = np.random.default_rng(0)
    owner, index = np.repeat(np.arange(30), 10), np.tile(np.arange(10), 30)
    names, classes = pd.Series(owner).astype(str), list(classes)
    table = pd.DataFrame({"image_id": [f"ID_{k:04d}" for k in range(300)], "index": index, "n_slices": 10})
    table = table.assign(patient_id="p" + names, study_id="s" + names, series_id="r" + names, series=owner)
    table = table.assign(position=5.0 * index, crop_side=40, row_spacing=0.5, column_spacing=0.5)
    table["split"] = np.where(owner % 3 == 2, "test", "train")
    table["fold"] = np.where(owner % 3 == 2, np.nan, owner // 3 % 3)
    bleeds = random.random((30, len(classes))) < 0.5
    table[classes] = (bleeds[owner] & (random.random((300, len(classes))) < 0.6)).astype(float)
    table["any"] = table[classes[:-1]].max(axis=1)
    table[list(never)] = 0.0
    return table


def made_evidence(never: Sequence[str] = ()) -> Evidence:
    whole = slice_table(never)
    table = whole.copy()
    table.loc[table["split"] == "test", CLASSES] = np.nan
    parts = {"oof": whole[whole["split"] == "train"], "test": whole[whole["split"] == "test"]}
    rows = {where: Rows(part, CLASSES) for where, part in parts.items()}
    fold = parts["oof"]["fold"].to_numpy(int)
    goals = {"f1": thresholds.Goal(1.0), "f2": thresholds.Goal(2.0)}
    logits, evaluated = [], {}
    for number, model in enumerate(MODELS):
        noise = np.random.default_rng(number).normal(size=(300, 3)) * (2 - 0.4 * number)
        z = 3 * whole[CLASSES].to_numpy() - 2 + noise
        p = {where: sigmoid(z[part.index]) for where, part in parts.items()}
        logits.append(z[parts["oof"].index])
        evaluated[model] = evaluation.evaluate(rows, p, fold, CLASSES, [1, 1, 2], goals, "f2")
    reliability, errors = evaluation.calibration(rows, p, CLASSES)
    constant = evaluation.evaluate(rows, evaluation.baseline(rows), fold, CLASSES, [1, 1, 2], goals, "f2")
    models = {
        model: {"stage": MODELS[model], **evaluation.cells(one, evaluated["blend"], CLASSES)}
        for model, one in evaluated.items()
    }
    scores = {
        "metric": "f2",
        "level": 0.95,
        "class_weights": dict(zip(CLASSES, (1, 1, 2), strict=True)),
        "rows": {where: some.counts(CLASSES) for where, some in rows.items()},
        "models": models,
        "baseline": evaluation.cells(constant, constant, CLASSES),
        "studies": evaluation.study_cells(rows, {**evaluated, "baseline": constant}, CLASSES),
        "one_fold": {"f2": 0.5},
        "submission": {"average": "micro", "f": {"value": 0.6, "low": 0.5, "high": 0.7}, "log_loss": 0.3},
        "calibration_error": errors,
        "warnings": ["resnet: its epochs were chosen on the fold"],
    }
    tuned = {"metric": "f2", "average": "macro", "shrink": 0, "thresholds": dict.fromkeys(CLASSES, CUT), "gap": 0.0}
    tuned |= {"positives": dict.fromkeys(CLASSES, 9), "score": 0.5, "interval": [0.4, 0.6], "recall": None}
    tuned["averages"] = {"macro": 0.5, "micro": 0.6}
    tuned |= {"score_cross_fitted": None, "recall_cross_fitted": None, "warnings": []}
    fitted = {"combination": {"method": "weights", "weights": WEIGHTS}, "calibration": {"method": "platt"}}
    blend = {"inputs": list(MODELS)[:-1], "classes": dict.fromkeys(CLASSES, fitted)}
    cross_fitted = thresholds.tune(rows["oof"].labels, p["oof"], CLASSES, goals["f2"], fold=fold).cross_fitted
    suspicious = parts["oof"].iloc[[5, 6, 50, 199]][["image_id", "study_id"]]
    suspicious = suspicious.assign(rank=range(1, 5), suspicion=2.0, **{"class": "any"})
    mapped = table.assign(group="no bleed", place=(table["index"] + 0.5) / 10, x=np.arange(300) % 17, y=table["index"])
    mapped["fold"] = ["test" if np.isnan(k) else f"{k:.0f}" for k in mapped["fold"]]
    return Evidence(
        settings={"name": "made", "folds": {"seed": 7}, "cnn": {"resnet": {"seed": 3}}},
        synthetic=True,
        folds_by_slice=False,
        table=table,
        classes=CLASSES,
        class_weights=[1.0, 1.0, 2.0],
        values="hu",
        probability=p["oof"],
        test_probability=p["test"],
        scores=scores,
        tuned=tuned,
        cross_fitted=cross_fitted,
        beta=2.0,
        reliability=pd.DataFrame(reliability),
        blends=[blend] * 3,
        logits=np.stack(logits),
        trainings={
            "resnet": Training(dict.fromkeys(range(3), EPOCHS), "valid_f1", stopped_on_fold=True),
            "densenet": Training(dict.fromkeys(range(3), EPOCHS)),
        },
        mapped_by="resnet",
        embedding_map=mapped,
        cam_by="resnet",
        suspicious=suspicious,
        audit=pd.DataFrame([{"rule": "suspicion", "flagged": 20, "precision": 0.25}]),
        quarantined=[],
        warnings=[],
        artifacts=[
            Artifact("cnn", "cnn/resnet/fold0", 30.0, 100.0, {"torch": "1"}, {}),
            Artifact("cnn", "cnn/resnet", 31.5, 200.0, {"torch": "2"}, {"oof.parquet": "ab12"}),
            Artifact("submit", "submit", 1.0, 50.0, {}, {"submission.csv": "cd34"}),
        ],
    )
