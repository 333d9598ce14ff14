"""The study viewer: values are exact, and keys, wheel, mouse, slider and touch change the image pixel by pixel."""

import base64

import cv2
import numpy as np
import pytest

from browser.conftest import until
from browser.made import EVIL, PATCHES, PIXELS, SIDE, known_units, viewer_data
from ich.report.page.images import planes

SLICES = known_units()
LAST = len(SLICES) - 1
PRESETS = {"brain": (40, 80), "subdural": (80, 200), "bone": (600, 2800), "stroke": (32, 8)}
CANVAS = "#viewer-canvas"
PNG = "document.querySelector('#viewer-canvas').toDataURL()"


class Viewer:
    def __init__(self, page) -> None:
        self.page = page

    def state(self, name: str) -> str:
        return self.page.get_attribute("#viewer", f"data-{name}")

    @property
    def slice(self) -> int:
        return int(self.state("slice"))

    @property
    def window(self) -> tuple[float, float]:
        return float(self.state("level")), float(self.state("width"))

    def image(self) -> np.ndarray:
        """uint8 [s, s, 3] of the canvas, blue first."""
        coded = base64.b64decode(self.page.evaluate(PNG).partition(",")[2])
        return cv2.imdecode(np.frombuffer(coded, np.uint8), cv2.IMREAD_COLOR)

    def patches(self) -> np.ndarray:
        """The grey in the middle of each patch."""
        image = self.image()
        assert (image[..., 0] == image[..., 1]).all()
        middle = ((np.arange(PATCHES) + 0.5) * len(image) / PATCHES).astype(int)
        return image[np.ix_(middle, middle)][..., 0].astype(int)

    def show(self, study: str, index: int) -> None:
        self.page.evaluate(
            "detail => document.getElementById('viewer').dispatchEvent(new CustomEvent('show', {detail}))",
            {"study": study, "index": index},
        )
        self.wait(study=study, slice=str(index))

    def wait(self, **state: str) -> None:
        until(lambda: all(self.state(name) == value for name, value in state.items()))

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


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Equal up to one grey level: browsers round differently when they scale an image."""
    return one.shape == other.shape and int(np.abs(one.astype(int) - other).max()) <= 1


def shows(viewer: Viewer, units: np.ndarray, level: float, width: float) -> bool:
    """Linear from black at level - width / 2 to white at level + width / 2."""
    windowed = 255 * np.clip((units - (level - width / 2)) / width, 0, 1)
    return bool(np.abs(viewer.patches() - windowed).max() <= 1)


@pytest.fixture
def viewer(made) -> Viewer:
    """Study "steps", slice 3 of 6, the brain window, no Grad-CAM."""
    viewer = Viewer(made.page)
    viewer.page.uncheck("#viewer-cam")
    viewer.page.click("[data-preset=brain]")
    viewer.show("steps", 2)
    viewer.page.focus(CANVAS)
    return viewer


def test_the_browser_and_python_restore_every_hounsfield_unit(viewer):
    assert sorted(PIXELS[EVIL].ravel()) == list(range(-1024, 3072))
    for (name, expected), study in zip(PIXELS.items(), viewer_data()["studies"], strict=True):
        viewer.show(name, 0)
        values = np.array(viewer.page.evaluate("[...document.getElementById('viewer').viewer.pixels]"))
        assert np.array_equal(values.reshape(expected.shape) - 1024, expected)
        for text, slice_ in zip(study["pixels"], expected, strict=True):
            both = cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_UNCHANGED).astype(int)
            assert np.array_equal((both[:SIDE] << 8 | both[SIDE:]) - 128 - 1024, slice_)
    assert not viewer.page.locator(".viewer-inexact").is_visible()
    with pytest.raises(ValueError, match="below -1024"):
        planes(np.full((2, 2), -1025, np.int16), -1024)


def test_a_browser_that_alters_image_data_is_reported(opening, made):
    """Browsers do so against fingerprinting: some pixels differ in their last bit."""
    noise = """const read = CanvasRenderingContext2D.prototype.getImageData;
      CanvasRenderingContext2D.prototype.getImageData = function (...box) {
        const found = read.apply(this, box);
        found.data[0] ^= 1;
        return found;
      };"""
    opened = opening(made.path, script=noise)
    assert opened.page.locator(".viewer-inexact").is_visible()
    opened.page.context.close()


def test_presets_and_numbers_set_the_window(viewer):
    for preset, window in PRESETS.items():
        viewer.page.click(f"[data-preset={preset}]")
        assert viewer.window == window
        pressed = "[data-preset][aria-pressed=true]"
        assert viewer.page.eval_on_selector_all(pressed, "all => all.map(b => b.dataset.preset)") == [preset]
        for index in (0, 2, 5):
            viewer.show("steps", index)
            assert shows(viewer, SLICES[index], *window), (preset, index)
    viewer.page.click("[data-preset=brain]")
    for values, window in (
        ({"level": "50", "width": "130"}, (50, 130)),
        ({"width": "0"}, (50, 1)),  # out of bounds
        ({"level": "9999", "width": "80"}, (3071, 80)),
    ):
        for name, value in values.items():
            viewer.page.fill(f"#viewer-{name}", value)
            viewer.page.press(f"#viewer-{name}", "Enter")
        assert viewer.window == window
        assert viewer.page.text_content(".viewer-corner.window") == f"WL {window[0]} WW {window[1]}"
        assert shows(viewer, SLICES[5], *window)
        assert not viewer.page.query_selector("[data-preset][aria-pressed=true]")


def test_dragging_sets_the_window_and_a_double_click_resets_it(viewer):
    viewer.drag(60, 0)
    level, width = viewer.window
    assert level == 40
    assert width > 80
    viewer.drag(-30, 40)
    assert viewer.window[1] < width
    assert viewer.window[0] > 40
    assert shows(viewer, SLICES[2], *viewer.window)
    viewer.page.dblclick(CANVAS)
    assert viewer.window == PRESETS["brain"]
    viewer.drag(0, -40)
    assert viewer.window[0] < 40


def test_keys_change_the_slice_and_stop_at_the_ends(viewer):
    for key, at in {"ArrowDown": 3, "ArrowUp": 1, "PageDown": LAST, "PageUp": 0, "Home": 0, "End": LAST}.items():
        viewer.show("steps", 2)
        viewer.page.keyboard.press(key)
        assert viewer.slice == at
        assert shows(viewer, SLICES[at], 40, 80)
        assert viewer.page.input_value("#viewer-slice") == str(at + 1)
    for keys, end in ((["Home", "ArrowUp", "PageUp"], 0), (["End", "ArrowDown", "PageDown"], LAST)):
        for key in keys:
            viewer.page.keyboard.press(key)
        assert viewer.slice == end
    for key, preset in zip("1234", PRESETS.values(), strict=True):
        viewer.page.keyboard.press(key)
        assert viewer.window == preset


def test_wheel_slider_and_strip_change_the_slice_and_its_text(viewer):
    page = viewer.page
    page.mouse.move(*viewer.middle())
    at, before = page.evaluate("scrollY"), viewer.image()
    page.mouse.wheel(0, 100)
    viewer.wait(slice="3")
    assert (viewer.image() != before).any()
    page.mouse.wheel(0, -100)
    viewer.wait(slice="2")
    assert same(viewer.image(), before)
    assert page.evaluate("scrollY") == at, "the page does not scroll"
    assert "no class reaches its threshold" in page.text_content("#viewer-text")
    page.focus("#viewer-slice")
    page.keyboard.press("ArrowRight")
    assert viewer.slice == 3
    assert page.get_attribute("#viewer-slice", "aria-valuetext").startswith("slice 4 of 6, 7.5 mm")
    text = page.text_content("#viewer-text")
    assert text == "slice 4 of 6, 7.5 mm, intraparenchymal 0.30 (label 1), any 0.30 (label 1)"
    for index in (0, 4):
        viewer.middle("#viewer-strip")
        page.click(f"#viewer-strip [data-slice='{index}']")
        assert viewer.slice == index
        assert shows(viewer, SLICES[index], 40, 80)


def test_a_study_is_selected_from_the_list_or_by_an_error_and_keeps_the_window(viewer):
    viewer.page.click("[data-preset=bone]")
    viewer.page.select_option("#viewer-study", "turned")
    viewer.wait(study="turned")
    assert viewer.window == PRESETS["bone"]
    viewer.show("turned", 1)
    assert shows(viewer, SLICES[LAST - 1][::-1], *PRESETS["bone"])
    viewer.show(EVIL, 0)  # without labels, predictions and positions
    assert "slice 1 of 1" in viewer.page.text_content("#viewer-text")
    assert viewer.page.is_disabled("#viewer-cam")
    viewer.page.keyboard.press("End")
    assert viewer.slice == 0
    viewer.page.click("[data-preset=brain]")
    buttons = viewer.page.locator("#errors [data-study]")
    assert buttons.count() == 1, "the viewer does not hold the study of the other case"
    buttons.first.click()
    viewer.wait(study="turned")
    assert viewer.slice == 2
    assert shows(viewer, SLICES[LAST - 2][::-1], 40, 80)
    assert 0 <= viewer.page.locator(CANVAS).bounding_box()["y"] < 900
    assert viewer.page.evaluate("document.activeElement.id") == "viewer-canvas"


def test_grad_cam_overlays_the_image_per_class(viewer):
    before = viewer.image()
    viewer.page.check("#viewer-cam")
    first = viewer.image()
    assert (first != before).any(axis=2).mean() > 0.1
    viewer.page.select_option("#viewer-cam-class", "1")
    assert (viewer.image() != first).any()
    viewer.page.uncheck("#viewer-cam")
    assert same(viewer.image(), before)
    viewer.page.select_option("#viewer-cam-class", "0")
    viewer.page.uncheck("#viewer-cam")


def swipe(viewer: Viewer, down: float) -> None:
    x, y = viewer.middle()
    session = viewer.page.context.new_cdp_session(viewer.page)
    session.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    for part in range(1, 6):
        at = [{"x": x, "y": y + down * part / 5}]
        session.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": at})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def test_swipes_change_the_slice_or_the_window(opening, made):
    touched = Viewer(opening(made.path, 390, has_touch=True, is_mobile=True).page)
    touched.show("steps", 2)
    touched.middle()
    before, at = touched.image(), touched.page.evaluate("scrollY")
    swipe(touched, 60)
    assert touched.slice > 2
    assert (touched.image() != before).any()
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
    touched.page.context.close()


FONTS = {
    "own": "* { }",
    "wide": "* { font-family: 'DejaVu Sans Mono', monospace !important; letter-spacing: 0.06em !important; }",
    "narrow": "* { font-family: 'DejaVu Sans Condensed', sans-serif !important; letter-spacing: -0.06em !important; }",
}
# Elements beyond the page or the card of the viewer, and cells of its table that are narrower than their text.
CUT = """() => {
  const beyond = (place, right) => [...document.querySelectorAll(place)].filter((e) => e.checkVisibility()
    && !e.closest(".table, .code, .plot, [role=tablist], .rail, .aside, select")
    && e.getBoundingClientRect().right > right + 0.5);
  const cells = [...document.querySelectorAll(".viewer-slice :is(th, td, caption)")];
  const cut = cells.filter((e) => e.scrollWidth > e.clientWidth);
  const card = document.getElementById("viewer").getBoundingClientRect().right;
  return [...beyond("body *", innerWidth), ...beyond("#viewer *", card), ...cut].map((e) => e.outerHTML.slice(0, 90));
}"""


def test_no_font_widens_the_page_or_cuts_the_table_of_the_slice(made):
    page = made.page
    Viewer(page).show("steps", 4)
    assert "false positive" in page.inner_text(".viewer-slice")
    for font, style in FONTS.items():
        tag = page.add_style_tag(content=style)
        for width in (390, 768, 1280, 1440):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate(CUT) == [], (font, width)
        tag.evaluate("style => style.remove()")
