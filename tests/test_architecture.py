"""The import rules of the code base, read from the syntax trees of its files."""

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "ich"
FILES = {path.relative_to(SOURCE).as_posix(): path for path in sorted(SOURCE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}

BASE = {"errors", "inputs", "console", "processes", "store"}
WORK = {"training", "networks", "data", "ensemble", "report", "phantom"}  # take plain arguments: no recipe, no paths
ALLOWED = {
    "errors": set(),
    "inputs": set(),
    "console": set(),
    "processes": {"console", "errors"},
    "store": {"errors"},
    "recipe": {"errors", "inputs"},
    "networks": set(),
    "data": {"errors", "inputs", "processes", "store"},
    "phantom": {"data", "inputs", "processes"},
    "ensemble": {"errors", "inputs"},
    "report": {"errors", "console", "ensemble", "data"},
    "training": {"errors", "console", "processes", "store"},
    "models": {"recipe", *BASE, *WORK},
    "pipeline": {"recipe", "models", *BASE, *WORK},
    "stages": {"recipe", "models", "pipeline", *BASE, *WORK},
    "api": {"models", "stages"},
    "cli": {"recipe", "models", "pipeline", "stages", "errors", "console", "processes"},
    "__main__": {"cli"},
}
OWNERS = {
    "timm": {"networks/cnn.py"},
    "pydicom": {f"data/dicom/{name}.py" for name in ("parsed", "elements", "writing", "results")},
    "highdicom": {"data/dicom/results.py"},
    "pynetdicom": {"stages/serve.py"},
    "imagecodecs": {"data/decoders.py"},
    "albumentations": {"data/augment.py"},
    "lightgbm": {"ensemble/stacker.py"},
    "optuna": {"ensemble/thresholds/search.py"},
    "ray": {"pipeline/engines/ray.py"},
    "submitit": {"pipeline/engines/slurm.py"},
    "captum": {"report/gradcam.py"},
    "matplotlib": {"report/figures.py"},
    "plotly": {"report/page/document.py"},
    "joblib": {"processes.py"},
    "filelock": {"store/locks.py"},
    "fsspec": {"store/remote.py"},
    "safetensors": {"models/network.py", "stages/export.py"},
    "accelerate": {"training/trackers.py"},
    "onnx": {"networks/onnx.py"},
    "onnxruntime": {"models/onnx.py", "models/to_onnx.py"},
}
HEAVY = {"torch", "timm", "numpy", "pandas", "sklearn", "lightgbm", "optuna", "pydicom", "cv2", "albumentations"}
LATE = {  # packages that a file imports inside functions, beside cli.py and the registry of kinds
    "__init__.py": {"ich"},  # the API
    "processes.py": {"joblib"},  # `ich --help` starts no worker processes
    "data/decoders.py": {"imagecodecs", "resource"},  # in the decoding process only
    "networks/cnn.py": {"torchvision"},  # a check
    "store/remote.py": {"fsspec"},  # only with store.remote
    "training/trackers.py": {"accelerate"},  # slow, and only with trackers
}
KINDS = {"pretrain", "cnn", "end_to_end", "sequence", "smooth", "stack", "external"}


@cache
def imports(name: str, *, top: bool = False) -> list[str]:
    """Full names of all imports of a file; top: those at its top level only."""
    found: list[str] = []
    for node in TREES[name].body if top else ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def files_of(name: str) -> set[str]:
    """The files that run when `ich.a.b.c` is imported: those of its packages, and its own."""
    parts = name.split(".")[1:]
    paths = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return {file for path in paths for file in (f"{path}.py", f"{path}/__init__.py") if file in FILES}


def reached(name: str) -> set[str]:
    """Packages that importing a file loads, directly or through other files."""
    seen, packages, todo = set[str](), set[str](), [name]
    while todo:
        file = todo.pop()
        if file not in seen:
            seen.add(file)
            for imported in imports(file, top=True):
                packages.add(imported.split(".")[0])
                todo += files_of(imported) if imported.startswith("ich.") else []
    return packages


@pytest.mark.parametrize("name", [name for name in FILES if name != "__init__.py"])
def test_a_file_imports_only_lower_layers(name):
    layer = name.removesuffix(".py").split("/", maxsplit=1)[0]
    found = {imported.split(".")[1] for imported in imports(name) if imported.startswith("ich.")}
    assert found <= {layer, *ALLOWED[layer]}
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(TREES[name]))


def test_the_layers_and_the_files_have_no_cycles():
    TopologicalSorter(ALLOWED).prepare()
    graph: dict[str, set[str]] = {}
    for name in FILES:
        own = {f"{parent.as_posix()}/__init__.py" for parent in Path(name).parents}  # packages that the file is in
        graph[name] = {file for one in imports(name) if one.startswith("ich.") for file in files_of(one)} - own
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("library", OWNERS)
def test_a_large_dependency_is_imported_by_its_owners_only(library):
    users = {name for name in FILES if library in {one.split(".")[0] for one in imports(name)}}
    assert users == OWNERS[library]


TORCHLESS = [name for name in FILES if name.startswith("ensemble/")]
TORCHLESS += [
    f"models/{name}.py" for name in ("smooth", "stack", "blend", "artifacts", "base", "onnx", "registry", "table")
]
TORCHLESS += [f"stages/{name}.py" for name in ("demo", "folds", "thresholds", "submit", "score", "score_outside")]
TORCHLESS += ["stages/predict.py", "api.py"]


@pytest.mark.parametrize("name", [*TORCHLESS, "pipeline/runner.py"])
def test_files_that_need_no_network_do_not_import_torch(name):
    assert "torch" not in reached(name)


LOOKS = [name for name in FILES if name.startswith(("recipe/", "store/", "console/"))]
LOOKS += [
    "cli.py",
    "errors.py",
    "inputs.py",
    "processes.py",
    "pipeline/graph.py",
    "pipeline/state.py",
    "stages/status.py",
]


@pytest.mark.parametrize("name", LOOKS)
def test_status_and_help_import_nothing_heavy(name):
    assert not HEAVY & reached(name)


@pytest.mark.parametrize("name", [name for name in FILES if name != "cli.py"])
def test_imports_are_at_the_top(name):
    late = Counter(imports(name)) - Counter(imports(name, top=True))
    assert {imported.split(".")[0] for imported in late} == LATE.get(name, set()), list(late)


def kinds_compared(tree: ast.AST) -> Iterator[int]:
    """Lines that compare a value with the name of a kind of models."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            compared = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            compared = [node.value]
        else:
            continue
        values = {value.value for part in compared for value in ast.walk(part) if isinstance(value, ast.Constant)}
        if KINDS & values:
            yield node.lineno


@pytest.mark.parametrize("name", [n for n in FILES if not n.startswith(("models/", "recipe/", "cli.py"))])
def test_no_file_compares_the_name_of_a_kind_of_model(name):
    lines = list(kinds_compared(TREES[name]))
    assert not lines, f"{name}: lines {lines} compare with the name of a kind"
