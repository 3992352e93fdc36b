"""Files that others may have written: bounded, checked, one kind of error."""

import json
import os

import msgspec
import pytest

from gmm_guidance._runtime.schema import Count, read_json, read_toml


class Point(msgspec.Struct, forbid_unknown_fields=True):
    number: Count
    scale: float


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ('{"number": ' + "9" * 5000 + ', "scale": 1}', "no JSON"),
        ("[]", "Expected `object`, got `array`"),
        ('{"number": 1}', "missing required field `scale`"),
        ('{"number": 1, "scale": 1, "x": 1}', "unknown field `x`"),
        ('{"number": 0, "scale": 1}', "Expected `int` >= 1"),
        ('{"number": true, "scale": 1}', "Expected `int`, got `bool`"),
        ('{"number": 1, "scale": "1"}', r"Expected `float`, got `str` - at `\$.scale`"),
        ('{"number": ' + "9" * 400 + ', "scale": 1}', "Expected `int` <="),
        ('{"number": 1, "scale": ' + "9" * 400 + "}", "."),
        ("\xff", "no JSON"),
        (
            "version https://git-lfs.github.com/spec/v1\nsize 2700611775\n",
            "2.7 GB.*lfs",
        ),
        ("<!DOCTYPE html><title>Sign in", "a web page"),
    ],
    ids=range(14),
)
def test_what_does_not_fit_is_one_kind_of_error(tmp_path, text, what):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(
        ValueError, match=f"a.json is damaged or of another kind: .*{what}"
    ) as raised:
        read_json(path, Point)
    assert len(str(raised.value)) < 400


def test_a_byte_order_mark_is_no_damage(tmp_path):
    content = {"number": 2, "scale": 1.5}
    path = tmp_path / "a"
    path.write_text(json.dumps(content), encoding="utf-8-sig")
    assert read_json(path, Point) == Point(2, 1.5)
    path.write_text("number = 2\nscale = 1.5", encoding="utf-8-sig")
    assert read_toml(path, Point) == Point(2, 1.5)


def test_pipes_and_large_files_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a file"):
        read_json(tmp_path / "pipe", Point)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 34)
    with pytest.raises(ValueError, match="larger than 64 MB"):
        read_json(tmp_path / "large", Point)
