"""Anatomy, bleeds and geometry of rendered studies, compared with fields that are evaluated separately."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from ich.phantom import anatomy, bleeds, face, lesions, lookalikes, scanner, tissue
from ich.phantom.study import ANATOMY, AREAS, CLASSES, GRID, SCAN, Study, label_slices, make_study, render, stream

SEED = 11
STUDIES = 12
SLICES = 16


def draw(seed: int, patient: int, slices: int, size: int) -> tuple[anatomy.Head, scanner.Scan]:
    head = anatomy.draw_head(stream(seed, patient, 0, ANATOMY))
    return head, scanner.draw_scan(stream(seed, patient, 0, SCAN), head, slices, size)


def healthy(patient: int) -> tuple[anatomy.Head, anatomy.Cranium, anatomy.Brain]:
    """The head of a patient on all sub-planes of the first scan, without displacement by bleeds."""
    head, scan = draw(SEED, patient, SLICES, GRID)
    bone = anatomy.cranium(head, scan.frame(GRID))
    return head, bone, anatomy.brain(head, scan.frame(GRID), bone, (bone.x, bone.y, bone.z))


@pytest.fixture(scope="module")
def bleeding() -> list[list[Study]]:
    """Per subtype the studies of the same patients."""
    return [
        [make_study(SEED, p, 0, slices=SLICES, size=GRID, kinds=[kind]) for p in range(STUDIES)] for kind in range(5)
    ]


@pytest.fixture(scope="module")
def anatomies() -> list[tuple[anatomy.Cranium, anatomy.Brain]]:
    return [healthy(p)[1:] for p in range(STUDIES)]


def middle(field: np.ndarray) -> np.ndarray:
    """The middle plane of each slice."""
    return field[1 :: scanner.SUBPLANES]


def visible(study: Study, kind: int) -> np.ndarray:
    return ((study.masks >> kind) & 1).astype(bool)


def test_labels_follow_the_area_of_the_masks(bleeding):
    for kind, made in enumerate(bleeding):
        for study in made:
            assert study.labels.shape == (len(study.hu), len(CLASSES))
            areas = visible(study, kind).sum((1, 2)) * study.scan.pixel**2
            assert study.labels[:, kind].tolist() == (areas >= AREAS[kind]).tolist()
            assert study.labels[:, 5].tolist() == study.labels[:, :5].max(1).tolist()
            assert set(np.unique(study.masks)) <= {0, 1 << kind}


@pytest.mark.parametrize("kind", range(5))
def test_requested_bleeds_are_visible_in_nearly_every_study(bleeding, kind):
    assert sum(bool(s.labels[:, kind].any()) for s in bleeding[kind]) >= STUDIES - 1


@pytest.mark.parametrize(
    ("kind", "allowed", "share"),
    [
        *((kind, lambda bone, brain: bone.cavity < 3, 0.95) for kind in range(5)),  # mm; slices are thick
        (bleeds.SUBDURAL, lambda bone, brain: bone.tentorium > -3, 0.95),
        (bleeds.INTRAPARENCHYMAL, lambda bone, brain: brain.ventricle > -2, 0.85),
        (bleeds.INTRAPARENCHYMAL, lambda bone, brain: bone.cavity < -1, 0.9),
        (bleeds.INTRAVENTRICULAR, lambda bone, brain: brain.ventricle < 4, 0.9),
    ],
)
def test_bleeds_are_in_plausible_places(bleeding, anatomies, kind, allowed, share):
    inside = [
        middle(allowed(*anatomy_of))[visible(study, kind)]
        for study, anatomy_of in zip(bleeding[kind], anatomies, strict=True)
    ]
    assert np.concatenate(inside).mean() > share


def test_epidural_blood_touches_the_inner_table_and_is_thickest_in_the_middle(bleeding, anatomies):
    profiles = []
    for study, (bone, _) in zip(bleeding[0], anatomies, strict=True):
        where = visible(study, 0)
        if not where.any():
            continue
        k = int(where.sum((1, 2)).argmax())
        depth, y = -middle(bone.cavity)[k], middle(bone.y)[k]
        assert depth[where[k]].min() < 3
        along = np.argsort(y[where[k]])
        thirds = np.array_split(depth[where[k]][along], 3)
        profiles.append([np.percentile(t, 95) for t in thirds])
    first, centre, last = np.mean(profiles, axis=0)
    assert centre > 1.05 * first
    assert centre > 1.05 * last


def test_subdural_blood_is_next_to_skull_falx_or_tentorium(bleeding, anatomies):
    for study, (bone, brain) in zip(bleeding[4], anatomies, strict=True):
        walls = np.minimum(np.abs(brain.falx_x), np.abs(bone.tentorium))
        assert np.median(middle(np.minimum(-bone.vault, walls))[visible(study, 4)]) < 12


def test_a_crescent_is_longer_than_thick_and_on_one_side():
    _, bone, brain = healthy(0)
    bleed = bleeds.Bleed(bleeds.SUBDURAL, "crescent", (60.0, 0.0, 25.0), (0.0, 60.0, 40.0), 9.0, 60.0)
    field = lesions.shape(bleed, bone, brain, np.array([0.0, 1.0, 0.0])).field
    inside = (field < 0) & (bone.cavity < 0)
    assert (bone.x[inside] > 0).all()
    assert -bone.vault[inside].min() < 11
    assert np.ptp(bone.y[inside]) > 5 * 9


def test_settled_blood_is_denser_below_its_level():
    _, bone, brain = healthy(0)
    clot = {"texture": 0.0, "settled": (20.0, 1.0)}
    bleed = bleeds.Bleed(bleeds.INTRAPARENCHYMAL, "blob", (30.0, 0.0, 20.0), (15.0, 15.0, 15.0), 15.0, 50.0, **clot)
    density = lesions.shape(bleed, bone, brain, np.array([0.0, 1.0, 0.0])).density
    assert (density[bone.y > 2] == 60).all()
    assert (density[bone.y < -2] == 40).all()


def test_oedema_darkens_white_matter_and_spares_the_cortex():
    _, bone, brain = healthy(0)
    before, cortex = brain.delta.copy(), np.abs(brain.sulcus) - brain.width < 1
    anatomy.darken(bone, brain, np.zeros_like(before), reach=10.0, darker=12.0)
    change = (before - brain.delta)[bone.cavity < 0]
    assert (change[cortex[bone.cavity < 0]] == 0).all()
    assert 8 < np.percentile(change, 90) <= 12


@pytest.mark.parametrize(("share", "seen"), [(1.0, True), (0.4, False)])
def test_fluid_that_is_as_dense_as_brain_is_not_labelled(share, seen):
    head, scan = draw(SEED, 0, 6, GRID)
    extras = lookalikes.Extras([], [], None, None, None)
    blood = bleeds.Bleed(bleeds.SUBARACHNOID, "space", (0.0, -10.0, -10.0), (50.0,) * 3, 0.0, 65.0, share=share)
    masks = render(head, extras, scan, [blood], np.random.default_rng(0))[1]
    assert label_slices(masks, scan.pixel)[:, 5].any() == seen


def test_scans_without_a_bleed_contain_structures_as_dense_as_blood(anatomies):
    areas = []
    for patient, (bone, _) in enumerate(anatomies[:3]):
        study = make_study(SEED, patient, 0, slices=SLICES, size=GRID)
        deep = study.hu[middle(bone.cavity) < -9]
        areas.append(((deep > 50) & (deep < 90)).sum() * study.scan.pixel**2)
    assert np.mean(areas) > 200  # mm2 per scan


def test_a_contrast_agent_shows_the_dura_and_pial_vessels():
    """The same head with and without the agent, but for the density of its blood, which is a property of its own."""
    patient = next(p for p in range(100) if draw(SEED, p, SLICES, GRID)[0].agent > 40)
    head, scan = draw(SEED, patient, SLICES, GRID)
    plain = replace(head, agent=0.0)
    extras, others = (lookalikes.draw_extras(np.random.default_rng(0), of) for of in (head, plain))
    same = list(zip(extras.dense, others.dense, strict=False))
    assert [shape for (shape, _), _ in same] == [shape for _, (shape, _) in same]
    plexus = sum(enhanced != density for (_, enhanced), (_, density) in same)
    assert (plexus, {hu for _, hu in extras.dense[len(same) :]}) == (2, {head.sinus - 4})
    enhanced, usual = (render(of, others, scan, [], np.random.default_rng(0))[0] for of in (head, plain))
    depth = -middle(anatomy.cranium(head, scan.frame(GRID)).cavity)
    change = enhanced.astype(int) - usual
    assert change[(depth > 0.3) & (depth < 1)].mean() > 3
    assert not change[depth > 20].any()


def test_a_bleed_without_mass_effect_changes_nothing_elsewhere():
    without, bleeding = (make_study(SEED, 1, 0, slices=8, size=GRID, kinds=kinds) for kinds in ([], [2]))
    assert bleeding.labels.any()
    assert np.mean(without.hu != bleeding.hu) < 0.02


def test_ventricular_blood_fills_ventricles_from_below(bleeding, anatomies):
    for study, (bone, brain) in zip(bleeding[2], anatomies, strict=True):
        where = visible(study, 2)
        unfilled = (middle(brain.ventricle) < -2) & ~where
        if unfilled.any() and where.any():
            assert middle(bone.y)[where].mean() > middle(bone.y)[unfilled].mean() - 8


def test_subarachnoid_blood_is_in_sulci_and_cisterns(bleeding, anatomies):
    shares = []
    for study, (bone, brain) in zip(bleeding[3], anatomies, strict=True):
        pia = np.minimum(np.abs(brain.sulcus) - brain.width, brain.cistern)
        pia = np.minimum(pia, -bone.cavity - 2)
        pia = np.minimum(pia, np.abs(brain.falx_x) - 2 + np.maximum(brain.falx, 0))
        pia = np.minimum(pia, np.abs(bone.tentorium) - 2)
        nearest = pia.reshape(-1, scanner.SUBPLANES, GRID, GRID).min(1)
        where = visible(study, 3)
        if where.any():
            shares.append(np.mean(nearest[where] < 4))
    assert np.mean(shares) > 0.9


@pytest.mark.parametrize(("kind", "low", "high"), [(0, 45, 85), (1, 42, 85), (2, 35, 80), (3, 30, 80), (4, 10, 80)])
def test_visible_blood_has_the_density_of_blood(bleeding, kind, low, high):
    densities = []
    for study in bleeding[kind]:
        bone = np.stack([cv2.dilate((hu > 150).astype(np.uint8), np.ones((3, 3), np.uint8)) for hu in study.hu]) > 0
        core = visible(study, kind) & ~bone  # without partial volume
        if core.sum() >= 15:
            brain = scanner.BRAIN + study.scan.offset
            densities.append(brain + (np.median(study.hu[core]) - brain) / study.scan.contrast - study.scan.offset)
    assert len(densities) >= 3
    assert low < min(densities)
    assert max(densities) < high


def test_slices_are_ordered_along_the_normal_and_half_of_the_scans_are_tilted():
    scans = [draw(2, p, 12, 64)[1] for p in range(20)]
    for scan in scans:
        axes = np.array(scan.orientation)
        normal = np.cross(axes[:3], axes[3:])
        assert (np.diff(scan.positions @ normal) > 0.5).all()
        assert np.isclose(normal[2], np.cos(scan.tilt))
        assert np.allclose(np.diff(scan.positions[:, :2], axis=0), 0)
    assert 5 <= sum(scan.tilt != 0 for scan in scans) <= 15


def test_positions_are_the_centre_of_the_first_pixel():
    scan = draw(2, 1, 6, 64)[1]
    half = 31.5 * scan.pixel
    expected = scan.centres + np.array([-half, -half * np.cos(scan.tilt), half * np.sin(scan.tilt)])
    np.testing.assert_allclose(scan.positions, expected, atol=1e-3)


@pytest.mark.parametrize("spread", [scanner.Spread(-6, -1, 9), scanner.Spread(0.5, 1, 4), scanner.Spread(0, 0, 23)])
def test_a_spread_has_its_percentiles(spread):
    rng = np.random.default_rng(0)
    found = np.percentile([spread.draw(rng) for _ in range(4000)], (5, 50, 95))
    expected = [spread.low, spread.middle, spread.high]
    np.testing.assert_allclose(found, expected, atol=0.06 * (spread.high - spread.low))


def test_wide_scanners_differ_more_and_those_of_another_hospital_are_others():
    head, streams = draw(2, 0, 30, 64)[0], [stream(2, p, 0, SCAN) for p in range(120)]
    usual, wide, other = (
        [scanner.draw_scan(rng, head, 30, 64, scanners) for rng in streams[k::3]]
        for k, scanners in enumerate(scanner.RANGES)
    )
    for name in ("noise", "grain", "sharpness", "contrast", "pixel"):
        a, b = (np.percentile([getattr(scan, name) for scan in scans], (10, 90)) for scans in (usual, wide))
        assert b[0] < a[0], name
        assert b[1] > a[1], name
    for name in ("noise", "grain", "sharpness", "contrast"):
        a, b = ([getattr(scan, name) for scan in scans] for scans in (usual, other))
        assert not min(b) < np.median(a) < max(b), name


def test_noise_of_larger_pixels_is_that_of_real_ones_averaged():
    large = draw(2, 1, 6, 64)[1]
    small = replace(large, size=256, pixel=large.pixel / 4)
    fine, coarse = (scanner.noise(scan, 200.0, np.random.default_rng(0)) for scan in (small, large))
    averaged = cv2.resize(fine, (64, 64), interpolation=cv2.INTER_AREA)
    assert averaged.std() == pytest.approx(coarse.std(), rel=0.25)


def test_metal_is_denser_than_bone_on_every_scanner():
    head = draw(2, 0, 30, 64)[0]
    image = np.full((64, 64), 30, np.float32)
    image[20:30, 20:30], image[40:50, 40:50] = 1400, 3000
    for p in range(30):
        scan = scanner.draw_scan(stream(2, p, 0, SCAN), head, 6, 64, "wide")
        hu = scanner.acquire(scan, 3, image, np.full((64, 64), 9.0, np.float32), None, np.random.default_rng(p))
        assert 100 < np.median(hu[22:28, 22:28]) <= np.median(hu[42:48, 42:48])


def test_oblique_surfaces_are_continuous_between_the_sub_planes():
    distance = np.stack([np.linspace(-30, 30, 601, dtype=np.float32) + shift for shift in (-6, 0, 6)])[:, None]
    covered = tissue.soft(distance, tissue.oblique(distance, 0.5)).mean(0)[0]
    np.testing.assert_allclose(covered, np.interp(distance[1, 0], (-9, 9), (1, 0)), atol=1e-3)


def test_no_fat_lies_between_skull_and_brain():
    head, scan = draw(SEED, 0, 6, GRID)
    frame = scan.frame(GRID)
    bone = anatomy.cranium(head, frame)
    planes = slice(12, 15)  # of a slice through the vault
    up = tissue.Upsampler(planes, GRID, around=bone.cavity)
    hu = tissue.outside(up, head, bone, face.face(head, frame, bone, None), 1.0)
    assert hu[(up(bone.cavity) > -2) & (up(bone.cavity) < 0)].min() > 300


def test_anatomy_and_bleeds_do_not_depend_on_the_image_size():
    small, large = (make_study(4, 2, 0, slices=8, size=s, kinds=[1, 4]) for s in (64, 128))
    assert small.hu.shape[0] == large.hu.shape[0]
    np.testing.assert_allclose(small.scan.positions[:, 2], large.scan.positions[:, 2], atol=2)
    shrunk = np.stack([cv2.resize(h.astype(np.float32), (64, 64), interpolation=cv2.INTER_AREA) for h in large.hu])
    assert np.corrcoef(shrunk.ravel(), small.hu.ravel())[0, 1] > 0.97


def test_a_second_study_shows_the_same_head_from_another_scan():
    first, second, other = (make_study(4, p, s, slices=6, size=48) for p, s in ((2, 0), (2, 1), (3, 0)))
    assert first.patient_id == second.patient_id != other.patient_id
    assert first.study_id != second.study_id
    assert not set(first.image_ids) & set(second.image_ids)


def test_bleeds_are_paler_in_the_second_study():
    change = []
    for p in range(6):
        cores = []
        for number in (0, 1):
            study = make_study(SEED, p, number, slices=12, size=GRID, kinds=[bleeds.EPIDURAL])
            cores.append(float(np.median(study.hu[visible(study, 0)])))
        change.append(cores[1] - cores[0])
    assert np.mean(change) < -2


def test_air_bone_and_brain_have_their_hounsfield_units():
    study = make_study(4, 2, 0, slices=10, size=128)
    inside = np.clip(study.hu[6], -1024, 3071)
    assert inside[:6, 30:90].mean() < -950
    assert inside.max() > 900
    assert 18 < np.median(inside[50:75, 50:78]) < 45


def test_too_small_sizes_are_rejected():
    with pytest.raises(ValueError, match="at least 4"):
        make_study(0, 0, 0, slices=2, size=64)
