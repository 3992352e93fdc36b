import ast
import importlib.util
import re
import runpy
from pathlib import Path

import jax
import pytest

pytestmark = pytest.mark.ci
ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
NEEDS = {"own_equinox_denoiser": "equinox"}


@pytest.fixture(autouse=True)
def as_a_user_has_it():
    """Examples run under JAX's own settings, not the strict ones of the tests."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def run(path: Path, capsys) -> str:
    runpy.run_path(str(path), run_name="__main__")
    return capsys.readouterr().out


def numbers(text: str) -> list[float]:
    return [
        float(n) for n in re.findall(r"(?<![\w.])[+-]?\d+(?:\.\d+)?(?:e[+-]\d+)?", text)
    ]


def test_examples_are_found():
    names = {path.stem for path in EXAMPLES}
    assert {"quickstart", "own_denoiser", "own_rule", "sweep", "train_and_s2"} <= names


# The others train or compile for long: they run in the slow lane, and in CI.
EVERYDAY = {"quickstart", "own_rule", "own_denoiser"}


@pytest.mark.parametrize(
    "path",
    [
        p if p.stem in EVERYDAY else pytest.param(p, marks=pytest.mark.ci)
        for p in EXAMPLES
    ],
    ids=lambda p: p.stem,
)
def test_example_runs_and_prints_finite_numbers(path, capsys):
    if needed := NEEDS.get(path.stem):
        pytest.importorskip(needed)
    output = run(path, capsys)
    assert numbers(output), f"{path.name} prints no number"
    assert not re.search(r"\b(nan|inf)\b", output, re.IGNORECASE), output


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example_is_short_and_says_what_it_is(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 40
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring and len(docstring.splitlines()) == 1


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example_can_be_imported_without_running(path, capsys):
    if needed := NEEDS.get(path.stem):
        pytest.importorskip(needed)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert callable(module.main)
    assert capsys.readouterr().out == ""


# What the examples are for, in numbers: a broken library must not pass as a demo.


def test_large_draw_agrees_to_rounding(capsys):
    batch, first = numbers(run(FOLDER / "large_draw.py", capsys))
    assert batch < 1e-4 and first < 1e-4


def test_flow_network_agrees_with_the_exact_denoiser(capsys):
    flow, exact = run(FOLDER / "flow_network.py", capsys).splitlines()
    assert numbers(flow) == pytest.approx(numbers(exact), abs=2e-3)


def test_sweep_traces_once_and_starts_unguided(capsys):
    lines = run(FOLDER / "sweep.py", capsys).splitlines()
    assert len(lines) == 21 and lines[-1] == "traced 1 time"
    scale, shift, width, distance = numbers(lines[0].replace("W2", ""))
    assert (scale, distance) == (1.0, pytest.approx(0.055, abs=0.01))
    assert shift == pytest.approx(-0.051, abs=0.01)  # the finite sigma_max
    assert width == pytest.approx(1.011, abs=0.01)


def test_s2_repairs_the_halving_stack(capsys):
    lines = run(FOLDER / "own_block_stack.py", capsys).splitlines()
    distances = [numbers(line)[-1] for line in lines]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.1 and distances[-1] < 1e-4


def test_quickstart_shows_cfg_shift_and_narrowing(capsys):
    lines = run(FOLDER / "quickstart.py", capsys).splitlines()
    mean, std = numbers(next(x for x in lines if x.startswith("CFG(2)"))[9:])[:2]
    # The quantile map gives 4.5786 and 0.7071; here are 4,000 samples.
    assert mean == pytest.approx(4.5786, abs=0.05)
    assert std == pytest.approx(0.7071, abs=0.03)
