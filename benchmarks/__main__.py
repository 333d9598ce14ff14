"""`python -m benchmarks [TOPIC ...]`: time this repository against the machine's limits and against common code.

Each topic prints its table, saves it as JSON with the machine and the versions in benchmarks/results, and updates the
tables of docs/background/performance.md. Only `python -m benchmarks.gpu` uses a GPU.
"""

import argparse
import os
from importlib import import_module

from benchmarks import harness
from ich.console import set_level

TOPICS = {
    "prepare": "`ich prepare` on one core, against reading, copying and resizing the files, and against a plain script",
    "training": "one epoch of `fit`, against the same network on one batch in memory",
    "prediction": "logits and embeddings of all slices, against the network's forward pass alone",
    "sequence": "one epoch of a stage-2 network on packed batches, against a loader of padded studies",
    "stacker": "the stacker's features and LightGBM models, against pandas and LightGBM's defaults",
    "thresholds": "thresholds on a table of RSNA 2019's size: exact, cross-fitted, and by Optuna",
    "memory": "peak memory of each stage by number of slices, with the embedding widths of configs/rsna2019.yaml",
    "demo": "`run_all.sh` on the demo by stage; starting, and rerunning it when all is up to date",
}  # module -> what it measures
SHOWN = {**TOPICS, "gpu": "`python -m benchmarks.gpu`: networks on a GPU, against the same steps on one batch there"}
RESULTS = harness.ROOT / "benchmarks" / "results"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=(__doc__ or "").splitlines()[0].partition(": ")[2],
        epilog="topics: " + "; ".join(f"{topic}: {what}" for topic, what in TOPICS.items()),
    )
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help="default: all")
    parser.add_argument("--quick", action="store_true", help="run once on little data to test the code; save nothing")
    given = parser.parse_args()
    if unknown := [topic for topic in given.topics if topic not in TOPICS]:
        parser.error(f"no topic {', '.join(unknown)}; choose from {', '.join(TOPICS)}")
    set_level("quiet")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    for topic in given.topics or TOPICS:
        print(f"{topic}: {TOPICS[topic]}", flush=True)
        found = list(import_module(f"benchmarks.{topic}").run(quick=given.quick))
        print(harness.table(found), flush=True)
        for one in found:
            if one.get("notes"):
                print(f"{one['name']}: {one['notes']}", flush=True)
        if not given.quick:
            harness.save(RESULTS / f"{topic}.json", found)
            write_tables()


def write_tables() -> None:
    """Update docs/background/performance.md from the saved results."""
    harness.update(harness.ROOT / "docs" / "background" / "performance.md", harness.document(RESULTS, SHOWN))


if __name__ == "__main__":
    main()
