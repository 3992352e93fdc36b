"""embed-prompts on tiny random encoders, saved by transformers' own save_pretrained."""

import json
import warnings

import numpy as np
import pytest

from full_models import load_prompts
from full_models.cli import main
from full_models.prompts.lists import read_list

pytestmark = pytest.mark.filterwarnings("ignore")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def save_clip(transformers, torch, folder, end, projected, pad):
    """A CLIP text encoder and its tokenizer."""
    vocab = {"!": 0}
    for letter in LETTERS:
        vocab |= {letter: len(vocab), f"{letter}</w>": len(vocab) + 1}
    vocab |= {"<|startoftext|>": len(vocab), "<|endoftext|>": len(vocab) + 1}
    tokenizer = transformers.CLIPTokenizer(
        vocab=vocab, merges=[], pad_token=pad, model_max_length=77
    )
    tokenizer.save_pretrained(folder / f"tokenizer{end}")
    config = transformers.CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=8,
        bos_token_id=vocab["<|startoftext|>"],
        eos_token_id=vocab["<|endoftext|>"],
    )
    kind = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    model = getattr(transformers, kind)(config).eval()
    model.save_pretrained(folder / f"text_encoder{end}")
    return model, tokenizer


def save_t5(transformers, folder, end):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocab = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    vocab |= {letter: i for i, letter in enumerate(LETTERS, 3)}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder / f"tokenizer{end}")
    config = transformers.T5Config(
        vocab_size=len(vocab),
        d_model=20,
        d_kv=4,
        d_ff=16,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    model = transformers.T5EncoderModel(config).eval()
    model.save_pretrained(folder / f"text_encoder{end}")
    return model, tokenizer


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch = pytest.importorskip("torch", reason="needs the extra: text")
        transformers = pytest.importorskip(
            "transformers", reason="needs the extra: text"
        )
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("pipeline")
        clip_l = save_clip(transformers, torch, folder, "", False, "<|endoftext|>")
        clip_g = save_clip(transformers, torch, folder, "_2", True, "!")
        t5 = save_t5(transformers, folder, "_3")
    return torch, folder, clip_l, clip_g, t5


def embed(folder, tmp_path, *more):
    """Run the command on two prompts."""
    (tmp_path / "p.txt").write_text("a dog\n\nthe cat\n")
    out = tmp_path / "p.safetensors"
    given = ["embed-prompts", "--encoders", str(folder), "--out", str(out)]
    given += ["--prompts", str(tmp_path / "p.txt"), "--precision", "float32"]
    return main([*given, *more]), out


@pytest.mark.ci
def test_sd3_has_what_its_pipeline_has(tmp_path, encoders):
    torch, folder, clip_l, clip_g, t5 = encoders
    status, out = embed(folder, tmp_path, "--family", "sd3", "--t5-length", "9")
    assert status == 0
    found = load_prompts(out)
    assert found.family == "sd3" and found.texts == ("a dog", "the cat")
    for row, text in enumerate((*found.texts, "")):
        context = found.context[row] if row < 2 else found.negative_context
        pooled = found.pooled[row] if row < 2 else found.negative_pooled
        states, vectors = [], []
        for (model, tokenizer), pad in ((clip_l, 54), (clip_g, 0)):
            ids = tokenizer(text).input_ids
            assert ids[0] == 53 and ids[-1] == 54
            ids = torch.tensor([ids + [pad] * (77 - len(ids))])
            with torch.no_grad():
                result = model(ids, output_hidden_states=True)
            states.append(result.hidden_states[2][0])
            vectors.append(getattr(result, "text_embeds", None))
            if vectors[-1] is None:
                vectors[-1] = result.pooler_output
        model, tokenizer = t5
        ids = tokenizer(text).input_ids[:9]
        with torch.no_grad():
            last = model(torch.tensor([ids + [0] * (9 - len(ids))]))[0][0]
        wanted = np.zeros((77 + 9, 20), np.float32)
        wanted[:77, :16] = torch.cat(states, -1).numpy()
        wanted[77:] = last.numpy()
        close = dict(rtol=0.01, atol=0.01)  # they are stored in bfloat16
        np.testing.assert_allclose(context.astype(np.float32), wanted, **close)
        wanted = torch.cat(vectors, -1)[0].numpy()
        np.testing.assert_allclose(pooled.astype(np.float32), wanted, **close)


@pytest.mark.ci
def test_a_folder_is_resumed(tmp_path, encoders):
    _, folder, *_ = encoders
    out = tmp_path / "set"
    more = ("--family", "sd3", "--t5-length", "5", "--shard-size", "1")
    assert embed(folder, tmp_path, *more, "--out", str(out))[0] == 0
    whole = load_prompts(out)
    assert whole.texts == ("a dog", "the cat")
    first, second = out / "00000.safetensors", out / "00001.safetensors"
    before = first.stat().st_mtime_ns
    second.unlink()
    assert embed(folder, tmp_path, *more, "--out", str(out))[0] == 0
    assert first.stat().st_mtime_ns == before
    again = load_prompts(out)
    assert again.context.tobytes() == whole.context.tobytes()


def test_missing_encoders_are_named(tmp_path, capsys):
    (tmp_path / "pipeline" / "tokenizer").mkdir(parents=True)
    status, _ = embed(tmp_path / "pipeline", tmp_path, "--family", "flux1")
    assert status != 0
    assert "lacks text_encoder, text_encoder_2, tokenizer_2" in " ".join(
        capsys.readouterr().err.split()
    )


def test_lists_of_prompts(tmp_path):
    path = tmp_path / "p.jsonl"
    lines = [{"id": "x", "prompt": "a", "negative": "n"}, {"prompt": "b"}]
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match="one negative prompt for all, got 2"):
        read_list(path)
    lines[1]["negative"] = "n"
    path.write_text("\n".join(map(json.dumps, lines)))
    assert read_list(path) == (("x", "1"), ("a", "b"), "n")
    path.write_text('{"text": "a"}')
    with pytest.raises(ValueError, match="line 1, must be an object with a prompt"):
        read_list(path)
    path.write_text('{"prompt": "a", "id": 1}\n{"prompt": "a", "id": 1}')
    with pytest.raises(ValueError, match="'1' is there twice"):
        read_list(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="at least one prompt"):
        read_list(path)
