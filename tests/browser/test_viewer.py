"""The study viewer at work: what people do to it changes the picture as it should, pixel by pixel."""

import base64

import cv2
import numpy as np
import pytest

from browser.conftest import until
from browser.made import EVIL, PATCHES, known_units

SLICES = known_units()
LAST = len(SLICES) - 1
PRESETS = {"brain": (40, 80), "subdural": (80, 200), "bone": (600, 2800), "stroke": (32, 8)}
CANVAS = "#viewer-canvas"
PNG = "document.querySelector('#viewer-canvas').toDataURL()"


class Viewer:
    """The viewer of a page, in the hands of a test."""

    def __init__(self, page) -> None:
        self.page = page

    def said(self, name: str) -> str:
        return self.page.get_attribute("#viewer", f"data-{name}")

    def numbers(self, *names: str) -> tuple[float, ...]:
        return tuple(float(self.said(name)) for name in names)

    @property
    def slice(self) -> int:
        return int(self.said("slice"))

    @property
    def window(self) -> tuple[float, ...]:
        return self.numbers("level", "width")

    def picture(self) -> np.ndarray:
        """uint8 [s, s, 3] of the canvas, blue first."""
        coded = base64.b64decode(self.page.evaluate(PNG).partition(",")[2])
        return cv2.imdecode(np.frombuffer(coded, np.uint8), cv2.IMREAD_COLOR)

    def patches(self) -> np.ndarray:
        """The grey in the middle of each patch."""
        picture = self.picture()
        assert (picture[..., 0] == picture[..., 1]).all()
        middle = ((np.arange(PATCHES) + 0.5) * len(picture) / PATCHES).astype(int)
        return picture[np.ix_(middle, middle)][..., 0].astype(int)

    def show(self, study: str, index: int) -> None:
        self.page.evaluate(
            "detail => document.getElementById('viewer').dispatchEvent(new CustomEvent('show', {detail}))",
            {"study": study, "index": index},
        )
        self.wait(study=study, slice=str(index))

    def wait(self, **said: str) -> None:
        """Until the viewer says so."""
        until(lambda: all(self.said(name) == value for name, value in said.items()))

    def middle(self, selector: str = CANVAS) -> tuple[float, float]:
        self.page.locator(selector).scroll_into_view_if_needed()
        box = self.page.locator(selector).bounding_box()
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def drag(self, right: float, down: float) -> None:
        x, y = self.middle()
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + right, y + down, steps=4)
        self.page.mouse.up()


def windowed(units: np.ndarray, level: float, width: float) -> np.ndarray:
    """Linear from black at level - width / 2 to white at level + width / 2."""
    return 255 * np.clip((units - (level - width / 2)) / width, 0, 1)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """But for how the browser rounds when it widens a picture, which now and then is another grey level."""
    return one.shape == other.shape and int(np.abs(one.astype(int) - other).max()) <= 1


@pytest.fixture
def viewer(made) -> Viewer:
    """Study "steps", slice 3 of 6, the brain window, no Grad-CAM."""
    viewer = Viewer(made.page)
    viewer.page.uncheck("#viewer-cam")
    viewer.page.click("[data-preset=brain]")
    viewer.show("steps", 2)
    viewer.page.focus(CANVAS)
    return viewer


# ---- the picture


@pytest.mark.parametrize("preset", PRESETS)
def test_each_preset_shows_the_hounsfield_units_as_its_window_says(viewer, preset):
    viewer.page.click(f"[data-preset={preset}]")
    assert viewer.window == PRESETS[preset]
    pressed = "[data-preset][aria-pressed=true]"
    assert viewer.page.eval_on_selector_all(pressed, "all => all.map(b => b.dataset.preset)") == [preset]
    for index, units in enumerate(SLICES):
        viewer.show("steps", index)
        grey = viewer.patches()
        assert np.abs(grey - windowed(units, *PRESETS[preset])).max() <= 1, (preset, index)
    assert len(np.unique(grey)) > 1


def test_level_and_width_can_be_written(viewer):
    for name, value in (("level", "50"), ("width", "130")):
        viewer.page.fill(f"#viewer-{name}", value)
        viewer.page.press(f"#viewer-{name}", "Enter")
    assert viewer.window == (50, 130)
    assert np.abs(viewer.patches() - windowed(SLICES[2], 50, 130)).max() <= 1
    assert not viewer.page.query_selector("[data-preset][aria-pressed=true]")


@pytest.mark.parametrize(("name", "value", "window"), [("width", "0", (40, 1)), ("level", "9999", (3071, 80))])
def test_a_window_that_cannot_be_is_brought_into_bounds(viewer, name, value, window):
    viewer.page.fill(f"#viewer-{name}", value)
    viewer.page.press(f"#viewer-{name}", "Enter")
    assert viewer.window == window
    assert np.abs(viewer.patches() - windowed(SLICES[2], *window)).max() <= 1


def test_dragging_sets_the_window_and_a_double_click_sets_it_back(viewer):
    viewer.drag(60, 0)
    level, width = viewer.window
    assert (level, width > 80) == (40, True)
    viewer.drag(-30, 0)
    assert viewer.window[1] < width
    viewer.drag(0, 40)
    assert viewer.window[0] > 40
    assert np.abs(viewer.patches() - windowed(SLICES[2], *viewer.window)).max() <= 1
    viewer.page.dblclick(CANVAS)
    assert viewer.window == PRESETS["brain"]
    viewer.drag(0, -40)
    assert viewer.window[0] < 40


# ---- scrolling


KEYS = {"ArrowDown": 3, "ArrowUp": 1, "PageDown": LAST, "PageUp": 0, "Home": 0, "End": LAST}


@pytest.mark.parametrize("key", KEYS)
def test_keys_scroll_through_the_slices(viewer, key):
    viewer.page.keyboard.press(key)
    assert viewer.slice == KEYS[key]
    assert np.abs(viewer.patches() - windowed(SLICES[KEYS[key]], 40, 80)).max() <= 1
    assert viewer.page.input_value("#viewer-slice") == str(KEYS[key] + 1)


def test_no_key_leads_beyond_the_ends(viewer):
    for keys, end in ((["Home", "ArrowUp", "PageUp"], 0), (["End", "ArrowDown", "PageDown"], LAST)):
        for key in keys:
            viewer.page.keyboard.press(key)
        assert viewer.slice == end


def test_the_wheel_scrolls_the_slices_and_not_the_page(viewer):
    viewer.page.mouse.move(*viewer.middle())
    at = viewer.page.evaluate("scrollY")
    before = viewer.picture()
    viewer.page.mouse.wheel(0, 100)
    viewer.wait(slice="3")
    assert (viewer.picture() != before).any()
    viewer.page.mouse.wheel(0, -100)
    viewer.wait(slice="2")
    assert same(viewer.picture(), before)
    assert viewer.page.evaluate("scrollY") == at


def test_the_slider_scrolls_by_keyboard_and_says_the_slice(viewer):
    viewer.page.focus("#viewer-slice")
    viewer.page.keyboard.press("ArrowRight")
    assert viewer.slice == 3
    assert viewer.page.get_attribute("#viewer-slice", "aria-valuetext").startswith("slice 4 of 6, 7.5 mm")
    assert np.abs(viewer.patches() - windowed(SLICES[3], 40, 80)).max() <= 1


@pytest.mark.parametrize("index", [0, 4])
def test_a_click_on_the_strip_goes_to_its_slice(viewer, index):
    viewer.middle("#viewer-strip")
    viewer.page.click(f"#viewer-strip [data-slice='{index}']")
    assert viewer.slice == index
    assert np.abs(viewer.patches() - windowed(SLICES[index], 40, 80)).max() <= 1


def test_the_slice_is_told_with_its_place_probability_and_label(viewer):
    viewer.show("steps", 3)
    said = viewer.page.text_content("#viewer-text")
    assert said == "slice 4 of 6, 7.5 mm, epidural 0.30 (label 1), any 0.30 (label 1)"
    viewer.show("steps", 2)
    assert "nothing reaches its threshold" in viewer.page.text_content("#viewer-text")


# ---- studies and Grad-CAM


def test_another_study_shows_its_own_pictures_in_the_window_that_is_set(viewer):
    viewer.page.click("[data-preset=bone]")
    viewer.page.select_option("#viewer-study", "turned")
    viewer.wait(study="turned")
    assert viewer.window == PRESETS["bone"]
    viewer.show("turned", 1)
    assert np.abs(viewer.patches() - windowed(SLICES[LAST - 1][::-1], *PRESETS["bone"])).max() <= 1


def test_a_study_without_labels_probabilities_or_places_is_shown_with_its_pictures(viewer):
    viewer.show(EVIL, 0)
    assert np.abs(viewer.patches() - windowed(SLICES[0], 40, 80)).max() <= 1
    assert "slice 1 of 1" in viewer.page.text_content("#viewer-text")
    assert viewer.page.is_disabled("#viewer-cam")
    viewer.page.keyboard.press("End")
    assert viewer.slice == 0


def test_grad_cam_covers_the_picture_by_class_and_leaves_it_as_it_was(viewer):
    before = viewer.picture()
    viewer.page.check("#viewer-cam")
    first = viewer.picture()
    assert (first != before).any(axis=2).mean() > 0.1
    viewer.page.select_option("#viewer-cam-class", "1")
    assert (viewer.picture() != first).any()
    viewer.page.uncheck("#viewer-cam")
    assert same(viewer.picture(), before)
    viewer.page.select_option("#viewer-cam-class", "0")
    viewer.page.uncheck("#viewer-cam")


def test_a_mistake_is_shown_in_the_viewer_where_the_viewer_holds_its_study(viewer):
    buttons = viewer.page.locator("#mistakes [data-study]")
    assert buttons.count() == 1, "of two cases one has a study that the viewer does not hold"
    buttons.first.click()
    viewer.wait(study="turned")
    assert viewer.slice == 2
    assert np.abs(viewer.patches() - windowed(SLICES[LAST - 2][::-1], 40, 80)).max() <= 1
    box = viewer.page.locator(CANVAS).bounding_box()
    assert 0 <= box["y"] < 900
    assert viewer.page.evaluate("document.activeElement.id") == "viewer-canvas"


# ---- fingers


@pytest.fixture
def touched(opening, made):
    """The same page on a phone."""
    opened = opening(made.path, 390, has_touch=True, is_mobile=True)
    yield Viewer(opened.page)
    opened.page.context.close()


def swipe(viewer: Viewer, down: float) -> None:
    x, y = viewer.middle()
    session = viewer.page.context.new_cdp_session(viewer.page)
    at = [{"x": x, "y": y}]
    session.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": at})
    for part in range(1, 6):
        at = [{"x": x, "y": y + down * part / 5}]
        session.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": at})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def test_a_finger_scrolls_or_sets_the_window(touched):
    touched.show("steps", 2)
    touched.middle()
    before, at = touched.picture(), touched.page.evaluate("scrollY")
    swipe(touched, 60)
    assert touched.slice > 2
    assert (touched.picture() != before).any()
    swipe(touched, -120)
    assert touched.slice < 2
    assert touched.window == PRESETS["brain"]
    assert touched.page.evaluate("scrollY") == at
    shown = touched.slice
    touched.page.click("#viewer-touch")
    touched.page.wait_for_selector("#viewer-touch[aria-pressed=true]")
    swipe(touched, 40)
    assert touched.window[0] > 40
    assert touched.slice == shown
