"""What a file of weights is, whatever it is called."""

from __future__ import annotations

import hashlib
from pathlib import Path

_KINDS = ("*.safetensors", "*.json", "*.pt")
_CHUNK = 1 << 24


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of the weights in a folder.

    Raises:
        FileNotFoundError: if there is neither.
    """
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}.")
    digest = hashlib.sha256()
    if path.is_file():
        files = [path]
    else:
        files = sorted(f for kind in _KINDS for f in path.rglob(kind) if f.is_file())
    for file in files:
        if file != path:
            digest.update(str(file.relative_to(path)).encode())
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
