"""The rules between rooms, read from the imports: data flows one way."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "ich"
ROOMS = ("phantom", "data", "networks", "training", "ensemble", "report", "stages")
ALLOWED = {
    "recipe": {"recipe"},
    "errors": set(),
    "store": {"store", "errors"},
    "console": {"console"},
    "processes": {"console", "errors"},
    "ranks": {"processes", "errors"},
    "phantom": {"phantom", "data.dicom", "processes"},
    "data": {"data", "processes", "ranks"},
    "networks": {"networks"},
    "ensemble": {"ensemble", "processes"},
    "report": {"report"},
    "training": {"training", "data", "networks", "ranks"},
    "stages": {
        "pipeline",
        "stages.artefacts",
        "stages.inputs",
        "stages.networks",
        "stages.member",
        "stages.fitting",
        "stages.maps",
        "stages.promises",
        "stages.reporting",
        "recipe",
        "errors",
        "store",
        "console",
        "processes",
        "ranks",
        *ROOMS[:-1],
    },
    "__main__": {"cli"},
    "pipeline": {"pipeline", "recipe", "store", "errors", "console", "ranks"},
    "cli": {"pipeline", "stages", "recipe", "errors", "console", "processes", "ranks"},
}
OWNERS = {
    "joblib": {"processes.py"},
    "timm": {"networks/cnn.py"},
    "pydicom": {"data/dicom/parsed.py", "data/dicom/elements.py", "data/dicom/writing.py"},
    "imagecodecs": {"data/decoders.py"},
    "albumentations": {"data/augment.py"},
    "lightgbm": {"ensemble/stacker.py"},
    "optuna": {"ensemble/thresholds/search.py"},
    "captum": {"report/gradcam.py"},
    "matplotlib": {"report/figures.py"},
    "pandera": {"data/schemas.py"},
}


def imports(path: Path) -> set[str]:
    """Full names of everything that a file imports, late imports included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


FILES = sorted(SOURCE.rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_room_imports_only_the_rooms_below_it(path):
    name = relative(path).removesuffix(".py")
    room = name.split("/", maxsplit=1)[0]
    if name == "__init__":
        return
    for imported in imports(path):
        if imported.startswith("ich."):
            target = imported.removeprefix("ich.")
            fine = any(target == ok or target.startswith(f"{ok}.") for ok in ALLOWED[room])
            assert fine, f"{name} imports {imported}"


@pytest.mark.parametrize("library", OWNERS)
def test_a_big_dependency_has_one_owner(library):
    users = {relative(path) for path in FILES if any(i.split(".")[0] == library for i in imports(path))}
    assert users == OWNERS[library]


def top_level_imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def reached(path: Path, late: bool) -> set[str]:
    """Packages that importing (or, with `late`, running) a file brings in."""
    seen: set[Path] = set()
    packages: set[str] = set()
    todo = [path]
    while todo:
        file = todo.pop()
        if file in seen:
            continue
        seen.add(file)
        for name in imports(file) if late else top_level_imports(file):
            packages.add(name.split(".")[0])
            if name.startswith("ich."):
                parts = name.split(".")[1:]
                for end in range(1, len(parts) + 1):  # a package's __init__ runs before what is in it
                    module = SOURCE.joinpath(*parts[:end])
                    todo += [f for f in (module.with_suffix(".py"), module / "__init__.py") if f.is_file()]
    return packages


@pytest.mark.parametrize("stage", ["smooth", "stack", "blend", "thresholds", "submit", "score"])
def test_stages_after_the_networks_start_without_torch(stage):
    assert "torch" not in reached(SOURCE / "stages" / f"{stage}.py", late=False)


@pytest.mark.parametrize("path", sorted((SOURCE / "ensemble").rglob("*.py")), ids=relative)
def test_the_ensemble_never_imports_torch(path):
    assert "torch" not in reached(path, late=True)


@pytest.mark.parametrize(
    "name",
    [
        "cli.py",
        "recipe/loading.py",
        "store/records.py",
        "console/__init__.py",
        "pipeline/graph.py",
        "pipeline/plan.py",
        "stages/status.py",
    ],
)
def test_a_look_at_the_state_imports_nothing_heavy(name):
    heavy = {
        "torch",
        "timm",
        "pandas",
        "numpy",
        "sklearn",
        "lightgbm",
        "optuna",
        "pydicom",
        "pandera",
        "cv2",
        "albumentations",
    }
    assert not heavy & reached(SOURCE / name, late=False)
