"""A recipe's networks: built from its settings or from what a fold left, and what they say of pictures and studies."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from ich import ranks
from ich.errors import UserError
from ich.pipeline.graph import WEIGHTS, Task
from ich.pipeline.plan import Plan
from ich.recipe import Backbone, EndToEnd, Head
from ich.recipe import Cnn as CnnSettings
from ich.recipe import Sequence as SequenceSettings
from ich.stages.artefacts import as_written
from ich.store.hashes import sha256_bytes

if TYPE_CHECKING:
    import numpy as np

    from ich.data.datasets import SliceDataset
    from ich.data.studies import Studies
    from ich.data.study_pictures import StudyPictures
    from ich.networks.cnn import Cnn, CnnSpec
    from ich.networks.cnn_lstm import EndToEnd as EndToEndNetwork

BLOCK = 1 << 22  # bytes of an array that are read at a time
MOST_LOADERS = 8  # for predictions
Reader = TypeVar("Reader", bound=Backbone)
Advance = Callable[[int], object]  # told how many more slices are predicted


def cnn_spec(settings: Backbone, channels: int, classes: int, *, dropout: float = 0.0) -> "CnnSpec":
    from ich.networks.cnn import CnnSpec

    shape = settings.model_dump(include={"backbone", "kwargs", "pretrained", "weights"})
    return CnnSpec(in_channels=channels, classes=classes, dropout=dropout, **shape)


def network_of(
    where: str, spec: "CnnSpec", seed: int, start: Task | None = None, settings: Backbone | None = None
) -> "Cnn":
    """A new network, its backbone from `start` where that is given, to be trained in the way of the settings.

    Raises UserError for a backbone there is not, and for one that cannot be trained in that way here.
    """
    import torch
    from safetensors.torch import load

    from ich.networks.cnn import Cnn

    torch.manual_seed(seed)
    try:
        network = Cnn(spec if start is None else replace(spec, pretrained=False, weights=None))
        if start is not None:
            with as_written(start.folder / WEIGHTS):
                state = load(file_of(start, WEIGHTS))
            network.load_backbone(state)
        if settings is not None and settings.checkpointing:
            network.checkpoint()
        if settings is not None and settings.compile:
            network.compile_training()
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    return network


def head_shape(settings: Head, features: int, classes: int) -> dict[str, Any]:
    return {"features": features, "classes": classes} | settings.model_dump(include=set(Head.model_fields) - {"head"})


def study_head(settings: Head, shape: dict[str, Any]) -> Any:
    """The network over the slices of a study. Raises UserError for a shape that the head cannot have."""
    from ich.networks.sequence import build_head

    try:
        return build_head(settings.head, **shape)
    except ValueError as error:
        raise UserError(str(error)) from None


def joined(settings: EndToEnd, cnn: "Cnn") -> "EndToEndNetwork":
    """The end-to-end network of a slice network. With a start, the norm layers keep the statistics learned before."""
    from ich.networks.cnn_lstm import EndToEnd as EndToEndNetwork

    head = study_head(settings, head_shape(settings, cnn.embedding_size, cnn.spec.classes))
    return EndToEndNetwork(cnn, head, chunk=settings.chunk, freeze_norm=settings.start is not None)


def with_weights(plan: Plan, member: str, fold: int, build: Callable[[dict[str, Any]], Any]) -> Any:
    """The network of a fold: built from the shape in its record, with the weights beside it."""
    from safetensors.torch import load

    task = plan.fold(member, fold)
    with as_written(task.record.path):
        network = build((task.record.read() or {})["model"])
    with as_written(task.folder / WEIGHTS):
        network.load_state_dict(load(file_of(task, WEIGHTS)))
    return network


def file_of(task: Task, name: str) -> bytes:
    """A file of a task whose hash is the record's; the task was done at the start, but may be made again since."""
    data = (task.folder / name).read_bytes()
    if sha256_bytes(data) != _recorded(task, name):
        raise _changed(task, name)
    return data


def array_of(task: Task, name: str) -> Iterator["np.ndarray"]:
    """As `file_of`, of embeddings: blocks float16 [b, d] of an .npy file, each valid until the next; one at least.

    Whoever has read the last of them has read what the record names: else UserError is raised in its place. Files of
    embeddings may be so large that a look at the state goes by their size and date.
    """
    import numpy as np

    hashed = hashlib.sha256()
    with (task.folder / name).open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            (n, width), by_column, dtype = np.lib.format.read_array_header_1_0(file)
        except ValueError:  # also of an array of another number of dimensions
            raise _changed(task, name) from None
        start = file.tell()
        whole = start + 2 * n * width == os.fstat(file.fileno()).st_size
        if version != (1, 0) or by_column or dtype != np.float16 or not whole:
            raise _changed(task, name)
        file.seek(0)
        hashed.update(file.read(start))
        buffer = np.empty((min(n, max(1, BLOCK // max(1, 2 * width))), width), dtype=np.float16)
        if not n:
            yield buffer
        for first in range(0, n, len(buffer) or 1):
            block = buffer[: n - first]
            file.readinto(block.data)  # of a file cut short in the meantime it reads less: the hash will tell
            hashed.update(block.data)
            yield block
    if hashed.hexdigest() != _recorded(task, name):
        raise _changed(task, name)


def _recorded(task: Task, name: str) -> str | None:
    return (task.record.read() or {"files": {}})["files"].get(name)


def _changed(task: Task, name: str) -> UserError:
    return UserError(f"{task.name}/{name} was changed while it was in use; run `ich {task.stage}`, then this again")


def loaders(settings: Backbone) -> int:
    """Loader processes for predictions. auto: none on a CPU, and for a GPU one a core but this process's."""
    from ich.training.device import default_device

    if settings.workers != "auto":
        return settings.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if default_device().type == "cpu" else max(1, min(MOST_LOADERS, cores - 1))


def paced(
    plan: Plan,
    settings: Reader,
    network: Any,
    loss_of: Callable[[Any, Any], Any],
    batches: Callable[[int, int], Iterable[Any]],
) -> tuple[Reader, Callable[[int], Iterable[Any]], dict[str, Any]]:
    """The settings with the number of loader processes, batches(epoch) made by them, and what the record says of it.

    batches(epoch, processes): an epoch, loaded by so many. auto: none on a CPU; for a GPU as many as keep up with it,
    by the seconds that one of them and the network take for a batch.
    """
    from ich.training import pace

    processes: int = loaders(settings)
    found: dict[str, Any] = {}
    if settings.workers == "auto" and processes:
        most = max(1, plan.cores // (plan.processes * ranks.count()) - 1)
        seconds = pace.measure(network, batches(0, 1), loss_of, settings.precision)
        processes = most if seconds is None else pace.loaders(*seconds, most)
        found = {} if seconds is None else dict(zip(("seconds_to_load", "seconds_to_train"), seconds, strict=True))
    record = {"loader": {"workers": processes, **found}}
    return settings.model_copy(update={"workers": processes}), lambda epoch: batches(epoch, processes), record


def _counted(batches: Iterable[Any], advance: Advance | None) -> Iterator[Any]:
    """The batches; whoever takes the next has predicted the last, as have all that predict together."""
    for batch in batches:
        yield batch
        if advance is not None:
            advance(int((batch.rows >= 0).sum()) * ranks.count())


def predict_pictures(
    network: Any, dataset: "SliceDataset", settings: CnnSettings, advance: Advance | None = None
) -> dict[str, "np.ndarray"]:
    """Logits float32 [n, c] and embeddings float16 [n, d] of a data set's slices, in its order."""
    import numpy as np

    from ich.data.batches import epoch_loader
    from ich.training.predict import predict

    if not len(dataset):  # no test set
        width = (len(network.classifier.bias), network.embedding_size)
        return {"logits": np.empty((0, width[0]), np.float32), "embeddings": np.empty((0, width[1]), np.float16)}
    batches = epoch_loader(dataset, 0, 2 * settings.batch_size, shuffle=False, workers=loaders(settings))
    return predict(network, _counted(batches, advance), len(dataset), settings.precision)


def predict_study_pictures(
    network: Any, dataset: "StudyPictures", settings: EndToEnd, advance: Advance | None = None
) -> "np.ndarray":
    """Logits float32 [n, c] of the slices of a data set's studies, in its order."""
    import numpy as np

    from ich.data.study_pictures import study_picture_loader
    from ich.training.predict import predict_study_pictures as predict

    if not len(dataset):  # no test set
        return np.empty((0, network.cnn.spec.classes), np.float32)
    batches = study_picture_loader(dataset, 0, settings.batch_size, shuffle=False, workers=loaders(settings))
    return predict(network, _counted(batches, advance), len(dataset.slices), settings.precision)["logits"]


def predict_sequence(
    network: Any,
    studies: "Studies",
    chosen: "np.ndarray",
    settings: SequenceSettings,
    advance: Advance | None = None,
) -> "np.ndarray":
    """Logits float32 of the slices of the `chosen` studies (numbers), in the order of the packed rows.

    With settings.reverse the mean of each study read forwards and backwards.
    """
    import numpy as np

    from ich.data.studies import from_the_other_end, study_loader
    from ich.training.predict import predict_studies

    if not len(chosen):  # no test set
        return np.empty((0, studies.base.shape[1]), np.float32)
    slices = int(np.diff(studies.offsets)[chosen].sum())

    def read(*, backwards: bool) -> np.ndarray:
        batches = study_loader(studies, chosen, settings.batch_size, shuffle=False)
        batches = map(from_the_other_end, batches) if backwards else _counted(batches, advance)
        found = predict_studies(network, batches, slices, settings.precision)
        return found["logits"][found["rows"].argsort()]

    forwards = read(backwards=False)
    return (forwards + read(backwards=True)) / 2 if settings.reverse else forwards
