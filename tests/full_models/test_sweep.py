"""Grids of settings in a file."""

import pytest

from full_models.commands.sweep import read_grid

GRID = 'num = 4\n[[rules]]\nname = "a"\ncfg_scale = [1, 2.5]\nwindow = [0.0, 1.0]\n'


def test_a_grid_takes_all_combinations(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(GRID + "s2_scale = [0.1, 0.2]\n")
    fields = {"num": 1, "cfg_scale": 1.0, "s2_scale": 0.0, "window": (0.0, 1.0)}
    cells = read_grid(path, fields)
    assert [c.name for c in cells] == [
        f"a_cfg_scale-{c}_s2_scale-{s}" for c in ("1", "2.5") for s in (0.1, 0.2)
    ]
    first = {"num": 4, "cfg_scale": 1.0, "window": (0.0, 1.0), "s2_scale": 0.1}
    assert cells[0].options == first and type(cells[0].options["cfg_scale"]) is float
    path.write_text(GRID.replace("[0.0, 1.0]", "[[0.0, 1.0], [0.1, 0.9]]"))
    names = [c.name for c in read_grid(path, fields)]
    assert len(names) == 4 and names[1] == "a_cfg_scale-1_window-0.1-0.9"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num = ", "must be TOML"),
        ("num = 4", r"at least one table \[\[rules\]\]"),
        ("[[rules]]\nnum = 1", "needs a name"),
        ('[[rules]]\nname = "a/b"', "needs a name"),
        ('[[rules]]\nname = "a"\nnumber = 3', "unknown options number; there are"),
        (
            '[[rules]]\nname = "a"\nnum = "3"',
            "num must be of the type of 1.*got '3'",
        ),
        ('[[rules]]\nname = "a"\nnum = true', "num must be of the type of 1.*got True"),
        ('[[rules]]\nname = "a"\nnum = []', "num must be of the type of 1, or a list"),
        ('[[rules]]\nname = "a"\nwindow = [1.0]', "window must be of the type"),
        ("rules = [3]", "damaged or of another kind: Expected `object`, got `int`"),
        ("x = " + "[" * 5000 + "]" * 5000, "must be TOML"),
        ("num = " + "9" * 400 + '\n[[rules]]\nname = "a"', "must be of the type of 1"),
        (
            f'num = {[*range(20_000)]}\n[[rules]]\nname = "a"',
            "has 20000 settings, more than 10000",
        ),
        (f'[[rules]]\nname = "{"a" * 300}"', "at most 240 bytes"),
        ('[[rules]]\nname = "a"\n[[rules]]\nname = "a"', "more than once"),
    ],
)
def test_grids_that_cannot_be(tmp_path, text, message):
    path = tmp_path / "grid.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_grid(path, {"num": 1, "window": (0.0, 1.0)})
