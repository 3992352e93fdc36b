"""Arrays of .npz files whose headers are no headers."""

import zipfile

import numpy as np
import pytest

from gmm_guidance._runtime.npz import headers, read_arrays


@pytest.mark.parametrize(
    "text", ["{'descr': (\n", "{'descr': '<f4', 'shape': (" + "9" * 400, "[" * 99, "\0"]
)
def test_headers_of_other_kinds_are_damage(tmp_path, text):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.zeros(3))
    header = text.encode().ljust(118)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.npy", b"\x93NUMPY\x01\x00v\x00" + header + bytes(24))
    for read in (headers, read_arrays):
        with pytest.raises(ValueError, match=r"a\.npz is damaged"):
            read(path)
