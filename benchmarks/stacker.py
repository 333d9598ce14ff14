"""The stacker's features and LightGBM models on a table of RSNA 2019's size.

752,803 slices in studies of 20 to 57, six classes, logits of four models, five neighbours to each side. The other way
makes the same 112 columns in pandas, with one groupby per column, as most people write it. The models of both ways have
60 rounds of 7 leaves on one thread: ours as `ich stack` fits them by default, the others by LightGBM's scikit-learn
interface with its defaults.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from lightgbm import LGBMClassifier

from benchmarks.harness import RSNA_SLICES, Result, compare
from ich.ensemble import stacker

MODELS, CLASSES, NEIGHBOURS, SEED = 4, 6, 5, 7
ROUNDS, LEAVES, RATE = 60, 7, 0.05  # a recipe's defaults


def table(slices: int) -> pd.DataFrame:
    """study, index, position, one column per model and class, and one label per class; sorted by study and index."""
    random = np.random.default_rng(SEED)
    study = np.repeat(np.arange(slices), random.integers(20, 58, slices))[:slices]
    index = np.arange(slices) - np.flatnonzero(np.diff(study, prepend=-1))[study]
    labels = random.random((slices, CLASSES)) < 0.05
    logits = random.normal(size=(slices, MODELS, CLASSES)).astype(np.float32) + 2 * labels[:, None] - 3
    columns = {"study": study, "index": index, "position": 5.0 * index + random.normal(0, 0.1, slices)}
    columns |= {f"model{m}_class{c}": logits[:, m, c].astype(float) for m in range(MODELS) for c in range(CLASSES)}
    return pd.DataFrame(columns | {f"label{c}": labels[:, c].astype(float) for c in range(CLASSES)})


def our_features(data: pd.DataFrame, logits: np.ndarray) -> np.ndarray:
    """Features [n, 112] of logits [n, models, classes]."""
    return stacker.features(logits, data["study"], data["index"], data["position"], NEIGHBOURS)[0]


def pandas_features(data: pd.DataFrame) -> np.ndarray:
    """The same features by pandas."""
    data = data.drop(columns=[f"label{c}" for c in range(CLASSES)]).sort_values(["study", "index"])
    for c in range(CLASSES):
        data[f"mean_class{c}"] = data[[f"model{m}_class{c}" for m in range(MODELS)]].mean(axis=1)
    made: dict[str, pd.Series] = {}
    for offset in (*range(-NEIGHBOURS, 0), *range(1, NEIGHBOURS + 1)):
        for c in range(CLASSES):
            made[f"slice{offset:+d}_class{c}"] = data.groupby("study")[f"mean_class{c}"].shift(-offset)
    for statistic, options in (("mean", {}), ("max", {}), ("std", {"ddof": 0})):
        for c in range(CLASSES):
            of_study = data.groupby("study")[f"mean_class{c}"]
            made[f"study_{statistic}_class{c}"] = of_study.transform(statistic, **options)
    position = data["position"]
    low = data.groupby("study")["position"].transform("min")
    high = data.groupby("study")["position"].transform("max")
    made["relative_position"] = ((position - low) / (high - low)).fillna(0.5)
    made["slices"] = data.groupby("study")["index"].transform("size")
    made["gap_previous"] = position - data.groupby("study")["position"].shift(1)
    made["gap_next"] = data.groupby("study")["position"].shift(-1) - position
    data = pd.concat([data.drop(columns=["study", "index", "position"]), pd.DataFrame(made)], axis=1)
    return data.sort_index().to_numpy(np.float32)


def our_models(x: np.ndarray, y: np.ndarray, base: np.ndarray) -> list[str]:
    shape = {"num_iterations": ROUNDS, "num_leaves": LEAVES, "learning_rate": RATE}
    return list(stacker.fit(x, y, base, seeds=range(CLASSES), threads=1, **shape))


def plain_models(x: np.ndarray, y: np.ndarray) -> list[LGBMClassifier]:
    shape = {"n_estimators": ROUNDS, "num_leaves": LEAVES, "learning_rate": RATE}
    return [LGBMClassifier(n_jobs=1, verbose=-1, **shape).fit(x, y[:, c]) for c in range(CLASSES)]


def run(*, quick: bool) -> Iterator[Result]:
    """Features alone, then with the models."""
    data = table(2_000 if quick else RSNA_SLICES)
    logits = data.filter(like="model").to_numpy().reshape(len(data), MODELS, CLASSES)
    y, base = data.filter(like="label").to_numpy(), logits.mean(axis=1)
    yield compare(
        "stacker's features",
        {"ours": lambda: our_features(data, logits), "pandas": lambda: pandas_features(data)},
        unit="slices",
        count=len(data),
        rounds=1 if quick else 5,
    )
    yield compare(
        "features and six models",
        {
            "ours": lambda: our_models(our_features(data, logits), y, base),
            "pandas, LightGBM's defaults": lambda: plain_models(pandas_features(data), y),
        },
        unit="slices",
        count=len(data),
        rounds=1 if quick else 3,
        warm_up=0,
    )
