"""The commands in README, CONTRIBUTING and docs exist and run; their links and file names exist.

Commands in ```bash blocks are run on a tiny recipe. Commands in ```sh blocks take long or need other data; only their
command names are checked.
"""

import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ich.cli import app

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in DOCUMENTS}
OTHERS = {"bash run_all.sh", "bash run_all.sh configs/rsna2019.yaml", "bash tests/run.sh", "source .venv/bin/activate"}
RECIPES = {
    "configs/demo.yaml": "tests/tiny.yaml",
    "configs/ensembling_demo.yaml": "tests/parts.yaml",
    "configs/seeds/unbalanced_demo.yaml": "tests/parts.yaml",
}
FEWER = {"300": "3", "cnn.resnet.epochs=9": "cnn.resnet.epochs=1"}  # trials and epochs


def commands(text: str, language: str) -> list[str]:
    blocks = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return [line.partition("  #")[0].strip() for block in blocks for line in block.strip().splitlines()]


RUN = list(dict.fromkeys(line for text in TEXTS.values() for line in commands(text, "bash")))
ICH = [shlex.split(line)[1:] for line in RUN if line.startswith("ich ")]
SHOWN = [line for text in TEXTS.values() for line in commands(text, "sh")]


def test_the_readme_starts_with_two_commands():
    assert commands(TEXTS["README.md"], "bash")[:2] == ["bash run_all.sh", "bash tests/run.sh"]
    assert len(ICH) >= 5


def test_other_commands_are_known():
    assert {line for line in RUN if not line.startswith("ich ")} <= OTHERS


def test_commands_that_are_not_run_exist():
    names = {shlex.split(line)[1] for line in SHOWN if line.startswith("ich ")}
    assert names <= {command.name for command in app.registered_commands}


def test_no_command_runs_at_full_size():
    assert {word for words in ICH for word in words if word.endswith(".yaml")} <= set(RECIPES)


@pytest.mark.parametrize("document", TEXTS)
def test_links_and_file_names_exist(document):
    text, folder = TEXTS[document], (ROOT / document).parent
    links = [link.partition("#")[0] for link in re.findall(r"\]\((?!http|#)([^)\s]+)\)", text)]
    names = re.findall(r"`((?:configs|src|tests|benchmarks)/[\w/.-]+|run_all\.sh)`", text)
    missing = [link for link in links if not (folder / link).exists()]
    missing += [name for name in names if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("document", TEXTS)
def test_anchors_exist(document):
    folder = (ROOT / document).parent
    for path, anchor in re.findall(r"\]\((?!http)([^)#\s]*)#([^)\s]+)\)", TEXTS[document]):
        text = (folder / path).read_text(encoding="utf-8") if path else TEXTS[document]
        headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("words", ICH, ids=" ".join)
def test_a_command_runs(clone_copy, words):
    """The same command on a tiny recipe."""
    if "--table" in words:
        random = np.random.default_rng(0)
        table = pd.DataFrame({"any": random.integers(0, 2, 100), "prob_any": random.random(100)})
        table.to_parquet(clone_copy.root / words[words.index("--table") + 1])
    command, *rest = [FEWER.get(word, RECIPES.get(word, word)).replace("demo", "tiny") for word in words]
    recipe = next((word for word in rest if word in RECIPES.values()), None)
    rest += ["--set", "ablation.seeds=[1]"] if command == "ablate" else []
    if "--bundle" in words:
        clone_copy.ich("export", "-o", "bundle")
    warned = command == "check"  # a gap in a series is a warning
    clone_copy.ich(command, *(word for word in rest if word != recipe), recipe=recipe, code=int(warned))
