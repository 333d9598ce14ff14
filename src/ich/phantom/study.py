"""One study: a scan of a head with bleeds, as Hounsfield units with lesion masks and labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ich.phantom import anatomy, bleeds, face, lesions, lookalikes, scanner, tissue
from ich.phantom.shapes import FAR, mix, soft

CLASSES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
GRID = 64  # rows and columns of the coarse frame, for every image size
# Visible area that makes a slice positive, mm2 per subtype.
AREAS = (50.0, 30.0, 25.0, 70.0, 60.0)
ANATOMY, BLEEDS, SCAN, NOISE, LABELS, EVOLUTION = range(6)


@dataclass(frozen=True)
class Study:
    """A series of slices, sorted along the slice normal."""

    patient_id: str
    study_id: str
    series_id: str
    image_ids: tuple[str, ...]
    hu: NDArray[np.int16]  # [slices, size, size]
    masks: NDArray[np.uint8]  # [slices, size, size], bit k: CLASSES[k] is visible in the pixel
    labels: NDArray[np.uint8]  # [slices, 6]
    scan: scanner.Scan  # geometry and file format


def stream(seed: int, patient: int, study: int, purpose: int) -> np.random.Generator:
    """Random generator for one purpose, independent of image sizes and other purposes."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(patient, study, purpose)))


def identifier(seed: int, number: int, digits: int) -> str:
    """Map a number to a unique, random-looking "ID_<hex>" (a keyed Feistel permutation of 4 x digits bits)."""
    half = 2 * digits
    low, high = number & ((1 << half) - 1), number >> half
    for turn in range(4):
        word = np.random.SeedSequence(low, spawn_key=(seed, digits, turn)).generate_state(1)[0]
        low, high = high ^ (int(word) & ((1 << half) - 1)), low
    return f"ID_{(high << half) | low:0{digits}x}"


def label_slices(masks: NDArray[np.uint8], pixel: float) -> NDArray[np.uint8]:
    """Labels [slices, 6] of masks: a subtype is positive if at least its AREAS is visible."""
    area = np.stack([((masks >> k) & 1).sum((1, 2)) for k in range(5)], axis=1) * pixel**2
    labels = (area >= np.array(AREAS)).astype(np.uint8)
    return np.concatenate([labels, labels.max(1, keepdims=True)], axis=1)


def render(
    head: anatomy.Head,
    extras: lookalikes.Extras,
    scan: scanner.Scan,
    drawn: Sequence[bleeds.Bleed],
    rng: np.random.Generator,
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Render a scan: Hounsfield units and lesion masks, each [slices, size, size]."""
    frame = scan.frame(GRID)
    bone = anatomy.cranium(head, frame)
    brain = anatomy.brain(head, frame, bone, lesions.displaced(drawn, bone))
    lookalikes.add_to_brain(extras, frame, bone, brain)
    gravity = np.linalg.inv(scan.pose)[1]
    gravity = gravity / np.sqrt((gravity**2).sum())
    shaped = [lesions.shape(bleed, bone, brain, gravity) for bleed in drawn]
    outer = face.face(head, frame, bone, extras.swelling)
    inserts = lookalikes.inserts(extras, scan.frame(scan.size))
    rest = scanner.head_rest(scan, 95.0 * head.scale[1])

    count, size, edge = len(scan.centres), scan.size, scan.pixel * scanner.FINE_EDGE
    hu, masks = np.empty((count, size, size), np.int16), np.zeros((count, size, size), np.uint8)
    for k in range(count):
        planes = slice(k * scanner.SUBPLANES, (k + 1) * scanner.SUBPLANES)
        fine = np.full((scanner.SUBPLANES, size, size), tissue.AIR, np.float32)
        cavity = np.full((size, size), FAR, np.float32)
        if body := tissue.Upsampler(planes, size, around=outer.skin):
            fine[:, *body.fine] = tissue.outside(body, head, bone, outer, edge)
        if skull := tissue.Upsampler(planes, size, around=bone.cavity):
            within = skull(bone.cavity)
            occupancy = soft(within, tissue.oblique(within, edge))
            content, spaces, ventricles = tissue.inside(skull, head, bone, brain, within, edge)
            masks[k][skull.fine] = lesions.paint(shaped, skull, content, spaces, ventricles, occupancy, edge, head.grey)
            mix(fine[:, *skull.fine], occupancy, content)
            cavity[skull.fine] = within[scanner.SUBPLANES // 2]
        lookalikes.paint(inserts, fine, planes)
        image = np.maximum(fine.mean(0), rest)
        hu[k] = scanner.acquire(scan, k, image, cavity, extras.metal, rng)
    return hu, masks


def make_study(
    seed: int,
    patient: int,
    study: int,
    *,
    slices: int,
    size: int,
    kinds: Sequence[int] = (),
    scanners: scanner.Scanners = "usual",
) -> Study:
    """Make the study with these numbers; every call gives the same bytes.

    slices: mean number per study. size: rows and columns. kinds: the subtypes that bleed (indices into CLASSES).
    scanners: see `draw_scan`. A patient's second study shows the same head, with the bleeds some days older.
    """
    if slices < 4 or size < 32:
        raise ValueError(f"slices must be at least 4 and size at least 32, got {slices} and {size}")
    anatomy_rng, bleed_rng = stream(seed, patient, 0, ANATOMY), stream(seed, patient, 0, BLEEDS)
    head = anatomy.draw_head(anatomy_rng)
    extras = lookalikes.draw_extras(anatomy_rng, head)
    bleed_rng.random(7)  # once used to draw `kinds`; skipped, so that a seed still gives the same study
    drawn = bleeds.draw_bleeds(bleed_rng, kinds)
    if study > 0:
        evolution = stream(seed, patient, study, EVOLUTION)
        drawn = [bleeds.followed_up(bleed, evolution) for bleed in drawn]
    scan = scanner.draw_scan(stream(seed, patient, study, SCAN), head, slices, size, scanners)
    hu, masks = render(head, extras, scan, drawn, stream(seed, patient, study, NOISE))
    number = patient * 16 + study
    return Study(
        patient_id=identifier(seed, patient, 8),
        study_id=identifier(seed, number, 10),
        series_id=identifier(seed + 1, number, 10),
        image_ids=tuple(identifier(seed, number * 256 + k, 9) for k in range(len(hu))),
        hu=hu,
        masks=masks,
        labels=label_slices(masks, scan.pixel),
        scan=scan,
    )
