"""Random, anatomically plausible bleeds with long-tailed sizes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ich.phantom.shapes import Point

EPIDURAL, INTRAPARENCHYMAL, INTRAVENTRICULAR, SUBARACHNOID, SUBDURAL = range(5)

# Per cause: its share of the bleeding patients, and the probability of each subtype.
CAUSES = (
    (0.36, (0.1, 0.39, 0.17, 0.59, 0.64)),  # trauma
    (0.31, (0.0, 1.0, 0.55, 0.12, 0.03)),  # hypertension
    (0.13, (0.0, 0.25, 0.60, 1.0, 0.05)),  # aneurysm
    (0.20, (0.0, 0.05, 0.02, 0.1, 1.0)),  # a fall weeks ago
)


@dataclass(frozen=True)
class Bleed:
    """One bleed. Lengths in mm, head coordinates."""

    kind: int
    form: Literal["lens", "crescent", "falcine", "tentorial", "blob", "layer", "space"]
    centre: Point  # of a layer: the side (0: both), the level along gravity, unused
    reach: Point  # half extents; of a layer: the softness of its level, unused, unused
    thickness: float
    density: float  # HU
    settled: tuple[float, float] = (0.0, 1.0)  # HU denser below a level than above it, mm over which this changes
    texture: float = 2.0  # HU, uneven density
    share: float = 1.0  # of blood in the fluid of a layer or a space
    blur: float = 1.0  # mm, width of its edge
    rough: float = 0.2  # depth of the irregularities of its outline, relative to its thickness
    oedema: tuple[float, float] = (1.0, 0.0)  # mm of dark rim, HU
    push: float = 0.0  # mm by which the adjacent brain is displaced
    front: float = 0.0  # of a lens: half extent towards the forehead


def draw_kinds(rng: np.random.Generator, bleed_rate: float) -> list[int]:
    """Draw the subtypes of a patient; none with probability 1 - bleed_rate."""
    bleeding, cause, draws = rng.random(), rng.random(), rng.random(5)
    edges = np.cumsum([share for share, _ in CAUSES])
    rates = np.array(CAUSES[min(int(np.searchsorted(edges, cause)), len(CAUSES) - 1)][1])
    if bleeding >= bleed_rate:
        return []
    return np.flatnonzero(draws < rates).tolist() or [int(np.argmax(rates))]


def draw_bleeds(rng: np.random.Generator, kinds: Sequence[int]) -> list[Bleed]:
    """Draw bleeds of exactly these kinds; those of one head have a common cause."""
    bleeds: list[Bleed] = []
    trauma = EPIDURAL in kinds or (SUBDURAL in kinds and rng.random() < 0.7)
    ruptured = INTRAVENTRICULAR in kinds and not trauma
    if EPIDURAL in kinds:
        bleeds.append(draw_epidural(rng))
    if SUBDURAL in kinds:
        bleeds += [draw_subdural(rng) for _ in range(1 + (rng.random() < 0.3))]
    if SUBARACHNOID in kinds:
        aneurysm = False if trauma else ruptured or None
        bleeds += [draw_subarachnoid(rng, aneurysm) for _ in range(1 + (rng.random() < 0.35))]
    if INTRAPARENCHYMAL in kinds:
        count = 1 + (trauma and rng.random() < 0.5) + (trauma and rng.random() < 0.3)
        bleeds += [draw_intraparenchymal(rng, contusion=trauma, deep=ruptured) for _ in range(count)]
    if INTRAVENTRICULAR in kinds:
        layer = draw_intraventricular(rng)
        source = bleeds[-1] if bleeds else layer
        if source.kind == INTRAPARENCHYMAL and not trauma and rng.random() < 0.6:  # it broke through
            centre = (float(np.sign(source.centre[0])), source.centre[1] - 1.5 * source.thickness, 0.0)
            layer = replace(layer, centre=centre, density=source.density)
        bleeds.append(layer)
    return bleeds


def draw_epidural(rng: np.random.Generator) -> Bleed:
    """Draw a lens, mostly under the temporal squama, that ends at the coronal and lambdoid sutures."""
    side = int(rng.choice((-1, 1)))
    site = rng.random()
    if site < 0.68:
        centre = _on_vault(side, rng.uniform(72, 118), rng.uniform(-6, 34))
    elif site < 0.86:
        centre = _on_vault(side, rng.uniform(22, 50), rng.uniform(4, 40))
    else:
        centre = _on_vault(side, rng.uniform(140, 160), rng.uniform(-22, -8))
    reach = rng.uniform(20, 38)
    _, y, z = centre
    coronal, lambdoid = -35 + 0.33 * z, 45 + 0.46 * (z + 20)
    front, back = reach * rng.uniform(0.8, 1.2), reach * rng.uniform(0.8, 1.2)
    if y > coronal:
        front = min(front, max(y - coronal, 9.0))
    else:
        back = min(back, max(coronal - y, 9.0))
    if y < lambdoid:
        back = min(back, max(lambdoid - y, 9.0))
    thickness = max(_long_tailed(rng, 15, 0.4, 8, 34), 3.5 + max(front, back, 0.8 * reach) ** 2 / 150)
    reach = (reach, back, reach * rng.uniform(0.75, 1.1))
    push = rng.uniform(0.3, 0.8) * thickness
    return Bleed(EPIDURAL, "lens", centre, reach, thickness, rng.uniform(52, 78), push=push, front=front, **_clot(rng))


def _clot(rng: np.random.Generator) -> dict[str, Any]:
    """Draw how uneven and how sharply bounded a clot is; some have a fluid level."""
    level = (rng.uniform(8, 30), rng.uniform(1, 6)) if rng.random() < 0.12 else (0.0, 1.0)
    return {"settled": level, "texture": rng.gamma(2.0, 2.2), "blur": rng.uniform(0.8, 4.0)}


def draw_subdural(rng: np.random.Generator) -> Bleed:
    """Draw a crescent over a hemisphere, or a layer along falx or tentorium; acute, mixed, isodense or old."""
    side = int(rng.choice((-1, 1)))
    age, clot = rng.random(), _clot(rng)
    density = rng.uniform(48, 76)
    if age > 0.9:
        density = rng.uniform(12, 26)
    elif age > 0.83:
        density = rng.uniform(34, 48)
    elif age > 0.65:  # fresh blood settles in old fluid
        density = rng.uniform(34, 54)
        clot["settled"] = (rng.uniform(16, 40), rng.uniform(2, 40))
    site = rng.random()
    if site < 0.74:
        centre = _on_vault(side, rng.uniform(45, 135), rng.uniform(-5, 50))
        reach = (0.0, rng.uniform(25, 75), _long_tailed(rng, 28, 0.35, 15, 62))
        thickness = _long_tailed(rng, 9.0, 0.5, 3.5, 28)
        return Bleed(
            SUBDURAL, "crescent", centre, reach, thickness, density, push=rng.uniform(0.3, 1.0) * thickness, **clot
        )
    density = max(density, 46.0)
    if site < 0.9:
        y = float(rng.choice((rng.uniform(-60, -35), rng.uniform(30, 66))))
        centre = (float(side), y, rng.uniform(20, 58))
        reach = (0.0, rng.uniform(18, 45), rng.uniform(13, 30))
        return Bleed(SUBDURAL, "falcine", centre, reach, _long_tailed(rng, 6.0, 0.4, 3.5, 14), density, **clot)
    centre = (side * rng.uniform(22, 38), rng.uniform(34, 58), 0.0)
    reach = (rng.uniform(14, 26), rng.uniform(14, 26), 0.0)
    return Bleed(SUBDURAL, "tentorial", centre, reach, _long_tailed(rng, 6.0, 0.35, 3.5, 12), density, **clot)


def draw_intraparenchymal(rng: np.random.Generator, contusion: bool = False, deep: bool = False) -> Bleed:
    """Draw a blob with a dark rim: deep, lobar, in the cerebellum or the pons; a contusion near a pole."""
    side = int(rng.choice((-1, 1)))
    site = rng.random() * (0.55 if deep else 1.0)
    if contusion:
        x, y, z = ((26, -62, 4), (42, -30, -24), (34, -56, -2), (50, 8, -14))[rng.integers(4)]
    elif site < 0.38:  # putamen
        x, y, z = (25, -4, 4)
    elif site < 0.55:  # thalamus
        x, y, z = (12, 7, 6)
    elif site < 0.87:
        x, y, z = ((34, -50, 26), (44, 12, -6), (36, 30, 36), (26, 62, 14), (30, -10, 48))[rng.integers(5)]
    elif site < 0.96:  # cerebellum
        x, y, z = (24, 46, -34)
    else:  # pons
        x, y, z = (3, 2, -34)
    spread = 3.0 if 0.38 <= site < 0.55 or site > 0.96 else 7.0
    centre = (side * (x + rng.normal(0, spread)), y + rng.normal(0, spread), z + rng.normal(0, spread))
    radius = _long_tailed(rng, 8 if contusion else 14, 0.55, 3.0, 34)
    if site > 0.96 and not contusion:
        radius = min(radius, 11)
    a, b, c = np.exp(rng.normal(0, 0.25, 3)).tolist()
    return Bleed(
        INTRAPARENCHYMAL,
        "blob",
        centre,
        reach=(radius * a, radius * b, radius * c),
        thickness=radius,
        density=rng.uniform(38, 54) if rng.random() < 0.15 else rng.uniform(50, 78),
        rough=rng.uniform(0.15, 0.6),
        oedema=(rng.uniform(0.1, 1.1) * radius + 1.5, rng.uniform(5, 15)),
        push=rng.uniform(0.1, 0.5) * radius,
        **_clot(rng),
    )


def draw_intraventricular(rng: np.random.Generator) -> Bleed:
    """Draw blood settled in the occipital horns, or casts of whole ventricles."""
    level = float(rng.choice((rng.uniform(25, 42), rng.uniform(5, 28), rng.uniform(-60, 5)), p=(0.3, 0.3, 0.4)))
    side = float(rng.choice((-1.0, 0.0, 1.0), p=(0.25, 0.5, 0.25)))
    softness, density = (rng.uniform(0.7, 6.0), 0.0, 0.0), rng.uniform(52, 78)
    return Bleed(
        INTRAVENTRICULAR, "layer", (side, level, 0.0), softness, 0.0, density, share=rng.uniform(0.75, 1), **_clot(rng)
    )


def draw_subarachnoid(rng: np.random.Generator, aneurysm: bool | None) -> Bleed:
    """Draw blood in the basal cisterns and Sylvian fissures (aneurysm) or in the sulci of one region; None: either."""
    side = int(rng.choice((-1, 1)))
    if aneurysm is None:
        aneurysm = rng.random() < 0.4
    density, share = rng.uniform(56, 78), rng.uniform(0.7, 1)
    if aneurysm:
        centre = (rng.normal(0, 12), rng.normal(-10, 6), rng.normal(-10, 4))
        reach = _long_tailed(rng, 36, 0.3, 22, 70)
    elif rng.random() < 0.15:
        centre, reach = (0.0, 0.0, -22.0), rng.uniform(18, 28)
    else:
        centre = _on_vault(side, rng.uniform(25, 150), rng.uniform(-4, 58))
        reach = _long_tailed(rng, 24, 0.4, 13, 55)
    return Bleed(SUBARACHNOID, "space", centre, (reach, reach, reach), 0.0, density, share=share)


def followed_up(bleed: Bleed, rng: np.random.Generator) -> Bleed:
    """Age a bleed by some days: paler, slightly changed in size, with a wider rim."""
    factor = rng.uniform(0.75, 1.12)
    rx, ry, rz = bleed.reach
    return replace(
        bleed,
        density=max(bleed.density - rng.uniform(0, 20), min(bleed.density, 36.0)),
        thickness=bleed.thickness * factor,
        reach=bleed.reach if bleed.form == "layer" else (rx * factor, ry * factor, rz * factor),
        blur=bleed.blur * 1.5,
        oedema=(bleed.oedema[0] * 1.5, bleed.oedema[1]),
    )


def _long_tailed(rng: np.random.Generator, median: float, spread: float, low: float, high: float) -> float:
    return float(np.clip(median * np.exp(rng.normal(0, spread)), low, high))


def _on_vault(side: int, azimuth: float, z: float) -> Point:
    """A point of the inner table; azimuth in degrees: forehead 0, ear 90, back 180."""
    ring = np.sqrt(max(1 - ((z - 6) / 76) ** 2, 0.05))
    angle = np.deg2rad(azimuth)
    return float(side * 66 * ring * np.sin(angle)), float(-84 * ring * np.cos(angle)), z
