"""What a full RSNA 2019 run costs, worked out: `python -m benchmarks.cost` prints hours, memory and the arithmetic.

Measured are the rates of the machine that left benchmarks/results, and each backbone's arithmetic is counted. Where
no GPU was measured, its rate is the published one times an assumed efficiency: both are printed, and labelled.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

TRAIN, TEST, BYTES = 752_803, 121_232, 460e9
STUDIES = 19_530
RESULTS = Path(__file__).parent / "results"
RECIPE = Path(__file__).parents[1] / "configs" / "rsna2019.yaml"
BACKWARD = 2  # times the forward arithmetic: the gradients of activations and of weights
HOUR, GIB, GB = 3600, 2**30, 1e9
FITTED = {"training": ("resnet18", 128), "training_gpu": ("resnext50_32x4d", 512)}  # backbone, pixels a side


@dataclass(frozen=True)
class Gpu:
    """A card of which nothing was measured: its published rate, and the share of it that networks may reach."""

    name: str
    peak: float  # bf16 multiplications and additions a second, dense, as its maker publishes
    efficiency: float  # assumed; convolutions of few channels are bound by memory, the more so on the faster card
    cores: int  # of the CPU beside it, assumed
    disk: float  # bytes read a second, assumed


GPUS = (
    Gpu("one H200 (141 GB)", 989e12, 0.10, 16, 2e9),
    Gpu("one 24 GB card (RTX 4090)", 165e12, 0.20, 8, 1e9),
)


@dataclass(frozen=True)
class Machine:
    """Where the recipe runs."""

    name: str
    flops: float  # a second, as the networks reach them
    cores: int
    disk: float | None  # bytes read a second; None: it was not the limit where prepare was measured
    said: str  # where the figures come from


@dataclass(frozen=True)
class Network:
    """What one backbone of the recipe asks for."""

    name: str
    flops: float  # of one forward pass of one slice
    activations: float  # bytes that a slice in training keeps for the backward pass, in 16 bits
    weights: int
    width: int
    epochs: int
    batch: int

    @property
    def device_memory(self) -> float:
        """Bytes while it trains: weights, gradients, both moments and the average in 32 bits, and a batch's maps."""
        return 20 * self.weights + self.batch * self.activations


def networks(recipe: Any, size: int) -> Iterator[Network]:
    """Count each cnn member of a recipe, without data: on torch's device that has shapes only."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ich.networks.cnn import Cnn
    from ich.stages.inputs import view_of
    from ich.stages.networks import cnn_spec

    for name, settings in recipe.cnn.items():
        spec = replace(cnn_spec(settings, view_of(settings, "hu").channels, 6), pretrained=False, weights=None)
        network = Cnn(spec).to("meta").train()
        # two slices, for a norm layer in training wants more than one value
        pictures = torch.empty(2, spec.in_channels, size, size, device="meta")
        kept: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, torch.Tensor] = kept) -> torch.Tensor:
            if tensor.ndim == 4 and tensor.shape[0] == 2:  # maps, not weights; what two operations keep is there once
                kept[tensor.untyped_storage()._cdata] = tensor
            return tensor

        counter = FlopCounterMode(display=False)
        with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network.backbone(pictures)
        activations = sum(tensor.numel() for tensor in kept.values())  # two slices, two bytes each
        weights = sum(p.numel() for p in network.parameters())
        width, epochs, batch = network.embedding_size, settings.epochs, settings.batch_size
        yield Network(name, counter.get_total_flops() / 2, activations, weights, width, epochs, batch)


# ---- what was measured


class Unmeasured(Exception):
    """There is no result of a topic yet; the text says how to get it."""


def measured(topic: str) -> list[dict[str, Any]]:
    path = RESULTS / f"{topic}.json"
    if not path.is_file():
        where = " on a GPU" if topic.endswith("_gpu") else ""
        raise Unmeasured(f"{path.name} is not there yet: python -m benchmarks {topic.removesuffix('_gpu')}{where}")
    return json.loads(path.read_text())["races"]


def rate(topic: str, *words: str) -> tuple[float, str]:
    """Ours a second, of the first race whose name has all the words, and its name."""
    for one in measured(topic):
        if all(word in one["name"] for word in words):
            return float(one["rate"]["ours"]), one["name"]
    raise Unmeasured(f"{topic}.json has no race with {' and '.join(words)} in its name")


def fitted(result: str) -> Machine:
    """The device that left a result: it does as many multiplications in any network as in the one it was timed with."""
    from ich.recipe import load

    backbone, size = FITTED[result]
    a_second, name = rate(result, backbone, str(size))
    recipe = load(RECIPE, ["cnn={}", f"cnn.fitted={{backbone: {backbone}}}", *ALONE])
    (network,) = networks(recipe, size)
    about = json.loads((RESULTS / f"{result}.json").read_text())["machine"]
    trained = (1 + BACKWARD) * network.flops
    said = f"measured: {name}, {a_second:.1f} slices/s x {trained / 1e9:.1f} GFLOP"
    device = about["gpu"] or about["cpu"]
    return Machine(f"{device}, {about['cores']} cores", a_second * trained, about["cores"], None, said)


ALONE = ("sequence={}", "smooth={}", "stack={}", "blend.members=all")  # of a recipe's members, the cnn ones


# ---- what follows


def lines(machine: Machine, recipe: Any, nets: list[Network]) -> Iterator[str]:
    """A stage a line, with its arithmetic; then the sum."""
    folds, total, whole = recipe.folds.n, 0.0, True
    yield f"{machine.name}: {machine.flops / 1e12:.3g} TFLOP/s ({machine.said})"
    for what, step in (("prepare", prepare), ("stage 2", sequence), ("tables", tables)):
        try:
            seconds, arithmetic = step(machine, recipe)
        except Unmeasured as error:
            yield f"  {what:10} {'?':>8}     {error}"
            whole = False
            continue
        total += seconds
        yield f"  {what:10} {seconds / HOUR:8.2f} h   {arithmetic}"
    for net in nets:
        passes = 0.8 * TRAIN * net.epochs * (1 + BACKWARD) + 0.2 * TRAIN * net.epochs + TRAIN + TEST
        seconds = folds * passes * net.flops / machine.flops
        total += seconds
        fed = machine.flops / ((1 + BACKWARD) * net.flops)
        yield (
            f"  {net.name:10} {seconds / HOUR:8.2f} h   {folds} folds x {passes / 1e6:.2f} M forward passes x"
            f" {net.flops / 1e9:.1f} GFLOP; while it trains the loader gives {fed:,.0f} slices/s"
        )
    yield f"  {'sum':10} {total / HOUR:8.2f} h{'' if whole else ', of those with a figure'}"


def prepare(machine: Machine, _recipe: Any) -> tuple[float, str]:
    each, name = rate("prepare", "warm")
    computed = (TRAIN + TEST) / (each * machine.cores)
    said = f"{TRAIN + TEST:,} slices / ({each:,.0f} a second and core, {name} x {machine.cores} cores)"
    if machine.disk is None:
        return computed, said
    read = BYTES / machine.disk
    return max(computed, read), f"{said}: {computed / HOUR:.2f} h; {BYTES / GB:.0f} GB / {machine.disk / GB:g} GB/s"


def sequence(_machine: Machine, recipe: Any) -> tuple[float, str]:
    each, name = rate("sequence", "")
    epochs = sum(settings.epochs for settings in recipe.sequence.values())
    studies = recipe.folds.n * 0.8 * STUDIES * epochs
    return studies / each, f"{studies:,.0f} studies / {each:,.0f} a second ({name}); a GPU takes less"


def tables(_machine: Machine, recipe: Any) -> tuple[float, str]:
    """Stacker, blend and all after it, as the topic memory ran them at full size."""
    folds = {"stack": recipe.folds.n, "smooth": recipe.folds.n, "blend": recipe.folds.n}
    seconds = {
        one["name"]: folds.get(one["name"], 1) * last(one)["seconds"]
        for one in measured("memory")
        if one["name"] in (*folds, "folds", "thresholds", "submit", "score")
    }
    return sum(seconds.values()), ", ".join(f"{name} {s:.0f} s" for name, s in seconds.items())


def last(one: dict[str, Any]) -> dict[str, float]:
    """What was measured of the most slices."""
    return one["memory"][max(one["memory"], key=int)]


def memory_lines(recipe: Any, nets: list[Network]) -> Iterator[str]:
    """Of the host by stage, of the device by backbone, of the disk."""
    try:
        peaks = [f"{one['name']} {last(one)['own_mib'] / 1024:.2f}" for one in measured("memory")]
        yield f"host, GiB at full size, measured: {', '.join(peaks)}"
    except Unmeasured as error:
        yield f"host: {error}"
    on_device = [f"{net.name} {net.device_memory / GIB:.1f} (batch {net.batch})" for net in nets]
    yield f"device, GiB, worked out, without the libraries' work space: {', '.join(on_device)}"
    rows, width = TRAIN + TEST, sum(net.width for net in nets)
    pictures, embeddings = rows * 2 * recipe.image.size**2, recipe.folds.n * rows * 2 * width
    yield (
        f"disk: hu.npy {rows:,} x {recipe.image.size}^2 x 2 bytes = {pictures / GB:.0f} GB;"
        f" embeddings {recipe.folds.n} folds x {rows:,} x {width:,} x 2 bytes = {embeddings / GB:.0f} GB"
    )


def main() -> None:
    from ich.recipe import load

    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description="A full RSNA 2019 run, worked out.")
    parser.add_argument("--efficiency", type=float, help="share of its published rate that a GPU is taken to reach")
    given = parser.parse_args()
    recipe = load(RECIPE)
    nets = list(networks(recipe, recipe.image.size))
    machines: list[Machine] = []
    for gpu in GPUS:
        share = given.efficiency or gpu.efficiency
        said = f"not measured: {gpu.peak / 1e12:.0f} published x {share:.0%} assumed"
        machines.append(Machine(gpu.name, gpu.peak * share, gpu.cores, gpu.disk, said))
    for result in FITTED:
        try:
            machines.append(fitted(result))
        except Unmeasured as error:
            print(f"{error}\n")
    for machine in machines:
        print("\n".join(lines(machine, recipe, nets)) + "\n")
    print("\n".join(memory_lines(recipe, nets)))


if __name__ == "__main__":
    main()
