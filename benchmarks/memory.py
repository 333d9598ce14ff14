"""Peak memory of each stage by number of slices, one fold and one model each.

The synthetic competition stands in for RSNA 2019. Its images are tiny, because the size of an image does not matter for
tables and memory maps. Folds, kinds of models and embedding widths are those of configs/rsna2019.yaml.
"""

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Result, usage
from benchmarks.workspace import ich

COUNTS = (10_000, 50_000)  # training slices
SLICES = 34  # per study
TEST_SHARE = 0.16
RECIPE = """
name: memory
competition: {{format: rsna2019, root: input/memory}}
demo: {{train_studies: {train}, test_studies: {test}, slices: {slices}, size: 32}}
image: {{size: 16, crop: head}}
folds: {{n: 5}}
cnn:  # as wide as resnet34 and resnext50
  resnet: {{backbone: resnet14t, kwargs: {{channels: [8, 8, 8, 128], stem_width: 4}}, epochs: 1, batch_size: 512}}
  resnext: {{backbone: resnet14t, kwargs: {{channels: [8, 8, 8, 512], stem_width: 4}}, epochs: 1, batch_size: 512}}
sequence: {{bigru: {{inputs: [resnet, resnext], hidden: 16, epochs: 1, batch_size: 64}}}}
smooth: {{gauss: {{}}}}
stack: {{lgbm: {{}}}}
blend: {{inputs: all}}
thresholds: {{trials: 20}}
compute: {{processes: 1, threads: 2}}
"""
STAGES = {
    "prepare": "",
    "folds": "",
    "cnn": "resnext",
    "sequence": "bigru",
    "smooth": "gauss",
    "stack": "lgbm",
    "blend": "",
    "thresholds": "",
    "submit": "",
    "score": "",
}  # stage -> the model whose fold 0 is measured; without one, the whole stage


def run(*, quick: bool) -> Iterator[Result]:
    stages = ["prepare"] if quick else list(STAGES)
    measured = {count: dict(by_stage(count, stages)) for count in ((70,) if quick else COUNTS)}
    for stage in stages:
        yield usage(stage, {count: found[stage] for count, found in measured.items()})


def by_stage(count: int, stages: list[str]) -> Iterator[tuple[str, tuple[float, float]]]:
    """Measure each stage on about `count` training slices; then make the rest of it, which later stages read."""
    with tempfile.TemporaryDirectory(prefix="ich-benchmark-") as folder:
        train = count // SLICES
        Path(folder, "memory.yaml").write_text(
            RECIPE.format(train=train, slices=SLICES, test=math.ceil(TEST_SHARE * train))
        )
        ich(Path(folder), "demo", "memory.yaml")
        for stage in stages:
            model = STAGES[stage]
            one_fold = ("--model", model, "--fold", "0") if model else ()
            found = ich(Path(folder), stage, "memory.yaml", *one_fold)
            print(f"  {stage}, {count:,} slices: {found[0]:,.0f} MiB in {found[1]:.0f} s", flush=True)
            yield stage, found
            if model:
                ich(Path(folder), stage, "memory.yaml")
