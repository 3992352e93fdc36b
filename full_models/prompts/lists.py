"""Lists of prompts: plain text, or JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple


class PromptList(NamedTuple):
    """Prompts to be embedded.

    Attributes:
        ids: their names, all different.
        texts: the prompts.
        negative: the negative prompt of all, if the file says one.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    negative: str | None = None


def read_list(path: Path) -> PromptList:
    """Read a list of prompts.

    Args:
        path: a ``.jsonl`` file of objects with ``prompt`` and perhaps ``id`` and
            ``negative``; or a text file with a prompt on each line. Empty lines are
            passed over; ids are line numbers from 0 by default.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a line that is no such object, ids that are not unique, several
            negative prompts, or no prompt at all.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no list of prompts at {path}.")
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    found = [(i, line.strip()) for i, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ValueError(f"{path} must hold at least one prompt, got none.")
    if path.suffix != ".jsonl":
        numbers = tuple(str(i) for i in range(len(found)))
        return PromptList(numbers, tuple(text for _, text in found))
    ids, texts, negatives = [], [], set()
    for index, (number, line) in enumerate(found):
        try:
            entry = json.loads(line)
            text = entry["prompt"]
            if not isinstance(text, str):
                raise TypeError("prompt must be a string")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}, must be an object with a prompt "
                f'({{"id": ..., "prompt": ...}}), got {line[:60]!r} ({error}).'
            ) from error
        ids.append(str(entry.get("id", index)))
        texts.append(text)
        negatives.add(entry.get("negative"))
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise ValueError(f"{path}: ids must be unique, but {twice!r} is there twice.")
    if len(negatives) > 1:
        raise ValueError(
            f"{path} must have one negative prompt for all, got {len(negatives)}; "
            f"split the file by its negative prompts."
        )
    return PromptList(tuple(ids), tuple(texts), negatives.pop())
