import ast
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


def numbers(text: str) -> list[float]:
    return [
        float(n) for n in re.findall(r"(?<![\w.])[+-]?\d+(?:\.\d+)?(?:e[+-]\d+)?", text)
    ]


def test_examples_are_found():
    names = {path.stem for path in EXAMPLES}
    assert {"own_denoiser", "own_rule", "train_and_s2"} | set(CHECKS) <= names


# What some examples are for, in numbers: a broken library must not pass as a demo.


def large_draw_agrees_to_rounding(output):
    batch, first = numbers(output)
    assert batch < 1e-4 and first < 1e-4


def flow_network_agrees_with_the_exact_denoiser(output):
    flow, exact = output.splitlines()
    assert numbers(flow) == pytest.approx(numbers(exact), abs=2e-3)


def sweep_traces_once_and_starts_unguided(output):
    lines = output.splitlines()
    assert len(lines) == 21 and lines[-1] == "traced 1 time"
    scale, shift, width, distance = numbers(lines[0].replace("W2", ""))
    assert (scale, distance) == (1.0, pytest.approx(0.052, abs=0.005))
    assert shift == pytest.approx(-0.049, abs=0.005)  # the finite sigma_max
    assert width == pytest.approx(1.001, abs=0.005)


def s2_repairs_the_halving_stack(output):
    distances = [numbers(line)[-1] for line in output.splitlines()]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.1 and distances[-1] < 1e-4


def quickstart_shows_cfg_shift_and_narrowing(output):
    line = next(x for x in output.splitlines() if x.startswith("CFG(2)"))
    mean, std = numbers(line[9:])[:2]
    # The quantile map gives 4.5786 and 0.7071; here are 4,000 samples.
    assert mean == pytest.approx(4.5786, abs=0.05)
    assert std == pytest.approx(0.7071, abs=0.03)


CHECKS = {
    "large_draw": large_draw_agrees_to_rounding,
    "flow_network": flow_network_agrees_with_the_exact_denoiser,
    "sweep": sweep_traces_once_and_starts_unguided,
    "own_block_stack": s2_repairs_the_halving_stack,
    "quickstart": quickstart_shows_cfg_shift_and_narrowing,
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_is_short_runs_and_prints_finite_numbers(path, capsys):
    text = path.read_text()
    assert len(text.splitlines()) <= 40
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring and len(docstring.splitlines()) == 1
    if needed := NEEDS.get(path.stem):
        pytest.importorskip(needed)
    namespace = runpy.run_path(str(path))  # imported, it prints nothing
    assert capsys.readouterr().out == ""
    namespace["main"]()
    output = capsys.readouterr().out
    assert numbers(output), f"{path.name} prints no number"
    assert not re.search(r"\b(nan|inf)\b", output, re.IGNORECASE), output
    CHECKS.get(path.stem, lambda _: None)(output)
