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
PANELS = {
    "score": ("level", "scale", "omega"),
    "density": ("scale", "omega"),
    "field": ("level", "scale", "omega"),
}
TITLES = {"level": "noise level σ", "scale": "CFG scale λ", "omega": "S² scale ω"}
pytestmark = pytest.mark.ci  # a minute
SLIDERS = [(panel, slider) for panel, names in PANELS.items() for slider in names]


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


@pytest.fixture(scope="module")
def opened(browser, out):
    """The page at desktop width, and what went wrong while it loaded and was used."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    problems: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda request: problems.append(request.url))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((out / "report.html").as_uri())
    yield page, problems, requests
    page.close()


@pytest.fixture
def page(opened):
    """The open page, with all controls where they were at first."""
    page, problems, _ = opened
    page.evaluate("""() => {
        for (const [name, panel] of Object.entries(panels))
            panel.set({row: "under", scale: 2, omega: 0.25, level: 1, show: "score"});
    }""")
    yield page
    assert problems == []  # whatever the test did


def drawing(page, panel: str) -> str:
    return page.locator(f"#panel-{panel} svg").first.evaluate("svg => svg.outerHTML")


def drawn(page, panel: str, name: str) -> np.ndarray:
    return np.array(page.evaluate(f"panels.{panel}.drawn.{name}"), float)


def set_controls(page, panel: str, **values) -> None:
    page.evaluate(f"values => panels.{panel}.set(values)", values)


def test_loads_alone_and_without_errors(opened, out):
    page, problems, requests = opened
    assert problems == []
    outside = [url for url in requests if not url.startswith("data:")]
    assert outside == [(out / "report.html").as_uri()]
    loaded = "[...document.images].every(i => i.complete && i.naturalWidth > 0)"
    assert page.evaluate(loaded)


@pytest.mark.parametrize("panel, slider", SLIDERS)
def test_a_slider_moves_the_panel_by_the_keyboard(page, panel, slider):
    control = page.locator(f"#panel-{panel}").get_by_label(TITLES[slider])
    shown = page.locator(f"#{panel}-{slider}-value")
    before, value, picture = (
        drawing(page, panel),
        shown.inner_text(),
        page.locator(f"#panel-{panel} .plot").screenshot(),
    )
    control.focus()
    # One step of a scale may be less than a pixel.
    for _ in range(1 if slider == "level" else 40):
        control.press("ArrowRight")
    assert drawing(page, panel) != before
    assert page.locator(f"#panel-{panel} .plot").screenshot() != picture
    assert shown.inner_text() != value
    assert control.get_attribute("aria-valuetext") == shown.inner_text()


@pytest.mark.parametrize("panel", PANELS)
def test_with_the_exact_denoiser_omega_changes_nothing(page, panel):
    set_controls(page, panel, row="exact", scale=3, omega=0)
    before = drawing(page, panel)
    set_controls(page, panel, omega=1)
    assert drawing(page, panel) == before
    set_controls(page, panel, row="well")
    trained = drawing(page, panel)
    assert trained != before
    set_controls(page, panel, omega=0)
    assert drawing(page, panel) != trained


def curve(page, panel: str, kind: str) -> np.ndarray:
    """The vertices of a curve, read off its picture in units of the axes."""
    return np.array(
        page.evaluate(
            """([panel, kind]) => {
                const svg = document.querySelector(`#panel-${panel} svg`);
                const path = svg.querySelector(`path.curve.${kind}`);
                const spots = path.getAttribute("d").slice(1).split("L");
                // Two labelled ticks of each axis give its scale.
                const axis = (pick, at) => {
                    const ticks = [...svg.querySelectorAll("text")].filter(pick);
                    const number = t => Number(t.textContent.replace("−", "-"));
                    const [a, b] = [ticks[0], ticks[ticks.length - 1]];
                    const [p, q] = [at(a), at(b)];
                    const unit = (number(b) - number(a)) / (q - p);
                    return v => number(a) + (v - p) * unit;
                };
                const is = t => t.textContent.match(/^[−\\d.]+$/);
                const across = t => is(t) && t.getAttribute("text-anchor") === "middle";
                const up = t => is(t) && t.getAttribute("text-anchor") === "end";
                const x = axis(across, t => Number(t.getAttribute("x")));
                const y = axis(up, t => Number(t.getAttribute("y")) - 4);
                return spots.map(s => s.split(",").map(Number))
                    .map(([a, b]) => [x(a), y(b)]);
            }""",
            [panel, kind],
        )
    )


@pytest.mark.parametrize("row, scale, omega", [("under", 3.7, 0.6), ("well", 1.0, 1.0)])
def test_the_drawn_score_is_the_computed_one(page, data, row, scale, omega):
    set_controls(page, "score", row=row, level=2, scale=scale, omega=omega)
    wanted = explorer.guided_field(data, "line", row, 2, scale, omega)[:, 0]
    np.testing.assert_allclose(drawn(page, "score", "s2"), wanted, atol=1e-6, rtol=1e-5)
    truth = explorer.guided_field(data, "line", "exact", 2, 1.0, 0.0)[:, 0]
    np.testing.assert_allclose(
        drawn(page, "score", "truth"), truth, atol=1e-6, rtol=1e-5
    )
    spots = curve(page, "score", "s2")
    size = np.ptp(spots[:, 1])
    np.testing.assert_allclose(spots[:, 0], data["line/points"][:, 0], atol=0.01)
    np.testing.assert_allclose(spots[:, 1], wanted, atol=0.002 * size)


@pytest.mark.parametrize("scale, omega", [(4.0, 0.5), (2.6, 0.35)])
def test_the_drawn_density_is_the_computed_one(page, data, scale, omega):
    set_controls(page, "density", row="well", scale=scale, omega=omega)
    quantiles = explorer.output_quantiles(data, "well", scale, omega)
    bins = explorer.density_bins(data).astype(np.float32).astype(float)
    wanted = explorer.binned_density(quantiles, bins)
    np.testing.assert_allclose(drawn(page, "density", "s2"), wanted, atol=1e-6)
    spots = curve(page, "density", "s2")[1:-1:2]  # left ends of the steps
    np.testing.assert_allclose(spots[:, 1], wanted, atol=0.004 * wanted.max())
    reading = page.locator("#panel-density .reading").inner_text()
    w2 = np.sqrt(np.mean((quantiles - data["outputs/truth"]) ** 2))
    assert f"W2 to the truth {w2:.3f}" in reading


@pytest.mark.parametrize("show", ["score", "departure"])
def test_the_drawn_field_is_the_computed_one(page, data, show):
    set_controls(page, "field", row="under", level=1, scale=4.3, omega=0.8, show=show)
    wanted = explorer.guided_field(data, "plane", "under", 1, 4.3, 0.8)
    if show == "departure":
        wanted = wanted - explorer.guided_field(data, "plane", "exact", 1, 1.0, 0.0)
    got = drawn(page, "field", "arrows").reshape(-1, 2)
    np.testing.assert_allclose(got, wanted, atol=1e-5, rtol=1e-5)
    paths = page.locator("#panel-field path.arrows")
    assert paths.count() == (2 if show == "score" else 1)
    # The arrow at the upper left corner points as its field does (y is downwards).
    start, end = (
        np.array(spot.split(","), float)
        for spot in paths.last.get_attribute("d").split("M")[-2].split("L")
    )
    field = got[-1]
    along = (end - start) * [1, -1]
    cosine = along @ field / np.linalg.norm(along) / np.linalg.norm(field)
    assert cosine > 0.98


def test_departures_are_those_of_the_fields(page, data):
    set_controls(page, "score", row="under", level=2, scale=3, omega=0.5)
    x = data["line/points"][:, 0].astype(float)
    sigma = float(data["line/sigmas"][2])
    weight = np.exp(-0.5 * (x - 4.0) ** 2 / (1.0 + sigma**2))
    truth = explorer.guided_field(data, "line", "exact", 2, 1.0, 0.0)[:, 0]
    s2 = explorer.guided_field(data, "line", "under", 2, 3.0, 0.5)[:, 0]
    wanted = np.sqrt(weight @ (s2 - truth) ** 2 / weight.sum())
    assert f"S² {wanted:.3f}." in page.locator("#panel-score .reading").inner_text()


def test_tables_open_on_paper_and_close_again(page, out):
    table = page.locator("#explorer table.numbers").first
    assert not table.is_visible()
    page.emulate_media(media="print")
    # The page's script opens them, not only the style sheet.
    playwright.expect(page.locator("details:not([open])")).to_have_count(0)
    assert table.is_visible()
    assert not page.locator("nav").is_visible()
    # The panels stay as they are, their sliders become numbers.
    assert page.locator("#panel-score svg").first.is_visible()
    assert page.locator("#score-scale-value").is_visible()
    assert not page.locator("#score-scale").is_visible()
    page.emulate_media(media="screen")
    playwright.expect(table).to_be_hidden()


def test_printing(page, out):
    before = drawing(page, "field")
    paper = page.pdf(path=out / "report.pdf", format="A4")
    assert paper[:5] == b"%PDF-" and len(paper) > 50_000
    assert drawing(page, "field") == before
    playwright.expect(page.locator("#explorer table.numbers").first).to_be_hidden()


def test_full_size_and_back(page):
    button = page.locator("#explorer .enlarge")
    image = page.locator("#explorer figure img")
    page.set_viewport_size({"width": 700, "height": 800})
    narrow = image.bounding_box()["width"]
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    assert image.bounding_box()["width"] > 2 * narrow
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    button.press("Enter")
    assert image.bounding_box()["width"] == narrow
    page.set_viewport_size({"width": 1200, "height": 900})


@pytest.mark.parametrize("width", [320, 360, 768])
def test_fits_narrow_screens(browser, out, width):
    page = browser.new_page(viewport={"width": width, "height": 740})
    page.goto((out / "report.html").as_uri())
    fits = "document.documentElement.scrollWidth <= innerWidth"
    assert page.evaluate(fits)
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    assert page.evaluate(fits)
    # The wide table scrolls by itself, and drawings keep the size of their type.
    assert page.evaluate("""() => {
        const box = document.querySelector("table.claims").parentElement;
        return box.scrollWidth > box.clientWidth;
    }""") == (width < 800)
    scales = page.evaluate("""() => [...document.querySelectorAll(".plot > svg")].map(
        svg => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width)""")
    assert len(scales) == 3 and min(scales) > 0.95
    page.close()


def test_dark_and_light(browser, out):
    shades = []
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto((out / "report.html").as_uri())
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        shades.append(sum(int(v) for v in colour[4:-1].split(",")))
        page.close()
    assert shades[0] == 3 * 255 and shades[1] < 120
