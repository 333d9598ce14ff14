import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression

from ich.ensemble import calibration
from ich.ensemble.calibration import METHODS, Calibrator, choose_calibrator, fit
from ich.ensemble.intervals import Bootstrap
from ich.ensemble.metrics import weighted_log_loss

FITTED = METHODS[1:]
logits = st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=30)
labels = st.lists(st.sampled_from([0.0, 1.0]), min_size=30, max_size=30)


def simulated(seed, n=6000, slope=1.0, intercept=0.0):
    """Logits z, labels with probability sigmoid(slope z + intercept), folds, and draws of patients of 20 rows."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-2, 2, n)
    y = (rng.random(n) < expit(slope * z + intercept)).astype(float)
    patients = np.arange(n) // 20
    return z, y, patients % 4, Bootstrap(patients, resamples=400)


def log_loss(y, z):
    return weighted_log_loss(y[:, None], expit(z)[:, None], [1])


def test_the_maps_by_hand():
    assert Calibrator().apply([1.0, -2.0]).tolist() == [1.0, -2.0]
    assert Calibrator("temperature", (2.0,)).apply([3.0]).tolist() == [1.5]
    assert Calibrator("platt", (2.0, -1.0)).apply([3.0]).tolist() == [5.0]
    p = 0.2  # 0.5 ln 0.2 - 3 ln 0.8 + 0.1
    found = Calibrator("beta", (0.5, 3.0, 0.1)).apply(logit([p]))
    assert found == pytest.approx([0.5 * np.log(0.2) - 3 * np.log(0.8) + 0.1])
    knots = Calibrator("isotonic", knots=((-1.0, -3.0), (1.0, 1.0), (2.0, 1.0)))
    assert knots.apply([-9.0, -1.0, 0.0, 1.5, 9.0]).tolist() == [-3.0, -3.0, -1.0, 1.0, 1.0]
    assert Calibrator("isotonic", knots=((0.0, 0.5),)).apply([[-1.0, 1.0]]).tolist() == [[0.5, 0.5]]
    near = Calibrator("isotonic", knots=((0.0, -1e6), (5e-324, 1e6)))
    assert near.apply([-1.0, 0.0, 5e-324, 1.0]).tolist() == [-1e6, -1e6, 1e6, 1e6]


@settings(max_examples=30, deadline=None)
@given(logits, labels, st.sampled_from(METHODS))
def test_fitted_maps_rise_are_finite_and_survive_json(z, y, method):
    found = fit(method, z, y[: len(z)])
    grid = np.sort(np.concatenate([z, np.linspace(-20, 20, 401), [-1e4, 1e4]]))
    mapped = found.apply(grid)
    assert np.isfinite(mapped).all()
    assert (np.diff(mapped) >= -1e-12 * np.abs(mapped[1:])).all()
    assert Calibrator.from_dict(json.loads(json.dumps(found.as_dict(), allow_nan=False))) == found


@pytest.mark.parametrize("method", ["temperature", "platt", "beta"])
@pytest.mark.parametrize("seed", range(6))
def test_the_fit_is_the_optimum_of_a_general_solver(method, seed):
    rng = np.random.default_rng(seed)
    z, y, _, _ = simulated(seed, 200, slope=[1, 0.3, -1, 3, 0, 1][seed], intercept=rng.normal())

    start = np.array({"temperature": [1.0], "platt": [1.0, 0.0], "beta": [1.0, 1.0, 0.0]}[method])
    ones, ln_p, ln_q = np.ones_like(z), -np.logaddexp(0, -z), -np.logaddexp(0, z)
    columns = {"temperature": [z], "platt": [z, ones], "beta": [ln_p, -ln_q, ones]}[method]

    def objective(theta):
        line = theta @ np.stack(columns)
        return float((np.logaddexp(0, line) - y * line).sum() + calibration.RIDGE / 2 * ((theta - start) ** 2).sum())

    slopes = 2 if method == "beta" else 1
    bounds = [(1e-3, None)] * slopes + [(None, None)] * (len(start) - slopes)
    solved = minimize(objective, start, bounds=bounds, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-9})
    found = np.array(fit(method, z, y).parameters)
    theta = 1 / found if method == "temperature" else found
    assert objective(theta) <= objective(solved.x) + 1e-8
    assert theta == pytest.approx(solved.x, abs=2e-3)


def test_binned_rows_give_the_same_parameters(monkeypatch):
    z, y, _, _ = simulated(1, 12_000, slope=0.7, intercept=-0.5)
    exact = {method: fit(method, z, y) for method in METHODS}
    monkeypatch.setattr(calibration, "CELLS", 8000)
    for method in ("temperature", "platt", "beta"):
        assert fit(method, z, y).parameters == pytest.approx(exact[method].parameters, abs=1e-4)
    other_z, other_y, _, _ = simulated(13, 12_000, slope=0.7, intercept=-0.5)
    cells = log_loss(other_y, fit("isotonic", z, y).apply(other_z))
    assert cells == pytest.approx(log_loss(other_y, exact["isotonic"].apply(other_z)), abs=1e-4)


def test_copies_equal_repeated_rows():
    z, y, _, _ = simulated(2, 400)
    copies = np.arange(400) % 3 + 1
    for method in FITTED:
        repeated = fit(method, np.repeat(z, copies), np.repeat(y, copies)).apply(z)
        assert fit(method, z, y, copies).apply(z) == pytest.approx(repeated, abs=1e-9)


def test_isotonic_knots_are_scikit_learns_steps_with_a_pseudo_row_at_either_end():
    z, y, _, _ = simulated(3, 500)
    extended = np.concatenate([z, [z.min(), z.max()]]), np.concatenate([y, [1, 0]])
    steps = IsotonicRegression().fit(*extended).predict(z)
    found = np.array(fit("isotonic", z, y).knots)
    values = np.unique(steps.round(12))
    assert expit(found[:, 1]) == pytest.approx(values)
    assert found[:, 0] == pytest.approx([z[np.isclose(steps, value, atol=1e-11)].mean() for value in values])
    # by hand: a positive at 0, a negative at 3. Shares 1/2 (0), 0 (1), 1 (2), 1/2 (3) -> pools {0, 1}, {2, 3}
    found = fit("isotonic", [0.0, 1.0, 2.0, 3.0], [0, 0, 1, 1])
    assert np.array(found.knots) == pytest.approx(np.array([[0.5, logit(1 / 3)], [2.5, logit(2 / 3)]]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("z", "y"), [([1.0, 2.0], [0, 0]), ([1.0, 2.0], [1, 1]), ([1.0, 1.0], [0, 1]), ([30.0, 40.0], [0, 1])]
)
def test_one_label_or_one_logit_gives_the_identity(method, z, y):
    assert fit(method, z, y) == Calibrator()


@pytest.mark.parametrize("method", FITTED)
def test_separable_labels_and_single_positives_have_a_moderate_fit(method):
    z = np.linspace(-4, 4, 200)
    separated = fit(method, z, z > 0).apply(z)
    assert np.abs(separated).max() < 60
    single = fit(method, z, z == z[150]).apply(z)
    assert np.abs(single).max() < 60
    assert log_loss(1.0 * (z == z[150]), single) < log_loss(1.0 * (z == z[150]), z)


def test_rows_are_cross_fitted():
    z, y, fold, draws = simulated(4, slope=0.6, intercept=-0.4)
    for method in FITTED:
        choice = choose_calibrator(z, y, fold, draws, method)
        for k in range(4):
            apart = fit(method, z[fold != k], y[fold != k]).apply(z[fold == k])
            assert choice.logits[fold == k] == pytest.approx(apart, abs=1e-9)
        assert choice.calibrator.apply(z) == pytest.approx(fit(method, z, y).apply(z), abs=1e-9)
        assert choice.losses[method]["cross_fitted"] == pytest.approx(log_loss(y, choice.logits))
        assert choice.losses[method]["in_sample"] == pytest.approx(log_loss(y, choice.calibrator.apply(z)))
        assert choice.losses["none"]["in_sample"] == choice.losses["none"]["cross_fitted"]
        assert choice.losses["none"]["in_sample"] == pytest.approx(log_loss(y, z))
        assert choice.losses[method]["in_sample"] <= choice.losses["none"]["in_sample"] + 1e-12


@pytest.mark.parametrize(
    ("slope", "intercept", "expected"), [(1.0, 0.0, "none"), (0.6, 0.0, "temperature"), (0.6, -1.0, "platt")]
)
def test_the_simplest_sufficient_method_is_chosen(slope, intercept, expected):
    choice = choose_calibrator(*simulated(6, 20_000, slope, intercept))
    assert choice.calibrator.method == expected
    assert (set(choice.losses), choice.warning) == (set(METHODS), "")
    difference, low, high = choice.differences["platt"]
    assert low <= difference <= high
    losses = choice.losses["platt"]["cross_fitted"], choice.losses["none"]["cross_fitted"]
    assert difference == pytest.approx(losses[0] - losses[1], abs=1e-12)


def test_nonlinear_miscalibration_gets_a_nonlinear_map():
    z, y, fold, draws = simulated(7, 20_000)
    bent = expit(Calibrator("beta", (0.4, 1.6, 0.0)).apply(z))
    skewed = (np.random.default_rng(7).random(20_000) < bent).astype(float)
    choice = choose_calibrator(z, skewed, fold, draws).calibrator
    assert choice.method == "beta"
    assert choice.parameters == pytest.approx((0.4, 1.6, 0.0), abs=0.2)
    assert choose_calibrator(z + 0.9 * np.sin(1.5 * z), y, fold, draws).calibrator.method == "isotonic"


def test_methods_need_positives_and_two_folds():
    z, y, fold, draws = simulated(9, 6000)
    few = np.where(np.cumsum(y) <= 60, y, 0)
    assert set(choose_calibrator(z, few, fold, draws).losses) == {"none", "temperature", "platt", "beta"}
    assert set(choose_calibrator(z, np.zeros(6000), fold, draws).losses) == {"none"}
    one_label = choose_calibrator(z, np.zeros(6000), fold, draws, "platt")
    assert (one_label.calibrator, one_label.logits.tolist()) == (Calibrator(), z.tolist())
    assert "platt" in one_label.warning
    one_fold = choose_calibrator(z, y, np.zeros(6000), draws)
    assert (one_fold.calibrator, one_fold.logits.tolist()) == (Calibrator(), z.tolist())
    assert choose_calibrator(z, y, np.zeros(6000), draws, "platt").calibrator.method == "platt"


def test_logits_beyond_the_clip_do_not_dominate_a_fit():
    z, y, fold, draws = simulated(12, slope=0.6)
    wild = z.copy()
    wild[0], y[0] = 1e4, 1
    assert np.isfinite(choose_calibrator(wild, y, fold, draws).logits).all()
    assert fit("platt", wild, y).parameters == pytest.approx(fit("platt", z, y).parameters, abs=0.05)
    charged = choose_calibrator([1e4, 0.0], [0, 0], [0, 1], Bootstrap([0, 1])).losses["none"]["in_sample"]
    assert charged == pytest.approx((-np.log(1e-7) + np.log(2)) / 2)


@pytest.mark.parametrize(
    "data",
    [
        *(None, {"method": "magic"}, {"method": "none", "slope": 1.0}, {"method": "platt", "slope": 1.0}),
        *({"method": "platt", "slope": slope, "intercept": 0.0} for slope in ("1", float("nan"), -1.0)),
        *({"method": "temperature", "temperature": 0.0}, {"method": "beta", "a": 1.0, "b": -0.1, "c": 0.0}),
        *({"method": "isotonic", "knots": knots} for knots in ([], "ab", [[0.0, 1.0, 2.0]], [[0.0, float("inf")]])),
        *({"method": "isotonic", "knots": [[0.0, 1.0], knot]} for knot in ([0.0, 2.0], [1.0, 0.0])),
    ],
)
def test_malformed_calibrators_raise(data):
    with pytest.raises(ValueError, match="calibrator") as refused:
        Calibrator.from_dict(data)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("z", "y"), [([], []), ([1.0], [0, 1]), ([[1.0]], [[0]]), ([np.nan], [0]), ([1.0], [2]), ([1.0], [np.nan])]
)
def test_invalid_logits_and_labels_raise(z, y):
    with pytest.raises(ValueError, match=r"labels|predictions"):
        fit("platt", z, y)
