"""One tiny competition, written once with one process and once with two."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from ich.phantom.competition import PlannedStudy, plan_competition, write_competition
from ich.phantom.study import Study, make_study

COUNTS = {"train_studies": 9, "test_studies": 5, "seed": 5}
SIZES = {"slices": 7, "size": 64}


@dataclass(frozen=True)
class Written:
    root: Path
    calls: list[int]  # of on_progress
    studies: list[tuple[PlannedStudy, Study]]  # made again, independently of the files


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    root = tmp_path_factory.mktemp("competition") / "one"
    calls: list[int] = []
    write_competition(root, **COUNTS, **SIZES, on_progress=calls.append)
    plan = plan_competition(**COUNTS)
    return Written(root, calls, [(p, make_study(5, p.patient, p.study, kinds=p.kinds, **SIZES)) for p in plan])


@pytest.fixture(scope="session")
def written_by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("competition") / "two"
    write_competition(root, **COUNTS, **SIZES, jobs=2)
    return root
