"""``full-models embed-prompts``: prompts through the text encoders of a family."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors

from full_models.prompts.encoders import Encoders, FamilyName, negative_tensors
from full_models.prompts.lists import PromptList, read_list
from full_models.prompts.prompts import INDEX, KIND, VERSION
from gmm_guidance._runtime.files import write_text
from gmm_guidance._runtime.progress import Reporter
from gmm_guidance._runtime.schema import sealed
from gmm_guidance._runtime.tensor_files import CHECKSUMS, write_tensors


@dataclasses.dataclass(frozen=True)
class EmbedPrompts:
    """Embed prompts for SD3, Flux.1 or Wan: once, for any number of runs."""

    family: FamilyName
    """Family of the model: sd3 (SD3 and SD3.5), flux1 or wan."""
    encoders: Path
    """Folder of a diffusers pipeline with the subfolders of its text encoders and
    tokenizers."""
    prompts: Path
    """Prompts: a text file with one on each line, or JSON lines (.jsonl) of objects
    with prompt, id and negative."""
    out: Path
    """File ending in .safetensors for all prompts; or a folder of several files, which
    an interrupted run resumes."""
    negative: str | None = None
    """Negative prompt; the empty text by default, or the one of the JSON lines."""
    t5_length: int | None = None
    """Number of tokens of T5; 256 for SD3, 512 for the others by default
    (Flux.1-schnell was trained with 256)."""
    use_t5: bool = True
    """Whether SD3's T5 takes part; without it zeros are in its place."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the encoders' weights; embeddings are stored in bfloat16."""
    batch_size: int = 8
    """Number of prompts at once."""
    shard_size: int = 256
    """Number of prompts of each file of a folder."""

    def __post_init__(self):
        for name in ("batch_size", "shard_size"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")

    def run(self, reporter: Reporter) -> list[Path]:
        """Embed the prompts; returns the files."""
        given = read_list(self.prompts)
        texts = given.negative if self.negative is None else self.negative
        single = self.out.suffix == ".safetensors"
        size = len(given.texts) if single else self.shard_size
        if not single and self.out.is_file():
            raise FileExistsError(f"{self.out} is a file; give a folder, or delete it.")
        encoders = Encoders.load(
            self.family,
            self.encoders,
            t5_length=self.t5_length,
            use_t5=self.use_t5,
            dtype=self.precision,
        )
        negative = negative_tensors(encoders, texts or "")
        common = self._metadata(encoders, texts or "")
        (self.out.parent if single else self.out).mkdir(parents=True, exist_ok=True)
        written: list[Path] = []
        with reporter.task("embedding", len(given.texts)) as task:
            for start in range(0, len(given.texts), size):
                part = PromptList(
                    given.ids[start : start + size], given.texts[start : start + size]
                )
                name = f"{start // size:05d}.safetensors"
                path = self.out if single else self.out / name
                metadata = common | {
                    "prompts": json.dumps(part.texts),
                    "ids": json.dumps(part.ids),
                }
                if single or _metadata_of(path) != metadata:
                    tensors = self._embed(encoders, part, task, start) | negative
                    write_tensors(tensors, path, metadata)
                task.move_to(start + len(part.texts))
                written.append(path)
        if single:
            return written
        index = {"kind": KIND, "shards": [path.name for path in written]}
        write_text(self.out / INDEX, json.dumps(sealed(index), indent=1) + "\n")
        return [*written, self.out / INDEX]

    def _embed(
        self, encoders: Encoders, part: PromptList, task: Any, done: int
    ) -> dict[str, np.ndarray]:
        batches = []
        for start in range(0, len(part.texts), self.batch_size):
            texts = list(part.texts[start : start + self.batch_size])
            batches.append(encoders.encode(texts))
            task.move_to(done + start + len(texts))
        return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}

    def _metadata(self, encoders: Encoders, negative: str) -> dict[str, str]:
        versions = {n: importlib.metadata.version(n) for n in ("torch", "transformers")}
        return {
            "kind": KIND,
            "version": str(VERSION),
            "family": self.family,
            "negative": negative,
            "t5_length": str(encoders.t5_length),
            "encoders": json.dumps(encoders.hashes),
            "precision": self.precision,
            "versions": json.dumps(versions),
        }


def _metadata_of(path: Path) -> dict[str, str] | None:
    """What a file of an earlier run says; ``None`` if there is none that is whole."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
    except (OSError, safetensors.SafetensorError):
        return None
    metadata.pop(CHECKSUMS, None)
    return metadata
