"""Folders that appear whole or not at all."""

import os

import pytest

from gmm_guidance._runtime.files import atomic_folder, locked_folder


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


@pytest.mark.parametrize("link", ["symbolic", "dangling", "hard", "pipe"])
def test_a_lock_file_that_leads_elsewhere_is_left_alone(tmp_path, link):
    victim, lock = tmp_path / "victim", tmp_path / "set" / ".lock"
    lock.parent.mkdir()
    victim.write_text("precious")
    if link == "hard":
        os.link(victim, lock)
    elif link == "pipe":
        os.mkfifo(lock)
    else:
        lock.symlink_to(victim if link == "symbolic" else tmp_path / "absent")
    with pytest.raises(OSError, match="never written to"), locked_folder(lock.parent):
        pass
    assert victim.read_text() == "precious"
    assert not (tmp_path / "absent").exists()
