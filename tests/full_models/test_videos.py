"""Video files read back, and sheets of frames."""

import sys

import numpy as np
import pytest

from full_models.commands.sample import Drawn, _write
from full_models.generation.videos import (
    WRITER,
    contact_sheet,
    save_mp4,
    side_by_side,
)


def clip(count=5, channels=3):
    """Smooth colors that move: what the codec keeps."""
    time, y, x = np.meshgrid(
        np.arange(count), np.arange(32), np.arange(48), indexing="ij"
    )
    shades = [y * 6, x * 5, 20 + 40 * time][:channels]
    return np.stack(shades, axis=-1).clip(0, 255).astype(np.uint8)


def test_a_file_is_read_back(tmp_path):
    av = pytest.importorskip("av", reason="the video extra is not installed")
    path = tmp_path / "a.mp4"
    save_mp4(path, clip(), fps=16)
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert (stream.average_rate, stream.codec_context.name) == (16, "h264")
        found = np.stack([f.to_ndarray(format="rgb24") for f in container.decode()])
    assert found.shape == clip().shape
    assert np.abs(found.astype(int) - clip()).mean() < 4
    save_mp4(path, clip(channels=1))
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    "frames, fps, message",
    [
        (clip().astype(float), 16, "frames must be uint8"),
        (clip()[0], 16, r"\[F, H, W, 3 or 1\], got uint8 \(32, 48, 3\)"),
        (clip()[:, :31], 16, "even height and width, got 5 of 48 x 31"),
        (clip()[:0], 16, "got 0 of 48 x 32"),
        (clip(), 0, "fps must be at least 1, got 0"),
    ],
)
def test_bad_frames(tmp_path, frames, fps, message):
    with pytest.raises(ValueError, match=message):
        save_mp4(tmp_path / "a.mp4", frames, fps)
    assert not list(tmp_path.iterdir())


def test_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install 'gmm-guidance\[video\]'"):
        save_mp4(tmp_path / "a.mp4", clip())


def test_sheets_show_the_first_and_the_last_frame():
    videos = np.stack([np.full((81, 64, 64, 3), 0, np.uint8)] * 2)
    videos[:, 0], videos[:, -1] = 10, 20
    sheet = contact_sheet(videos, 5)
    assert sheet.shape == (2 * 64 + 2, 5 * 64 + 4 * 2, 3)
    assert sheet[0, 0, 0] == 10 and sheet[-1, -1, 0] == 20
    assert contact_sheet(videos[:, :3], 8).shape[1] == 3 * 64 + 2 * 2


def test_rules_side_by_side():
    """Columns under their titles, seeds below each other, small ones enlarged."""
    two = np.stack([clip(), clip() + 1])
    joined = side_by_side({"CFG": two, "S²": two + 2})
    assert joined.shape == (5, 24 + 2 * 96, 2 * 144, 3)
    np.testing.assert_array_equal(joined[:, 24 + 96 :: 3, 144::3], clip() + 3)
    assert joined[0, :24].min() == 0 and joined[0, :24, 100:144].min() == 255


@pytest.mark.parametrize("has_av", [True, False])
def test_files_of_a_drawing(tmp_path, monkeypatch, has_av):
    """Sheets and samples.npz need no extra; mp4 files are written where they can be."""
    if has_av:
        pytest.importorskip("av", reason="the video extra is not installed")
    monkeypatch.setattr("full_models.commands.sample.has_writer", lambda: has_av)
    videos = np.stack([clip(), clip()])
    drawn = Drawn(np.zeros((2, 2, 4, 6, 4), np.float32), videos, 1.0, 1.0, 2.0)
    record = _write(tmp_path, drawn, np.array([3, 1]), 16)
    with np.load(tmp_path / "samples.npz") as file:
        np.testing.assert_array_equal(file["arr_0"], videos)
    assert (tmp_path / "grid.png").is_file()
    names = sorted(p.name for p in tmp_path.glob("videos/*"))
    assert names == (["000000-3.mp4", "000001-1.mp4"] if has_av else [])
    assert record == ({"video": {**WRITER, "fps": 16}} if has_av else {})
