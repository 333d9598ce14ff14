"""One study: a head, its bleeds and a scan of it, as Hounsfield units with lesion masks and labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ich.phantom import anatomy, bleeds, face, lesions, lookalikes, scanner, tissue
from ich.phantom.shapes import FAR, Array, soft

CLASSES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
GRID = 64  # samples a side of the coarse frame, whatever the image size
CONTRAST = 12.0  # HU by which a bleed must change a pixel to be seen there ...
COVER = 0.5  # ... unless it fills this share of the pixel's volume (an isodense subdural shows by its shape)
# Seen pixels that make a slice positive, mm2 a subtype: sheets and sulci need more than a blob does.
AREAS = (60.0, 60.0, 50.0, 120.0, 90.0)
ANATOMY, BLEEDS, SCAN, NOISE, LABELS, EVOLUTION = range(6)


@dataclass(frozen=True)
class Study:
    """A series of slices in order along the slice normal."""

    patient_id: str
    study_id: str
    series_id: str
    image_ids: tuple[str, ...]
    hu: NDArray[np.int16]  # [slices, size, size]
    masks: NDArray[np.uint8]  # [slices, size, size], bit k: CLASSES[k] is visible in the pixel
    labels: NDArray[np.uint8]  # [slices, 6]
    positions: NDArray[np.float64]  # [slices, 3] ImagePositionPatient, mm
    orientation: tuple[float, float, float, float, float, float]
    pixel_spacing: tuple[float, float]  # mm
    signed: bool  # 16-bit signed file, else 12-bit unsigned
    intercept: float
    explicit_vr: bool


def stream(seed: int, patient: int, study: int, purpose: int) -> np.random.Generator:
    """The random numbers of one purpose: sizes and other purposes leave them as they are."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(patient, study, purpose)))


def identifier(seed: int, number: int, digits: int) -> str:
    """A random-looking "ID_<hex>", different for different numbers (a keyed Feistel permutation of 4 x digits bits)."""
    half = 2 * digits
    low, high = number & ((1 << half) - 1), number >> half
    for turn in range(4):
        word = np.random.SeedSequence(low, spawn_key=(seed, digits, turn)).generate_state(1)[0]
        low, high = high ^ (int(word) & ((1 << half) - 1)), low
    return f"ID_{(high << half) | low:0{digits}x}"


def label_slices(masks: NDArray[np.uint8], pixel: float) -> NDArray[np.uint8]:
    """Labels [slices, 6] of masks: a subtype is there where its AREAS mm2 can be seen; `any` where one of them is."""
    area = np.stack([((masks >> k) & 1).sum((1, 2)) for k in range(5)], axis=1) * pixel**2
    labels = (area >= np.array(AREAS)).astype(np.uint8)
    return np.concatenate([labels, labels.max(1, keepdims=True)], axis=1)


def _weight(
    up: tissue.Upsampler, lesion: lesions.Lesion, spaces: Array, ventricles: Array, edge: float
) -> Array | None:
    """How much of each fine pixel the lesion fills, None where the slice does not meet it."""
    form = lesion.bleed.form
    if form in {"layer", "space"}:
        if -up.low(-lesion.field) <= 0:
            return None
        return up(lesion.field) * (ventricles if form == "layer" else spaces)
    return soft(up(lesion.field), edge) if up.low(lesion.field) < 1 else None


def _put(
    up: tissue.Upsampler,
    lesions: Sequence[lesions.Lesion],
    content: tuple[Array, Array, Array],
    cavity: Array,
    edge: float,
) -> NDArray[np.uint8]:
    """Put the lesions into the contents of the skull (in place); the mask of the slice."""
    hu, spaces, ventricles = content
    seen: dict[int, Array] = {}
    filled: dict[int, Array] = {}
    for lesion in lesions:
        weight = _weight(up, lesion, spaces, ventricles, edge)
        if weight is None:
            continue
        weight *= soft(cavity, edge)
        change = weight * (up(lesion.density) - hu)
        hu += change
        keep = 1 - weight
        seen = {kind: before * keep for kind, before in seen.items()}
        filled = {kind: before * keep for kind, before in filled.items()}
        kind = lesion.bleed.kind
        seen[kind] = seen.get(kind, 0) + np.abs(change)
        filled[kind] = filled.get(kind, 0) + weight
    mask = np.zeros(hu.shape[1:], np.uint8)
    for kind, change in seen.items():
        visible = (change.mean(0) >= CONTRAST) | (filled[kind].mean(0) >= COVER)
        mask |= visible.astype(np.uint8) << np.uint8(kind)
    return mask


def _fields(
    head: anatomy.Head, extras: lookalikes.Extras, scan: scanner.Scan, drawn: Sequence[bleeds.Bleed]
) -> tuple[tissue.Fields, list[lesions.Lesion]]:
    frame = scan.frame(GRID)
    bone = anatomy.cranium(head, frame)
    brain = anatomy.brain(head, frame, bone, lesions.displaced(drawn, bone))
    lookalikes.apply(extras, frame, bone, brain)
    gravity = np.linalg.inv(scan.pose)[1]
    site = lesions.Site(head, bone, brain, gravity / np.sqrt((gravity**2).sum()))
    shaped = [lesions.shape(bleed, site) for bleed in drawn]
    return tissue.Fields(head, bone, brain, face.face(head, frame, bone, extras)), shaped


def render(
    head: anatomy.Head,
    extras: lookalikes.Extras,
    scan: scanner.Scan,
    drawn: Sequence[bleeds.Bleed],
    rng: np.random.Generator,
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Hounsfield units and lesion masks of a scan, [slices, size, size]; `rng` draws the noise."""
    fields, lesions = _fields(head, extras, scan, drawn)
    inserts = lookalikes.inserts(extras, scan.frame(scan.size))
    rest = scanner.head_rest(scan, 95.0 * head.scale[1])
    count, size, edge = len(scan.centres), scan.size, scan.pixel * scanner.FINE_EDGE
    hu, masks = np.empty((count, size, size), np.int16), np.zeros((count, size, size), np.uint8)
    for k in range(count):
        planes = slice(k * scanner.SUBPLANES, (k + 1) * scanner.SUBPLANES)
        fine = np.full((scanner.SUBPLANES, size, size), tissue.AIR, np.float32)
        body = tissue.Upsampler(planes, size, GRID, around=fields.face.skin)
        if body:
            fine[:, *body.fine] = tissue.outside(fields, body, body(fields.bone.cavity), edge)
        skull = tissue.Upsampler(planes, size, GRID, around=fields.bone.cavity)
        cavity = np.full((size, size), FAR, np.float32)
        if skull:
            within = skull(fields.bone.cavity)
            content = tissue.inside(fields, skull, within, edge)
            masks[k][skull.fine] = _put(skull, lesions, content, within, edge)
            part = fine[:, *skull.fine]
            tissue.mix(part, soft(within, edge), content[0])
            cavity[skull.fine] = within[scanner.SUBPLANES // 2]
        for insert in inserts:
            insert.paint(fine, planes)
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
    bleed_rate: float,
    kinds: Sequence[int] | None = None,
) -> Study:
    """The study of these numbers; the same bytes on every call.

    `slices` is the mean count of a study, `size` the matrix. With `kinds` (indices into CLASSES) the study has these
    bleeds; without, it has any with probability `bleed_rate`. A patient's second study shows the same head, its bleeds
    some days older.
    """
    if slices < 4 or size < 32 or not 0 <= bleed_rate <= 1:
        raise ValueError(f"slices {slices}, size {size}, bleed_rate {bleed_rate}: need at least 4, at least 32, 0 to 1")
    anatomy_rng = stream(seed, patient, 0, ANATOMY)
    head, extras = anatomy.draw_head(anatomy_rng), lookalikes.draw(anatomy_rng)
    bleed_rng = stream(seed, patient, 0, BLEEDS)
    chosen = draw_kinds(bleed_rng, bleed_rate)
    drawn = bleeds.draw_bleeds(bleed_rng, chosen if kinds is None else kinds)
    if study:
        evolution = stream(seed, patient, study, EVOLUTION)
        drawn = [bleeds.followed_up(bleed, evolution) for bleed in drawn]
    scan = scanner.draw_scan(stream(seed, patient, study, SCAN), head, slices, size)
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
        positions=scan.positions,
        orientation=scan.orientation,
        pixel_spacing=(scan.pixel, scan.pixel),
        signed=scan.signed,
        intercept=scan.intercept,
        explicit_vr=scan.explicit_vr,
    )


# Cause, its share of the bleeding patients, and how often each subtype is seen with it.
CAUSES: tuple[tuple[float, tuple[float, float, float, float, float]], ...] = (
    (0.36, (0.08, 0.45, 0.14, 0.48, 0.68)),  # trauma
    (0.31, (0.0, 1.0, 0.45, 0.08, 0.03)),  # hypertension
    (0.13, (0.0, 0.25, 0.60, 1.0, 0.05)),  # aneurysm
    (0.20, (0.0, 0.05, 0.02, 0.03, 1.0)),  # a fall weeks ago
)


def draw_kinds(rng: np.random.Generator, bleed_rate: float) -> list[int]:
    """The subtypes of a patient at random, none with probability 1 - bleed_rate."""
    bleeding, cause, chances = rng.random(), rng.random(), rng.random(5)
    edges = np.cumsum([share for share, _ in CAUSES])
    rates = np.array(CAUSES[min(int(np.searchsorted(edges, cause)), len(CAUSES) - 1)][1])
    if bleeding >= bleed_rate:
        return []
    kinds = np.flatnonzero(chances < rates)
    return [int(k) for k in kinds] if len(kinds) else [int(np.argmax(rates))]
