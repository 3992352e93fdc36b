"""``compare``: a table of rules, networks, exact denoisers and true samples."""

import re

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest

import gmm_guidance as gg
from gmm_guidance._runtime.tables import with_error

MIXTURE = gg.presets.two_modes()
SCHEDULE = gg.CustomSchedule((80.0,))  # one step, to the denoised value
pytestmark = pytest.mark.filterwarnings("ignore:the last noise level before 0 is 80")


class Shifted:
    """The exact denoiser with its output moved: a network of known error."""

    def __init__(self, by):
        self.by = by

    def __call__(self, x, sigma, label):
        return MIXTURE.denoise(x, sigma, label) + self.by


@pytest.fixture(scope="module")
def table():
    rules = {"none": gg.Unguided(), "CFG_3": gg.CFG(3.0)}
    networks = {"moved": [Shifted(by) for by in (0.5, 1.0, 1.5)]}
    return gg.compare(
        networks,
        rules,
        MIXTURE,
        1,
        jax.random.key(0),
        num_samples=400,
        schedule=SCHEDULE,
        solver="euler",
    )


def test_values_are_those_of_the_parts(table):
    """Shifts of 0.5, 1 and 1.5 have the mean 1 and the standard error 0.29."""
    exact, moved = (
        next(r for r in table.rows if (r.denoisers, r.rule) == (name, "none"))
        for name in ("exact", "moved")
    )
    assert exact.values["class_shift"].shape == (1,) and np.isnan(
        exact.estimate("w2")[1]
    )
    std = float(np.sqrt(MIXTURE.variances[1, 0]))
    shift = moved.values["class_shift"] - exact.values["class_shift"]
    np.testing.assert_allclose(shift * std, [0.5, 1.0, 1.5], rtol=0.02)
    mean, error = moved.estimate("class_shift")
    np.testing.assert_allclose(error * std, 0.5 / np.sqrt(3), rtol=0.02)
    assert [r.passes for r in table.rows] == [1.0, 2.0, 1.0, 2.0]
    # Denoised values are near the mean, so that their distance is the width.
    np.testing.assert_allclose(exact.values["w2"], std, rtol=0.1)
    assert table.floor["w2"]["mean"] < 0.2 * std


def test_tables_hold_every_row_and_column(table):
    text = table.to_markdown(("w2", "class_shift"))
    lines = text.splitlines()
    assert len(lines) == 7 and all(line.count("|") == 6 for line in lines)
    assert str(table).startswith("| denoiser | rule | passes | w2 |")
    cell = lines[-2].split("|")[5].strip()
    mean, error = table.rows[2].estimate("class_shift")
    assert re.fullmatch(r"\d+\.\d+ ± \d\.\d+", cell)
    np.testing.assert_allclose(float(cell.split()[0]), mean, atol=error / 20)
    latex = table.to_latex(("w2",))
    assert r"CFG\_3" in latex and r"$\pm$" in latex and latex.count(r"\\") == 6
    with pytest.raises(ValueError, match="metric must be one of"):
        table.to_markdown(("fid",))


def test_the_figure_shows_every_row(table):
    figure, ax = table.plot("w2")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["none", "CFG_3"]
    drawn = sorted(
        float(x) for line in ax.containers for x in np.ravel(line[0].get_xdata())
    )
    wanted = sorted(row.estimate("w2")[0] for row in table.rows)
    np.testing.assert_allclose(drawn, wanted)
    plt.close(figure)


def test_numbers_have_two_digits_of_their_error():
    assert with_error(0.1234, 0.0123) == "0.123 ± 0.012"
    assert with_error(123.4, 23.0) == "123 ± 23"
    assert with_error(0.12345) == "0.123" and with_error(float("nan")) == "–"


@pytest.mark.parametrize(
    "denoisers, rules, message",
    [
        ([], {"none": gg.Unguided()}, "at least one, got none"),
        ([Shifted(0.0)], {}, "dictionary of at least one rule"),
        ([Shifted(0.0)], gg.CFG(2.0), "dictionary of at least one rule"),
    ],
)
def test_bad_comparisons(denoisers, rules, message):
    with pytest.raises(ValueError, match=message):
        gg.compare(denoisers, rules, MIXTURE, 1, jax.random.key(0), schedule=SCHEDULE)
