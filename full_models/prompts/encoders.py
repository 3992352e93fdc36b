"""The text encoders of SD3, Flux.1 and Wan, by transformers and PyTorch."""

from __future__ import annotations

import dataclasses
import html
import re
from pathlib import Path
from typing import Any, Literal, get_args

import ml_dtypes
import numpy as np

from full_models.prompts.prompts import NEGATIVE
from gmm_guidance._runtime.files import sha256

FamilyName = Literal["sd3", "flux1", "wan"]
CLIP_LENGTH = 77
T5_WIDTH = 4096  # of the zeros in the place of a T5 that is left out
# Folders of a pipeline of diffusers, by what they hold.
_FOLDERS: dict[str, dict[str, str]] = {
    "sd3": {"clip_l": "", "clip_g": "_2", "t5": "_3"},
    "flux1": {"clip_l": "", "t5": "_2"},
    "wan": {"t5": ""},
}
T5_LENGTHS = {"sd3": 256, "flux1": 512, "wan": 512}


@dataclasses.dataclass(frozen=True)
class Encoders:
    """The encoders of a family, loaded.

    Their outputs are those of the published pipelines: SD3's context is made of the
    last state but one of both CLIPs, before the final norm, and of T5's last state; its
    pooled vector is CLIP-L's without and CLIP-G's with projection. Flux.1 has T5's
    states and CLIP-L's pooled vector without projection. Padding is not masked. Wan has
    UMT5's states of a masked sequence, with zeros in place of padding.

    Attributes:
        family: the family.
        models: model and tokenizer of each encoder.
        t5_length: tokens of T5.
        hashes: SHA-256 of the folder of each encoder.
    """

    family: FamilyName
    models: dict[str, tuple[Any, Any]]
    t5_length: int
    hashes: dict[str, str]

    @classmethod
    def load(
        cls,
        family: FamilyName,
        folder: Path,
        *,
        t5_length: int | None = None,
        use_t5: bool = True,
        dtype: str = "bfloat16",
    ) -> Encoders:
        """Load the encoders of a pipeline of diffusers.

        Args:
            family: the family.
            folder: a folder with the subfolders of encoders and tokenizers that the
                family needs.
            t5_length: tokens of T5, at least 1; 256 for SD3, 512 for others by default.
            use_t5: whether SD3's T5 takes part; zeros are in its place if not.
            dtype: type of the weights, ``"float32"`` or ``"bfloat16"``. (T5 overflows
                in float16.)

        Raises:
            ImportError: without the extra ``text``.
            FileNotFoundError: naming the subfolders that are missing.
            ValueError: for an unknown family, or a T5 that may not be left out.
        """
        if family not in get_args(FamilyName):
            raise ValueError(
                f"family must be one of {', '.join(get_args(FamilyName))}, got "
                f"{family!r}."
            )
        if not use_t5 and family != "sd3":
            raise ValueError(f"only SD3 works without T5, got {family!r}; keep it.")
        if t5_length is not None and t5_length < 1:
            raise ValueError(f"the T5 length must be at least 1, got {t5_length}.")
        wanted = {
            name: (folder / f"text_encoder{end}", folder / f"tokenizer{end}")
            for name, end in _FOLDERS[family].items()
            if use_t5 or name != "t5"
        }
        missing = [
            path.name for pair in wanted.values() for path in pair if not path.is_dir()
        ]
        if missing:
            raise FileNotFoundError(
                f"{folder} must hold the encoders of {family}, but lacks "
                f"{', '.join(missing)}; download these subfolders of its pipeline"
                f"{', or leave T5 out' if family == 'sd3' else ''}."
            )
        try:
            import torch
            import transformers
        except ImportError as error:
            raise ImportError(
                "embedding prompts needs PyTorch and transformers; install "
                "'gmm-guidance[text]'."
            ) from error
        kinds = {
            "clip_l": transformers.CLIPTextModel,
            "clip_g": transformers.CLIPTextModelWithProjection,
            "t5": transformers.UMT5EncoderModel
            if family == "wan"
            else transformers.T5EncoderModel,
        }
        models = {
            name: (
                kinds[name]
                .from_pretrained(weights, dtype=getattr(torch, dtype))
                .eval(),
                transformers.AutoTokenizer.from_pretrained(tokenizer),
            )
            for name, (weights, tokenizer) in wanted.items()
        }
        hashes = {name: sha256(weights) for name, (weights, _) in wanted.items()}
        return cls(family, models, t5_length or T5_LENGTHS[family], hashes)

    def encode(self, texts: list[str]) -> dict[str, np.ndarray]:
        """Embed texts, bfloat16.

        Returns:
            ``t5`` ``[n, S, C]``; ``pooled`` ``[n, P]`` for SD3 and Flux.1; ``clip``
            ``[n, 77, 2048]`` for SD3.
        """
        import torch

        with torch.no_grad():
            found = {
                "sd3": self._sd3,
                "flux1": self._flux,
                "wan": lambda texts: {"t5": self._umt5(texts)},
            }[self.family](texts)
        bfloat16 = ml_dtypes.bfloat16
        return {n: t.float().numpy().astype(bfloat16) for n, t in found.items()}

    def _sd3(self, texts: list[str]) -> dict[str, Any]:
        import torch

        outputs = [self._clip(name, texts) for name in ("clip_l", "clip_g")]
        states = [output.hidden_states[-2] for output in outputs]
        pooled = [outputs[0].pooler_output, outputs[1].text_embeds]
        if "t5" in self.models:
            t5 = self._t5(texts)
        else:
            t5 = torch.zeros(len(texts), self.t5_length, T5_WIDTH)
        return {
            "t5": t5,
            "clip": torch.cat(states, dim=-1),
            "pooled": torch.cat(pooled, dim=-1),
        }

    def _flux(self, texts: list[str]) -> dict[str, Any]:
        pooled = self._clip("clip_l", texts).pooler_output
        return {"t5": self._t5(texts), "pooled": pooled}

    def _clip(self, name: str, texts: list[str]) -> Any:
        model, _ = self.models[name]
        tokens = self._tokens(name, texts, CLIP_LENGTH)
        return model(tokens.input_ids, output_hidden_states=True)

    def _t5(self, texts: list[str]) -> Any:
        model, _ = self.models["t5"]
        tokens = self._tokens("t5", texts, self.t5_length)
        return model(tokens.input_ids).last_hidden_state

    def _umt5(self, texts: list[str]) -> Any:
        model, _ = self.models["t5"]
        tokens = self._tokens("t5", [_cleaned(text) for text in texts], self.t5_length)
        mask = tokens.attention_mask
        states = model(tokens.input_ids, attention_mask=mask).last_hidden_state
        return states * mask[..., None].to(states.dtype)

    def _tokens(self, name: str, texts: list[str], length: int) -> Any:
        _, tokenizer = self.models[name]
        return tokenizer(
            texts,
            padding="max_length",
            max_length=length,
            truncation=True,
            return_tensors="pt",
        )


def negative_tensors(encoders: Encoders, text: str) -> dict[str, np.ndarray]:
    """The embedded negative prompt, under its names in a file."""
    return {f"{NEGATIVE}{n}": array for n, array in encoders.encode([text]).items()}


def _cleaned(text: str) -> str:
    """Text as Wan's tokenizer takes it: repaired, unescaped, with single spaces."""
    try:
        import ftfy
    except ImportError as error:
        raise ImportError(
            "Wan's prompts need ftfy; install 'gmm-guidance[text]'."
        ) from error
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()
