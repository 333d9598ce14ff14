"""`ich export --kaggle`: a bundle, the list of its wheels, and a notebook that predicts without internet.

The formats of both metadata files are those of the Kaggle command line: docs/kernels_metadata.md and
docs/datasets_metadata.md of github.com/Kaggle/kaggle-api.
"""

import os
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path, PurePosixPath
from typing import Any

from ich.errors import UserError
from ich.models.bundle import SPEC, Spec
from ich.models.table import read_parquet
from ich.pipeline.state import Plan
from ich.store.atomic import write_json, write_text

COMPETITIONS = {"rsna2019": "rsna-intracranial-hemorrhage-detection"}  # slugs, by format
USER, COMPETITION = "INSERT_USERNAME", "INSERT_COMPETITION"
INSTALLED = ("torch", "torchvision")  # by Kaggle, for its GPUs; other packages there have other versions
NOTEBOOK = "inference.ipynb"
TITLE = """\
# Submission of the ensemble {name}

Runs without internet. Attach the competition and the dataset with `bundle/` and `wheels/`; `bundle/README.md` is the
model card. See docs/how-to/kaggle.md of ich."""
FOLDERS = """\
import subprocess
import sys
from pathlib import Path

INPUT = Path("/kaggle/input")


def find(name: str) -> Path:
    \"\"\"Return the path of a file in an attached dataset or competition, at most four folders deep.\"\"\"
    paths = (path for depth in range(1, 5) for path in sorted(INPUT.glob("*/" * depth + name)))
    found = next(paths, None)
    assert found is not None, f"{{name}} is not below {{INPUT}}: attach its dataset or competition"
    return found


DATASET = find("bundle/{spec}").parent.parent
TEST = find({sample!r}).parent / {test!r}"""
INSTALL = """\
pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--find-links", DATASET / "wheels"]
subprocess.run([*pip, "-r", DATASET / "wheels.txt"], check=True)"""
PREDICT = """\
ich = [sys.executable, "-m", "ich", "predict", "--bundle", DATASET / "bundle", TEST, "--out", "scored.csv"]
subprocess.run([*ich, "--submission", "submission.csv", "--time-limit", "8h"], check=True)"""
SHOW = """\
import pandas as pd

pd.read_csv("submission.csv")"""


def write(plan: Plan, spec: Spec, folder: Path) -> None:
    """Write everything but the bundle. Raises UserError for a recipe without a sample submission or a test set."""
    sample = plan.record_of(plan.prepared)["template"]
    slices = read_parquet(plan.prepared.folder / "slices.parquet")
    paths = slices.loc[slices["split"] == "test", "path"]
    if not sample or paths.empty or spec.thresholds is None:
        need = "thresholds; run `ich thresholds`" if spec.thresholds is None and sample else "a competition's test set"
        raise UserError(f"--kaggle needs {need}")
    test = os.path.commonpath([PurePosixPath(path).parent for path in paths])
    texts = {"name": spec.name, "spec": SPEC, "sample": sample, "test": test}
    write_json(
        folder / NOTEBOOK, _notebook([text.format(**texts) for text in (TITLE, FOLDERS, INSTALL, PREDICT, SHOW)])
    )
    write_text(folder / "wheels.txt", "".join(f"{line}\n" for line in sorted(_pins("ich"))))
    words = f"ich {spec.name.replace('_', ' ')}"[:30].strip()
    dataset, kernel = f"{words} bundle", f"{words} inference"
    write_json(
        folder / "dataset-metadata.json",
        {
            "title": dataset,
            "id": f"{USER}/{dataset.replace(' ', '-')}",
            "subtitle": "Trained ensemble and wheels, for inference without internet",
            "licenses": [{"name": "other"}],
            "description": "bundle/README.md is the model card. Software: MIT licence. The weights were trained on data"
            " of the competition, so its rules apply.",
        },
    )
    write_json(
        folder / "kernel-metadata.json",
        {
            "id": f"{USER}/{kernel.replace(' ', '-')}",
            "title": kernel,
            "code_file": NOTEBOOK,
            "language": "python",
            "kernel_type": "notebook",
            "is_private": "true",
            "enable_gpu": "true",
            "enable_internet": "false",
            "dataset_sources": [f"{USER}/{dataset.replace(' ', '-')}"],
            "competition_sources": [COMPETITIONS.get(spec.competition, COMPETITION)],
            "kernel_sources": [],
            "model_sources": [],
        },
    )


def _notebook(texts: list[str]) -> dict[str, Any]:
    """Return a notebook of one Markdown cell and code cells, in Jupyter's format 4.5."""
    cells: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        cell = {"id": f"cell-{number}", "metadata": {}, "source": text.splitlines(keepends=True)}
        kind = {"cell_type": "code", "execution_count": None, "outputs": []} if number else {"cell_type": "markdown"}
        cells.append(kind | cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def _pins(name: str, done: set[str] | None = None) -> Iterator[str]:
    """Yield a package and all that it needs as name==version, without INSTALLED and what only these need."""
    done = set() if done is None else done
    name = re.sub(r"[-_.]+", "-", name).lower()
    if name in done or name in INSTALLED:
        return
    done.add(name)
    try:
        yield f"{name}=={version(name)}"
    except PackageNotFoundError:  # for other systems or Python versions
        return
    for requirement in requires(name) or ():
        if "extra ==" not in requirement:
            yield from _pins(re.split(r"[^\w.-]", requirement, maxsplit=1)[0], done)
