"""`python -m benchmarks [TOPIC ...]`: what this repository does against the limits of the machine and against others.

Each topic prints its table and leaves it as JSON in benchmarks/results, with the machine and the versions.
"""

import argparse
from importlib import import_module
from pathlib import Path

from benchmarks import race

TOPICS = {
    "prepare": "raw DICOM files to the HU cache, against reading and copying their bytes and against a plain script",
    "training": "a whole fit, against the same network on one batch that is in memory already",
    "prediction": "logits and embeddings, against the network alone",
    "augmentation": "pictures changed by the loader or on the device",
    "sequence": "stage 2 on tables of RSNA 2019's size, against a loader of one padded study a sample",
    "stacker": "the stacker's features, against pandas' groupby and shift",
    "thresholds": "thresholds of a table of RSNA 2019's size: the exact optimum, cross-fitted, and Optuna's search",
    "folds": "folds of a table of RSNA 2019's size, against two ways of scikit-learn",
    "processes": "folds side by side, against one after the other",
    "memory": "peak memory by number of slices",
    "start": "starting, and a run of which nothing is left to do, against an empty Python process",
}  # by topic, which is a module: what it times


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=(__doc__ or "").splitlines()[0].partition(": ")[2],
        epilog="topics: " + "; ".join(f"{topic}: {what}" for topic, what in TOPICS.items()),
    )
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help="default: all")
    parser.add_argument("--quick", action="store_true", help="small and once: to see that it runs; nothing is saved")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON files")
    given = parser.parse_args()
    if unknown := [topic for topic in given.topics if topic not in TOPICS]:
        parser.error(f"no such topic: {', '.join(unknown)}; there are {', '.join(TOPICS)}")
    for topic in given.topics or TOPICS:
        print(f"{topic}: {TOPICS[topic]}", flush=True)
        races = list(import_module(f"benchmarks.{topic}").races(quick=given.quick))
        print(race.table(races), flush=True)
        if not given.quick:
            print(f"-> {race.save(given.out, topic, races)}", flush=True)


if __name__ == "__main__":
    main()
