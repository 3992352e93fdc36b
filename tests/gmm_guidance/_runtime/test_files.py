"""Folders that appear whole or not at all."""

import os

import pytest

from gmm_guidance._runtime.files import atomic_folder


@pytest.mark.parametrize("there", [False, True], ids=["absent", "empty"])
def test_a_folder_appears_when_it_is_complete(tmp_path, there):
    place = tmp_path / "above" / "place"
    if there:
        place.mkdir(parents=True)
    mask = os.umask(0o027)
    try:
        with atomic_folder(place) as folder:
            (folder / "file").write_text("text")
            assert place.exists() == there and not list(place.glob("*"))
    finally:
        os.umask(mask)
    assert (place / "file").read_text() == "text"
    assert place.stat().st_mode & 0o777 == 0o750
    assert [p.name for p in place.parent.iterdir()] == ["place"]


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "place") as folder:
        (folder / "file").write_text("text")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_place_that_was_taken_meanwhile_is_kept(tmp_path):
    place = tmp_path / "place"
    with pytest.raises(OSError), atomic_folder(place) as folder:
        (folder / "file").write_text("ours")
        place.mkdir()
        (place / "file").write_text("theirs")
    assert (place / "file").read_text() == "theirs"
    assert [p.name for p in tmp_path.iterdir()] == ["place"]
