"""The report as a file: complete, self-contained, the same for the same results."""

import base64
import gzip
import json
import re
import shutil
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support import tiny_results

from toy_experiments import explorer
from toy_experiments.common.experiment import Config, Experiment
from toy_experiments.common.records import over_seeds
from toy_experiments.report import write_report
from toy_experiments.report.tables import verdict_class

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAA"
    "AABJRU5ErkJggg=="
)


def made_up(name: str) -> Experiment:
    def nothing(*_):
        raise AssertionError("a report computes and draws nothing")

    return Experiment(
        name,
        "paper",
        f"what {name} < others",
        Config,
        nothing,
        nothing,
        lambda metrics: [
            f"distance {metrics['tables']['rows'][0]['distance']['mean']:.2f}"
        ],
    )


MADE_UP = {name: made_up(name) for name in ("first", "second")}
RECORD = {
    "experiment": "first",
    "seeds": 3,
    "config": {"num_samples": 64, "networks": {"width": 32}, "scales": [1.0, 2.5]},
    "versions": {"gmm_guidance": "7.8.9", "jax": "0.10.2"},
    "tables": {
        "rows": [
            {"rule": "a", "scale": 2.5, "missing": None}
            | over_seeds([{"distance": v} for v in (0.125, 0.25, 0.4375)])
        ],
        "exact": [{"rule": "<b>", "first": 0.001, "last": 12345.678}],
    },
}
CLAIM = {
    "claim": "it is better <script>alert(1)</script>",
    "source": "Table 1",
    "regime": "well-trained",
    "effect": -0.1234567,
    "interval": [-0.2, -0.05],
    "verdict": "Does not hold",
    "evidence": "first",
}


@pytest.fixture
def out(tmp_path) -> Path:
    """Results of the first of two experiments."""
    folder = tmp_path / "results" / "first"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(RECORD))
    (folder / "figure.png").write_bytes(PIXEL)
    return tmp_path / "results"


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """A real experiment in miniature."""
    out = tmp_path_factory.mktemp("real")
    tiny_results.run_explorer(out, train=False)
    return out


class Page(HTMLParser):
    """Elements of a page with their attributes, and what style and scripts hold."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.raw: str | None = None
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("style", "script"):
            self.raw = ""

    def handle_data(self, data):
        if self.raw is not None:
            self.raw += data

    def handle_endtag(self, tag):
        if self.raw is not None:
            self.texts.append((tag, self.raw))
            self.raw = None

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def content(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


def report(*arguments: str) -> int:
    return tiny_results.main("report", *arguments)


def write(out: Path, page: Path | None = None) -> Path:
    return write_report(out, page, MADE_UP)


def check_self_contained(path: Path) -> None:
    page = Page(path)
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "poster", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, value)
        assert not any(name.startswith("on") for name in attributes)
    (style,) = page.content("style")
    assert "url(" not in style and "@import" not in style
    (policy,) = [m["content"] for m in page.all("meta") if "Content-Security" in str(m)]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules.pop("default-src") == "'none'" and rules.pop("img-src") == "data:"
    # Inline or nothing: no scheme, no host.
    assert {rules.pop(name) for name in ("form-action", "base-uri")} == {"'none'"}
    assert all(re.fullmatch(r"('unsafe-(inline|eval)' ?)+", r) for r in rules.values())
    targets = {attributes.get("id") for _, attributes in page.elements}
    assert all(
        a["href"][1:] in targets for a in page.all("a") if a["href"].startswith("#")
    )


def leaves(value):
    """Every number in a record, by a walk of its own."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from leaves(part)
    elif isinstance(value, float):
        yield value


def test_a_made_up_experiment(out):
    path = write(out)
    assert path == out / "report.html"
    check_self_contained(path)
    text = path.read_text()
    for wanted in (
        "gmm_guidance 7.8.9",
        "distance 0.27",
        "what first &lt; others",
        "<td>0.270833</td><td>0.0908</td>",
        "0.125, 0.25, 0.4375",
        "rows: rule a, scale 2.5, missing undefined<",
        "exact: rule &lt;b&gt;<",
        '<th scope="row">networks.width</th><td>32</td>',
        '<th scope="row">scales</th><td>1, 2.5</td>',
        "toy-experiments run second",
        "toy-experiments run explorer",
    ):
        assert wanted in text, wanted
    assert "<td>0.001</td>" in text and "<td>12345.7</td>" in text
    assert "toy-experiments claims" in text


@pytest.mark.ci
def test_every_number_and_figure_of_real_results(real):
    path = write_report(real, real / "page.html")
    check_self_contained(path)
    text = path.read_text()
    record = json.loads((real / "explorer" / "metrics.json").read_text())
    numbers = list(leaves(record))
    assert len(numbers) > 80
    assert not [v for v in numbers if f">{v:.6g}<" not in text.replace(", ", "<>")]
    for line in explorer.EXPERIMENT.summarize(record):
        assert line in unescape(text)
    (image,) = Page(path).all("img")
    embedded = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
    assert embedded == (real / "explorer" / "figure.png").read_bytes()
    assert len(image["alt"]) > 30
    assert "toy-experiments run distributions" in text


@pytest.mark.ci
def test_panels_hold_the_explorers_arrays(real):
    path = write_report(real, real / "page.html")
    scripts = Page(path).content("script")
    assert len(scripts) == 5 and "</" not in scripts[-1]
    held = re.findall(r'"type":"bytes","data":"([^"]+)"', scripts[-1])
    held = {gzip.decompress(base64.b64decode(text)) for text in held}
    data = tiny_results.explorer_data(real)
    rows = [data["line/points"], data["plane/points"]]
    for name in ("line", "plane"):
        for row in ("exact", "under", "well"):
            rows += [part for parts in data[f"{name}/{row}"] for part in parts]
    assert not [r for r in rows if r.astype("<f4").tobytes() not in held]


@pytest.mark.ci
def test_same_results_give_the_same_bytes(real, tmp_path):
    first = write_report(real, tmp_path / "a.html").read_bytes()
    shutil.copytree(real, tmp_path / "elsewhere")
    second = write_report(tmp_path / "elsewhere", None)
    assert second.read_bytes() == first


def test_claims(out):
    claims = [CLAIM, {**CLAIM, "verdict": "holds"}, {**CLAIM, "verdict": "undecided"}]
    claims += [{"claim": "bare", "interval": "[1, 2]", "evidence": "not run"}]
    (out / "claims.json").write_text(json.dumps(claims))
    text = write(out).read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text
    assert '<span class="verdict bad">Does not hold</span>' in text
    assert '<span class="verdict good">holds</span>' in text
    assert '<span class="verdict open">undecided</span>' in text
    assert "<td>-0.2 to -0.05</td>" in text and "<td>-0.123457</td>" in text
    assert text.count('<td><a href="#first">first</a></td>') == 3
    assert "<td>[1, 2]</td>" in text and "<td>not run</td>" in text
    assert "toy-experiments claims" not in text
    check_self_contained(out / "report.html")
    (out / "claims.json").write_text("[]")
    assert "is empty" in write(out).read_text()


def test_verdicts_are_matched_whole():
    classes = {"holds": "good", "Holds in a regime": "part", "does not hold": "bad"}
    classes |= {"undecided": "open", "not testable here": "open", "": "open"}
    assert {text: verdict_class(text) for text in classes} == classes


@pytest.mark.ci
def test_the_command_prints_the_path(real, tmp_path, capsys):
    page = tmp_path / "new" / "page.html"
    assert report("--out", str(real), "--page", str(page)) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1] == str(page)
    assert page.read_text().startswith("<!doctype html>")
    assert not list(tmp_path.rglob(".partial-*"))


def test_nothing_to_report(tmp_path, capsys):
    assert report("--out", str(tmp_path / "no")) == 2
    assert "there is no results folder" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    assert report("--out", str(tmp_path)) == 2
    assert "no experiment has results" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name, content",
    [
        ("explorer/metrics.json", b'{"experiment": "sco'),
        ("explorer/metrics.json", b"[1, 2]"),
        ("explorer/metrics.json", b'{"config": {}, "versions": {}}'),
        ("explorer/metrics.json", b"\xff\xfe"),
        ("explorer/figure.png", PIXEL[:40]),
        ("explorer/data.npz", None),
        ("explorer/data.npz", b""),
        ("explorer/data.npz", b"PK\x03\x04 half"),
        ("claims.json", b'[{"claim": '),
        ("claims.json", b'{"claim": 1}'),
    ],
)
def test_damaged_files_are_named_and_nothing_is_written(
    name, content, real, tmp_path, capsys
):
    out = tmp_path / "copy"
    shutil.copytree(real, out, ignore=shutil.ignore_patterns("cells"))
    page = out / "report.html"
    page.write_text("the last good one")
    (out / name).unlink(missing_ok=True)
    if content is not None:
        (out / name).write_bytes(content)
    assert report("--out", str(out)) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert str(out / name) in message and "Traceback" not in message
    assert page.read_text() == "the last good one"
    assert not list(out.rglob(".partial-*"))


def test_the_page_must_be_a_file(out):
    with pytest.raises(ValueError, match="is a folder; name a file with --page"):
        write(out, out)


def test_unknown_options_are_errors(out, capsys):
    assert report("--out", str(out), "--pages", "x") == 2
    assert not list(out.glob("*.html"))


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": "<meta http-equiv=refresh>"},
        {"versions": ["x"]},
        {"versions": {"jax": {}}},
        {"tables": {"rows": [1]}},
        {"config": {"std": "<b>", "guidance": {"cfg_scale": [], "s2_scale": 0.2}}},
        {"config": None},
    ],
)
def test_records_of_other_types_are_refused(real, tmp_path, capsys, change):
    out = tmp_path / "copy"
    shutil.copytree(real, out, ignore=shutil.ignore_patterns("cells"))
    path = out / "explorer" / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert report("--out", str(out)) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "run it again" in message and "Traceback" not in message
    assert not (out / "report.html").exists()
