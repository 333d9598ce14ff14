"""`ich predict --dicom`: per study a structured report, and heat maps of its positive slices, as DICOM files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ich.console import progress, warn
from ich.data import cache
from ich.data.dicom import Unreadable
from ich.data.dicom.results import (
    RESEARCH,
    Finding,
    Model,
    read_sources,
    secondary_capture,
    source_uid,
    structured_report,
    valid_uid,
)
from ich.data.windowing import Window, Windowing, render
from ich.ensemble.final import final_probabilities
from ich.errors import UserError
from ich.models.bundle import Bundle, read
from ich.models.cnn import FittedCnn
from ich.models.images import slice_dataset
from ich.models.slices import Slices
from ich.models.table import series_codes
from ich.networks.cnn import Cnn
from ich.report import gradcam
from ich.report.page.images import overlaid
from ich.stages import predict
from ich.stages.predict import Scores
from ich.store.atomic import atomic_folder, require_writable
from ich.training.device import default_device

HEAT_MAPS = 40  # per study: the positive slices with the highest probabilities
BATCH = 8  # slices per gradient computation
BRAIN = Windowing("windows", (Window(40, 80),))
SIDE = 512  # pixels, at least: smaller slices are enlarged, so that the legend is readable
LINE = 22  # pixels of a line of the legend
CHANGED = "a file changed while it was scored. Rerun the same command"


def writer(out: Path, bundle: Bundle) -> Callable[[Path, Scores], None]:
    """Return a function that writes the results of scored scans to the folder `out`; arguments as in `predict.run`.

    Raises UserError if this is impossible, before anything is scored.
    """
    _require_hu(bundle)
    require_writable(out / "sr.dcm")
    return lambda source, scores: write_files(out, results_of(bundle, source, scores, cnns(bundle)))


def scorer(folder: Path) -> Callable[[Path, Path], None]:
    """Return a function that scores a folder with one study by a bundle, and writes the results to another folder."""
    bundle = read(folder)
    _require_hu(bundle)
    networks = cnns(bundle)

    def score(scans: Path, out: Path) -> None:
        with TemporaryDirectory(prefix="ich-serve-") as temporary:
            scores = predict.score(bundle, scans, Path(temporary))
        if scores.slices.empty:
            raise UserError(f"no readable slice in {len(scores.files)} files")
        results = results_of(bundle, scans, scores, networks)
        for study in results.studies:
            for name, content in results.of_study(study).items():
                (out / name).write_bytes(content)

    return score


def cnns(bundle: Bundle) -> list[FittedCnn]:
    """Load the CNNs of the first fold that have a layer for Grad-CAM."""
    models = (bundle.fitted(name, bundle.spec.folds[0]) for name in bundle.spec.models)
    found = [model for model in models if isinstance(model, FittedCnn)]
    return [model for model in found if cast(Cnn, model.network).feature_layer(bundle.spec.image.size) is not None]


def _require_hu(bundle: Bundle) -> None:
    if bundle.spec.values != "hu":
        raise UserError(f"{bundle.spec.name} is a model of images without Hounsfield units, which are no DICOM files")


def results_of(bundle: Bundle, source: Path, scores: Scores, networks: Sequence[FittedCnn]) -> "Results":
    """The results of scored scans."""
    spec, tuned = bundle.spec, bundle.spec.thresholds
    cuts, prefix = None, "prob_"
    if tuned is not None:
        empty = np.empty((0, len(spec.classes)))
        _, thresholds = final_probabilities(tuned, empty, spec.classes, spec.class_weights)
        cuts, prefix = dict(zip(spec.classes, thresholds, strict=True)), "study_prob_"
    table = scores.studies.set_index("study_id")[[prefix + name for name in spec.classes]]
    return Results(
        source if source.is_dir() else source.parent,
        scores.slices,
        cast(Any, table.set_axis(list(spec.classes), axis=1).to_dict("index")),
        cuts,
        Model(spec.name, version("ich"), bundle.identity),
        networks,
        cache.ImageFormat(spec.image.size, spec.image.crop, spec.values),
    )


def write_files(out: Path, results: "Results") -> None:
    """Write `out`/<study UID>/sr.dcm and heat-map-<number>.dcm for each study."""
    with progress("predict: DICOM results", len(results.studies), "studies") as advance:
        for study in results.studies:
            try:
                files = results.of_study(study)
            except UserError as error:
                warn(f"study {study}: no DICOM results: {error}")
            else:
                with atomic_folder(out / source_uid(study)) as folder:
                    for name, content in files.items():
                        (folder / name).write_bytes(content)
            advance(1)
    if replaced := [study for study in results.studies if not valid_uid(study)]:
        folder = out / source_uid(replaced[0])
        warn(f"{len(replaced)} studies have no valid UID. It is replaced: the results of {replaced[0]} are in {folder}")


@dataclass(frozen=True)
class Results:
    """Scores of scans, from which the DICOM files of a study are made."""

    scans: Path  # folder that the paths of the slices are relative to
    slices: pd.DataFrame
    """image_id, study_id, series_id, index, path, prob_<class> and, with thresholds, positive_<class>."""
    studies: Mapping[str, Mapping[str, float]]  # the probability of each class, by study
    thresholds: Mapping[str, float] | None
    model: Model
    networks: Sequence[FittedCnn]  # CNNs, whose Grad-CAM is averaged
    image: cache.ImageFormat  # what the networks read

    def of_study(self, study: str) -> dict[str, bytes]:
        """Return sr.dcm and the heat maps. Raises UserError if its files are of several patients, or have changed."""
        slices = self.slices[self.slices["study_id"] == study].reset_index(drop=True)
        try:
            sources = read_sources(self.scans, dict.fromkeys(slices["path"]))
        except Unreadable as error:
            raise UserError(f"{CHANGED} ({error})") from None
        if len({source.PatientID for source in sources.values()}) > 1:
            raise UserError("its files have several PatientIDs")
        frames = slices["image_id"].str.rpartition("#")[2]  # of multi-frame files, as in the slice table
        slices["frame"] = [
            int(frame) if sources[path].NumberOfFrames > 1 else 0
            for path, frame in zip(slices["path"], frames, strict=True)
        ]
        findings = [
            Finding(name, probability, *self._positive(slices, name))
            for name, probability in self.studies[study].items()
        ]
        files = {"sr.dcm": structured_report(sources, findings, len(slices), self.model)}
        if self.thresholds and self.networks and (shown := _shown(slices, list(self.studies[study]))):
            for number, (row, picture) in enumerate(self._pictures(slices, shown), start=1):
                content = secondary_capture(sources[row["path"]], row["frame"], picture, number, self.model)
                files[f"heat-map-{number:03}.dcm"] = content
        return files

    def _positive(self, slices: pd.DataFrame, name: str) -> tuple[float | None, list[tuple[str, int]]]:
        """The threshold of a class, and path and frame of its positive slices."""
        if self.thresholds is None:
            return None, []
        positive = slices[slices[f"positive_{name}"] == 1]
        return self.thresholds[name], list(zip(positive["path"], positive["frame"], strict=True))

    def _pictures(self, slices: pd.DataFrame, shown: Mapping[int, str]) -> Iterator[tuple[Any, NDArray[np.uint8]]]:
        """Yield the rows `shown`, as dictionaries, with an image [rows, columns, 3] of each one."""
        classes, image = [str(name)[5:] for name in slices if str(name).startswith("prob_")], self.image
        with TemporaryDirectory(prefix="ich-heat-maps-") as temporary:
            place, table = Path(temporary), slices.assign(split="test", crc=None)
            table, unread, _ = cache.write_shards(place, table, self.scans, image, 1, lambda count: None)
            if unread:
                raise UserError(CHANGED)
            table["series"] = series_codes(table)
            inputs = Slices(table, np.array(list(shown)), classes, cache.HuCache.open(place, table), image.values)
            indices = np.array([classes.index(name) for name in shown.values()])
            maps = np.mean([_cams(fitted, inputs, indices, image.size) for fitted in self.networks], axis=0)
        rows = table.to_dict("records")
        for heat, (number, name) in zip(maps, shown.items(), strict=True):
            line = rows[number]
            (hu,) = cache.read_frames(self.scans / line["path"], [line["frame"]], image.values)
            if isinstance(hu, Unreadable):
                raise UserError(CHANGED)
            scale, left, top = line["crop_side"] / image.size, line["crop_column"], line["crop_row"]
            shift = (scale - 1) / 2  # of pixel centres
            place = np.array([[scale, 0, left + shift], [0, scale, top + shift]])
            wide = cv2.warpAffine(np.rint(heat * 255).astype(np.uint8), place, hu.shape[::-1])
            picture = overlaid(render(hu[None], BRAIN)[..., 0], np.asarray(wide, np.uint8))
            yield line, _legend(picture, name, line[f"prob_{name}"], self.model)


def _shown(slices: pd.DataFrame, classes: Sequence[str]) -> dict[int, str]:
    """The class to show of each positive row: the most probable positive subtype; `any` without a positive subtype."""
    found: dict[int, tuple[float, str]] = {}
    for number, row in enumerate(slices.to_dict("records")):
        positive = [name for name in classes if row[f"positive_{name}"] == 1]
        subtypes = [name for name in positive if name != "any"] or positive
        if subtypes:
            found[number] = max((row[f"prob_{name}"], name) for name in subtypes)
    most = sorted(found, key=lambda number: -found[number][0])[:HEAT_MAPS]
    return {number: found[number][1] for number in sorted(most)}


def _cams(fitted: FittedCnn, slices: Slices, indices: NDArray[np.integer], size: int) -> NDArray[np.float32]:
    """Grad-CAM [n, S, S] of slices [n], each of its own class."""
    network, images = cast(Cnn, fitted.network), slice_dataset(slices, Windowing.from_dict(fitted.spec["view"]))
    layer = network.to(default_device()).eval().feature_layer(size)
    assert layer is not None, "by `cnns`"
    maps = np.empty((len(slices), size, size), np.float32)
    for index in np.unique(indices):
        places = np.flatnonzero(indices == index)
        for some in np.array_split(places, range(BATCH, len(places), BATCH)):
            batch = images.__getitems__([(0, int(i)) for i in some]).images
            maps[some] = gradcam.grad_cam(network, layer, batch, int(index))
    network.cpu()
    return maps


def _legend(picture: NDArray[np.uint8], name: str, probability: float, model: Model) -> NDArray[np.uint8]:
    """The image, enlarged if it is small, above a legend. picture: blue, green, red; returns red, green, blue."""
    factor = -(-SIDE // min(picture.shape[:2]))
    if factor > 1:
        picture = np.asarray(cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR), np.uint8)
    height = picture.shape[0]
    picture = np.asarray(cv2.copyMakeBorder(picture, 0, 2 * LINE + 8, 0, 0, cv2.BORDER_CONSTANT), np.uint8)
    lines = (f"{name} {probability:.3f}   Grad-CAM, {model.name} {model.digest[:8]}", RESEARCH.upper())
    for k, line in enumerate(lines, start=1):
        cv2.putText(picture, line, (8, height + k * LINE), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (255,) * 3, 1, cv2.LINE_AA)
    return np.ascontiguousarray(picture[..., ::-1])
