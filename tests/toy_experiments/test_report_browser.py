"""The report in a real browser: the panels answer, print and fit on a phone."""

import json
import os
import shutil

import numpy as np
import pytest
from support import tiny_results

from toy_experiments import explorer
from toy_experiments.report import write_report

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed (the browser extra)"
)
NAMES = ("chromium", "chromium-browser", "google-chrome")
FOUND = filter(None, map(shutil.which, NAMES))
BINARY = os.environ.get("CHROMIUM") or next(FOUND, None)
if BINARY is None:
    pytest.skip(
        f"no browser: none of {', '.join(NAMES)} on the path, and CHROMIUM is not set",
        allow_module_level=True,
    )
pytestmark = pytest.mark.ci
FITS = "document.documentElement.scrollWidth <= innerWidth"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    tiny_results.run_explorer(out, train=False)
    claim = {
        "claim": "S² is nearer to the truth than CFG in every regime",
        "source": "Fig. 3",
        "regime": "under-trained",
        "effect": 0.1,
        "interval": [0.05, 0.15],
        "verdict": "does not hold",
        "evidence": "explorer",
    }
    (out / "claims.json").write_text(json.dumps([claim]))
    write_report(out)
    return out


def marked(value, text):
    """JSON with markup in place of every text and undefined number."""
    if isinstance(value, dict):
        return {k: marked(v, text) for k, v in value.items()}
    if isinstance(value, list):
        return [marked(v, text) for v in value]
    return text if isinstance(value, str) or value is None else value


@pytest.mark.parametrize(
    "text",
    [
        "<script>document.title = 'taken'</script>",
        "</script><script>document.title = 'taken'</script>",
        "<img src=x onerror=\"document.title = 'taken'\">",
        '<meta http-equiv=refresh content="0;url=http://evil.example/">',
        "<form action=http://evil.example/><input type=submit></form>",
        "<base href=http://evil.example/><a href=x>",
        "'\"--><svg onload=\"document.title = 'taken'\">",
    ],
)
def test_markup_in_every_field_is_shown_as_text(browser, out, tmp_path, text):
    """In all values, and in all keys that the page does not look up itself."""
    made = tmp_path / "results"
    shutil.copytree(out, made, ignore=shutil.ignore_patterns("cells"))
    path = made / "explorer" / "metrics.json"
    record = json.loads(path.read_text())
    record["versions"] = marked(record["versions"], text)
    for table, rows in record["tables"].items():
        record["tables"][table] = [*rows, {text: text} | marked(rows[0], text)]
    record["tables"][text] = [{text: text, f"{text} ": 1.5}]
    record["config"][text] = {text: [text, {text: text}]}
    record["experiment"] = record["date"] = text
    path.write_text(json.dumps(record))
    claims = json.loads((made / "claims.json").read_text())
    claims.append({key: text for key in claims[0]})
    (made / "claims.json").write_text(json.dumps(claims))
    (made / "explorer" / "figure.png").rename(
        made / "explorer" / f"{text.replace('/', '|')}.png"
    )
    page = browser.new_page()
    seen: list[str] = []
    page.on("request", lambda request: seen.append(request.url))
    url = write_report(made).as_uri()
    page.goto(url)
    page.locator("#field-plot canvas").first.wait_for()
    page.wait_for_timeout(100)  # for a refresh
    assert page.title() == "Guidance on Gaussian mixtures: results"
    assert page.url == url
    assert [u for u in seen if not u.startswith("data:")] == [url]
    assert text in page.locator("#claims").inner_text()
    assert text in page.locator("#explorer").evaluate("e => e.textContent")
    strange = "form, base, svg[onload], img[onerror], meta[http-equiv=refresh]"
    assert page.locator(strange).count() == 0
    page.close()


def test_the_policy_of_the_page_lets_no_form_or_base_through(browser, out, tmp_path):
    """Were markup ever shown unescaped, forms would not be sent."""
    text = (out / "report.html").read_text()
    form = "<form id=f action=http://evil.example/></form><base href=http://evil.ex/>"
    path = tmp_path / "report.html"
    path.write_text(text.replace("<main>", f"<main>{form}"))
    page = browser.new_page()
    page.goto(path.as_uri())
    page.evaluate("document.getElementById('f').submit()")
    page.wait_for_timeout(100)
    assert page.url == page.evaluate("document.baseURI") == path.as_uri()
    page.close()


@pytest.fixture(scope="module")
def data(out):
    return tiny_results.explorer_data(out)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=BINARY, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture(params=[1200, 360], ids=["desktop", "phone"])
def page(browser, out, request):
    """The page, which must not log anything or ask for anything but itself."""
    page = browser.new_page(viewport={"width": request.param, "height": 800})
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url))
    url = (out / "report.html").as_uri()
    page.goto(url)
    page.locator("#field-plot canvas").first.wait_for()
    yield page
    loaded = [p for p in problems if not p.startswith(("data:", "[bokeh"))]
    assert loaded == [url]
    page.close()


def model(page, name: str, what: str, argument=None):
    return page.evaluate(
        "([name, argument]) => { const model = "
        f"Bokeh.documents[0].get_model_by_name(name); return {what}; }}",
        [name, argument],
    )


def set_controls(page, panel: str, **values) -> None:
    for name, value in values.items():
        model(page, f"{panel}-{name}", "model.value = argument", value)


def drawn(page, panel: str, name: str) -> np.ndarray:
    return np.array(
        model(page, f"{panel}-curves", "Array.from(model.data[argument])", name)
    )


def test_what_is_shown_at_first_and_at_every_width(page):
    # A trained network: CFG and S² differ, and nobody has touched anything yet.
    for panel in ("score", "density"):
        assert (drawn(page, panel, "s2") != drawn(page, panel, "cfg")).any()
        assert drawn(page, panel, "truth").max() > 0
    assert page.evaluate(FITS)
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    assert page.evaluate(FITS)
    for panel in ("score", "density", "field"):
        box = page.locator(f"#{panel}-plot").bounding_box()
        assert box["width"] > 250 and box["height"] > 200
    # With the exact denoiser omega changes nothing.
    set_controls(page, "score", row="exact", scale=3.0, omega=1.0)
    np.testing.assert_array_equal(
        drawn(page, "score", "s2"), drawn(page, "score", "cfg")
    )


def test_panels_draw_what_was_computed(page, data):
    set_controls(page, "score", row="under", level=2, scale=3.7, omega=0.6)
    field = explorer.guided_field(data, "line", "under", 2, 3.7, 0.6)[:, 0]
    truth = explorer.guided_field(data, "line", "exact", 2, 1.0, 0.0)[:, 0]
    np.testing.assert_allclose(drawn(page, "score", "s2"), field, atol=1e-6, rtol=1e-5)
    x, sigma = data["line/points"][:, 0], data["line/sigmas"][2]
    weight = np.exp(-0.5 * (x - 4.0) ** 2 / (1.0 + sigma**2))
    gap = np.sqrt(weight @ (field - truth) ** 2 / weight.sum())
    assert f"S² {gap:.3f}." in page.locator("#score-reading").inner_text()

    # The sliders of outputs stop at the computed ones: scale 4, omega 0.5.
    set_controls(page, "density", row="well", scale=2, omega=1)
    quantiles = data["outputs/well"][2, 1].astype(float)
    bins = explorer.density_bins(data)
    density = explorer.binned_density(quantiles, bins)
    np.testing.assert_allclose(drawn(page, "density", "s2"), density, atol=1e-6)
    w2 = np.sqrt(np.mean((quantiles - data["outputs/truth"]) ** 2))
    reading = page.locator("#density-reading").inner_text()
    assert f"W2 to the truth {w2:.3f}" in reading.split("S²:")[1]
    titles = page.locator("#density-controls .bk-slider-title").all_inner_texts()
    assert titles == ["CFG scale λ: 4", "S² scale ω: 0.5"]

    set_controls(page, "field", row="under", level=1, scale=4.3, omega=0.8)
    field = explorer.guided_field(data, "plane", "under", 1, 4.3, 0.8)
    for show in ("score", "departure"):
        set_controls(page, "field", show=show)
        if show == "departure":
            field -= explorer.guided_field(data, "plane", "exact", 1, 1.0, 0.0)
        xs, ys = (
            np.array(model(page, "field-s2", f"model.data.{c}")) for c in ("xs", "ys")
        )
        tails = np.stack([xs[:, 0], ys[:, 0]], axis=-1)
        arrows = np.stack([xs[:, 1], ys[:, 1]], axis=-1) - tails
        wide = page.viewport_size["width"] > 600
        points, every = data["plane/points"], 1 if wide else 2
        at = np.arange(len(points)).reshape(9, 9)[::every, ::every].reshape(-1)
        np.testing.assert_allclose(tails, points[at], rtol=1e-6)
        # Directions are the field's, squared lengths in proportion to its lengths.
        length = np.linalg.norm(arrows, axis=-1, keepdims=True)
        shown = arrows * length
        ratio = shown[0, 0] / field[at][0, 0]
        assert ratio > 0
        np.testing.assert_allclose(shown, ratio * field[at], rtol=1e-4, atol=1e-6)


def test_a_slider_answers_the_keyboard_and_tables_open_on_paper(page):
    reading, picture = page.locator("#score-reading"), page.locator("#score-plot")
    before = reading.inner_text(), picture.screenshot()
    handle = page.locator("#score-controls [role=slider]").nth(1)
    title = page.locator("#score-controls .bk-slider-title").nth(1)
    assert title.inner_text() == "CFG scale λ: 2"
    handle.focus()
    for _ in range(10):
        handle.press("ArrowRight")
    playwright.expect(reading).not_to_have_text(before[0])
    assert title.inner_text() == "CFG scale λ: 3"
    assert picture.screenshot() != before[1]

    table = page.locator("#explorer table.numbers").first
    assert not table.is_visible()
    page.emulate_media(media="print")
    assert table.is_visible() and not page.locator("nav").is_visible()
    assert page.locator("#score-plot canvas").first.is_visible()
    page.emulate_media(media="screen")
    assert not table.is_visible()
