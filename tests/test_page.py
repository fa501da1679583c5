"""The page and the report in a real browser."""

import base64
import io
import re
import shutil
import threading
import time

import numpy as np
import pytest
import uvicorn
from PIL import Image

from dsn_ray.report import write_report
from dsn_ray.web import make_app
from tests.test_report import ablation, run  # noqa: F401 - a fixture
from tests.test_web import gallery  # noqa: F401 - a fixture

pytestmark = pytest.mark.system

BROWSER = shutil.which("chromium")
SERIOUS = ("serious", "critical")
PHONE = {"width": 360, "height": 700}


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("Debian's chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Inside containers root has no sandbox.
        started = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def address(gallery):  # noqa: F811
    """A server whose network sees nothing but the mean colour."""

    async def darkness(sketch):
        # The more ink, the more it is like the last photo.
        ink = np.float32((sketch < 128).mean() * 20)
        return np.array([1, 0, ink], np.float32)

    app = make_app(gallery, 64, darkness)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(timeout=10)


@pytest.fixture
def page(browser, address, request):
    """The page, opened; afterwards nothing may have gone wrong or elsewhere.

    In a test that looks for refusals, the browser's own lines on these are no complaint.
    """
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message) if message.type == "error" else 0)
    page.on("pageerror", lambda error: complaints.append(error))
    page.goto(address)
    page.get_by_text("3 photos are waiting").wait_for()
    yield page
    assert all(url.startswith((address, "data:", "blob:")) for url in asked)
    said = [str(getattr(one, "text", one)) for one in complaints]
    if getattr(request, "param", "") == "refusals":
        said = [text for text in said if "Failed to load resource" not in text]
    assert said == []
    page.close()


def stroke(page, *points):
    box = page.locator("#sketch").bounding_box()
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*at[0])
    page.mouse.down()
    for point in at[1:]:
        page.mouse.move(*point, steps=5)
    page.mouse.up()


def pixels(page):
    return page.evaluate("document.querySelector('#sketch').toDataURL()")


def first_class(page):
    page.locator("#photos li").first.wait_for()
    return page.locator("#photos figcaption").first.inner_text().splitlines()[0]


def wait_for_class(page, name):
    page.wait_for_function(
        "name => document.querySelector('#photos figcaption')?.firstChild.data === name", arg=name
    )


def test_drawing_more_changes_what_is_found_and_undo_takes_it_back(page):
    stroke(page, (0.4, 0.5), (0.5, 0.5))
    assert first_class(page) == "red"
    page.locator("#width").fill("16")
    for height in np.linspace(0.1, 0.9, 8):
        stroke(page, (0.05, height), (0.95, height))
    wait_for_class(page, "blue")
    for _ in range(8):
        page.get_by_role("button", name="Undo").click()
    wait_for_class(page, "red")
    page.get_by_role("button", name="Clear").click()
    page.get_by_text("The canvas is empty").wait_for()
    assert page.locator("#photos li").count() == 0


def test_undo_takes_back_clear_and_examples(page):
    stroke(page, (0.4, 0.5), (0.5, 0.5))
    drawn = pixels(page)
    page.get_by_role("button", name="house").click()
    assert pixels(page) != drawn
    page.get_by_role("button", name="Clear").click()
    for _ in range(2):
        page.get_by_role("button", name="Undo").click()
    assert pixels(page) == drawn


def test_a_second_finger_does_not_join_in(page):
    page.evaluate(
        """() => {
            const canvas = document.querySelector("#sketch");
            canvas.setPointerCapture = () => {};
            const send = (type, pointerId, x, y) => {
                const box = canvas.getBoundingClientRect();
                canvas.dispatchEvent(new PointerEvent(type, {
                    pointerId, clientX: box.left + x, clientY: box.top + y, button: 0,
                }));
            };
            send("pointerdown", 1, 20, 20);
            send("pointermove", 1, 60, 20);
            send("pointerdown", 2, 20, 200);
            send("pointermove", 2, 200, 200);
        }"""
    )
    ink = """() => {
        const canvas = document.querySelector("#sketch");
        const {data} = canvas.getContext("2d").getImageData(0, 0, 512, 512);
        const rows = new Set();
        for (let i = 0; i < data.length; i += 4) if (data[i] < 128) rows.add(i / 4 / 512 | 0);
        return Math.max(...rows);
    }"""
    assert page.evaluate(ink) < 60


def test_mouse_and_keyboard_draw_strokes_of_their_own(page):
    keep_what_is_sent(page)
    page.locator("#sketch").focus()
    page.keyboard.press(" ")
    stroke(page, (0.1, 0.1), (0.3, 0.1))
    page.keyboard.press("ArrowDown")
    first_class(page)
    rows = np.flatnonzero(drawn_and_sent(page).any(axis=1))
    assert set(rows // 30) == {0, 4}  # a line, and the dot in the middle


def test_fingers_draw(browser, address):
    context = browser.new_context(has_touch=True, is_mobile=True, viewport=PHONE)
    page = context.new_page()
    page.goto(address)
    page.get_by_text("3 photos are waiting").wait_for()
    touch = context.new_cdp_session(page)
    box = page.locator("#sketch").bounding_box()
    for kind, part in (
        ("touchStart", 0.3),
        ("touchMove", 0.5),
        ("touchMove", 0.7),
        ("touchEnd", 0),
    ):
        points = [{"x": box["x"] + part * box["width"], "y": box["y"] + 50}] if part else []
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    assert first_class(page) == "red"
    assert page.evaluate("scrollY") == 0
    context.close()


def test_binary_codes_uploads_and_examples(page, tmp_path):
    fetched = []
    page.on("request", lambda request: fetched.append("photos/" in request.url))
    page.get_by_role("button", name="fish").click()
    first_class(page)
    assert "cosine" in page.locator("#photos figcaption").first.inner_text()
    page.get_by_label("binary codes").check()
    page.get_by_text("of 3 bits differ").first.wait_for()
    Image.fromarray(np.tile(np.uint8([0, 255, 0, 0]), (64, 16))).save(tmp_path / "bars.png")
    page.locator("#upload").set_input_files(tmp_path / "bars.png")
    page.get_by_label("real-valued features").check()
    wait_for_class(page, "blue")
    assert sum(fetched) == 3  # each photo once
    (tmp_path / "no.png").write_text("this is no picture")
    page.locator("#upload").set_input_files(tmp_path / "no.png")
    page.get_by_text("no.png is no picture").wait_for()
    assert page.locator("#photos li").count() == 0
    (tmp_path / "huge.png").write_bytes(bytes(50 * 2**20))
    page.locator("#upload").set_input_files(tmp_path / "huge.png")
    page.get_by_text("huge.png is larger than 10 MB").wait_for()


@pytest.mark.parametrize("page", ["refusals"], indirect=True)
def test_what_the_server_refuses_is_said_and_tried_again(page):
    answers = iter(
        [
            {"status": 429, "headers": {"Retry-After": "1"}, "json": {"error": "Too many."}},
            {"status": 422, "json": {"error": "This is no picture that can be used."}},
        ]
    )

    def answer(route):
        given = next(answers, None)
        route.continue_() if given is None else route.fulfill(**given)

    page.route("**/search*", answer)
    page.get_by_role("button", name="cup").click()
    page.get_by_text("Many people are searching").wait_for()
    page.get_by_text("This is no picture that can be used.").wait_for()
    page.get_by_role("button", name="boat").click()
    page.get_by_text("The 3 nearest photos.").wait_for()


@pytest.mark.parametrize("page", ["refusals"], indirect=True)
def test_a_photo_that_is_gone_says_so(page, gallery):  # noqa: F811
    (gallery.root / gallery.paths[0]).unlink()
    page.get_by_role("button", name="cup").click()
    page.get_by_text("This photo is gone.").wait_for()
    assert page.get_by_text("This photo is gone.").count() == 1


def test_names_of_photos_are_text(page):
    page.get_by_role("button", name="cup").click()
    first_class(page)
    assert page.locator("#photos img").nth(2).get_attribute("alt")
    assert page.locator("#photos b").count() == 0


def drawn_and_sent(page):
    """The last drawing that a search was asked for: which pixels are black."""
    sent = page.evaluate("window.sent")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(sent))).convert("L")) < 128


def keep_what_is_sent(page):
    page.evaluate(
        """() => {
            const ask = window.fetch;
            window.fetch = async (address, asked) => {
                if (asked?.body) {
                    const bytes = new Uint8Array(await asked.body.arrayBuffer());
                    window.sent = btoa(String.fromCharCode(...bytes));
                }
                return ask(address, asked);
            };
        }"""
    )


def test_a_keyboard_alone_draws_and_reaches_everything(page):
    keep_what_is_sent(page)
    page.keyboard.press("Tab")
    page.keyboard.press(" ")
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    page.get_by_text("The pen is down, 81% from the left and 50% from the top.").wait_for()
    assert first_class(page) == "red"
    drawn = drawn_and_sent(page)
    assert drawn.shape == (256, 256)
    assert drawn.any(axis=1).sum() in (2, 3)  # one stroke, without the mark of the pen
    assert drawn.any(axis=0).sum() > 80
    page.keyboard.press(" ")
    page.get_by_text("The pen is up").wait_for()
    page.keyboard.press("Control+z")
    page.get_by_text("The canvas is empty").wait_for()
    reached = set()
    for _ in range(16):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.name"))
    assert {"undo", "clear", "width", "upload", "codes"} <= reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_is_accessible_and_fits(page, width, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 700})
    page.get_by_role("button", name="house").click()
    page.get_by_label("binary codes").check()
    page.get_by_text("of 3 bits differ").first.wait_for()
    check_accessible(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_role("button", name="Clear").click()
    page.get_by_text("The canvas is empty").wait_for()
    check_accessible(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_report_is_accessible_fits_and_asks_for_nothing(browser, run, width, scheme):  # noqa: F811
    about = [{"dataset": "sketchy", "variant": "both", "seed": 0}]
    report = write_report(run(8, ablation(), about, {"baseline": {}, "both": {}}))
    page = browser.new_page(viewport={"width": width, "height": 700}, color_scheme=scheme)
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(report.as_uri())
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 50)")
    assert complaints == []
    assert [url for url in asked if not re.match("data:", url)] == [report.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    check_accessible(page)
    shrunk = "[...document.images].map(i => i.getBoundingClientRect().width / i.naturalWidth)"
    assert min(page.evaluate(shrunk)) > 0.8  # letters of 8 pt are read on a phone too
    page.close()


def check_accessible(page):
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    assert [(one["id"], one["help"]) for one in found if one["impact"] in SERIOUS] == []
