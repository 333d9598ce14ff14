"""The README's commands exist and run; what it links to is there."""

import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) for line in block.strip().splitlines()]
RECIPES = {
    "configs/demo.yaml": "tests/tiny.yaml",
    "configs/ensembling_demo.yaml": "tests/parts.yaml",
    "configs/seeds/unbalanced_demo.yaml": "tests/parts.yaml",
}
ICH = [shlex.split(command)[1:] for command in COMMANDS if command.startswith("ich ")]


def test_the_two_commands_come_first():
    assert COMMANDS[:2] == ["bash run_all.sh", "bash tests/run.sh"]


def test_every_command_is_of_a_known_kind():
    assert len(ICH) >= 5
    assert {c for c in COMMANDS if not c.startswith("ich ")} == {"bash run_all.sh", "bash tests/run.sh"}


def test_the_documents_name_no_command_that_the_readme_does_not():
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")]
    blocks = [block for text in texts for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)]
    assert {line for block in blocks for line in block.strip().splitlines()} <= set(COMMANDS)


def test_no_command_of_the_readme_is_run_at_its_full_size():
    assert {word for words in ICH for word in words if word.endswith(".yaml")} <= set(RECIPES)


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)]+)\)", TEXT))
def test_a_link_leads_somewhere(link):
    assert (ROOT / link).exists()


@pytest.mark.parametrize("name", re.findall(r"`(configs/[^`]*|src/[^`]*|run_all\.sh)`", TEXT))
def test_a_named_file_exists(name):
    assert (ROOT / name).exists()


@pytest.mark.parametrize("words", ICH, ids=" ".join)
def test_a_command_of_the_readme_runs(house, words):
    """On a tiny recipe in place of the README's: the same command, seconds instead of minutes."""
    if "--table" in words:
        random = np.random.default_rng(0)
        table = pd.DataFrame({"any": random.integers(0, 2, 100), "prob_any": random.random(100)})
        table.to_parquet(house.root / words[words.index("--table") + 1])
    command, *rest = [RECIPES.get(word, word).replace("demo", "tiny") for word in words]
    recipe = next((word for word in rest if word in RECIPES.values()), None)
    rest += ["--set", "ablation.seeds=[1]"] if command == "ablate" else []
    process = house.start(command, *(word for word in rest if word != recipe), recipe=recipe)
    out, err = process.communicate(timeout=300)
    found_something = command == "check" and process.returncode == 1  # a gap in a series is a warning
    assert process.returncode == 0 or found_something, out + err
