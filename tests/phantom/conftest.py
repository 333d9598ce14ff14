"""One tiny competition, written once with one process and once with two."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from ich.phantom.competition import CompetitionSummary, write_competition

SIZES = {"train_studies": 9, "test_studies": 5, "slices": 7, "size": 64, "seed": 5}


@dataclass(frozen=True)
class Written:
    root: Path
    summary: CompetitionSummary
    calls: list[tuple[int, int]]


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    root = tmp_path_factory.mktemp("competition") / "one"
    calls: list[tuple[int, int]] = []
    summary = write_competition(root, **SIZES, on_progress=lambda done, total: calls.append((done, total)))
    return Written(root, summary, calls)


@pytest.fixture(scope="session")
def written_by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("competition") / "two"
    write_competition(root, **SIZES, jobs=2)
    return root
