"""Commands with prompts: images of SD3 and videos of Wan, from files to files."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from support.commands import run_cli

from full_models import (
    SD3,
    SD3Config,
    Wan,
    WanConfig,
    WanDecoder,
    WanVAEConfig,
    export_weights,
)
from full_models.generation.images import read_image
from full_models.models.autoencoder import wan_weights
from full_models.weights.table import dump

pytestmark = pytest.mark.ci  # each command compiles its programs
VAE = {
    "_class_name": "AutoencoderKLWan",
    "z_dim": 4,
    "base_dim": 4,
    "dim_mult": [1, 2],
    "temperal_downsample": [True],
    "num_res_blocks": 1,
    "latents_mean": [0.1, -0.2, 0.3, 0.0],
    "latents_std": [1.5, 0.5, 2.0, 1.0],
}


def random(build, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: np.asarray(0.2 * rng.normal(size=a.shape), np.float32),
        jax.eval_shape(build),
    )


def save_prompts(path, family, **shapes):
    rng = np.random.default_rng(1)
    tensors = {
        f"{start}{name}": rng.normal(size=(n, *shape)).astype(np.float32)
        for name, shape in shapes.items()
        for start, n in (("", 3), ("negative.", 1))
    }
    texts = json.dumps(["a dog", "a cat", "two birds"])
    said = dict(kind="full_models prompts", version="1", family=family)
    safetensors.numpy.save_file(tensors, path, said | dict(prompts=texts, ids=texts))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Options of an SD3 whose "latents" are images of three channels."""
    folder = tmp_path_factory.mktemp("sd3")
    config = SD3Config(
        input_size=(4, 4),
        in_channels=3,
        width=8,
        depth=2,
        num_heads=1,
        text_width=6,
        pooled_width=5,
        table_size=4,
    )
    network = random(lambda: SD3(config, rngs=nnx.Rngs(0)))
    weights = export_weights(network, folder / "sd3.safetensors", "native")
    prompts = folder / "p.safetensors"
    save_prompts(prompts, "sd3", t5=(2, 6), clip=(2, 4), pooled=(5,))
    return ["--weights", weights, "--prompts", prompts, "--size", "32x48"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Options of a Wan and a decoder of its latents."""
    folder = tmp_path_factory.mktemp("wan")
    config = WanConfig(
        latent_shape=(2, 4, 4),
        in_channels=4,
        width=8,
        depth=2,
        num_heads=1,
        mlp_width=8,
        text_width=6,
        text_length=4,
    )
    network = random(lambda: Wan(config, rngs=nnx.Rngs(0)))
    weights = export_weights(network, folder / "wan.safetensors", "native")
    save_prompts(folder / "p.safetensors", "wan", t5=(3, 6))
    shape = WanVAEConfig.from_diffusers(VAE)
    decoder = random(lambda: WanDecoder(shape, rngs=nnx.Rngs(0)), 1)
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text(json.dumps(VAE))
    safetensors.numpy.save_file(
        dump(decoder, wan_weights.LAYOUTS["diffusers"].table(shape, {})),
        folder / "vae" / "diffusion_pytorch_model.safetensors",
    )
    given = ["--weights", weights, "--prompts", folder / "p.safetensors"]
    return [*given, "--size", "64x32", "--frames", "5", "--vae", folder / "vae"]


def test_a_sweep_of_images_is_packed(tmp_path, images, capsys):
    grid = tmp_path / "grid.toml"
    grid.write_text(
        "steps = 2\nnum = 4\nshard_size = 3\nbatch_size = 3\n"
        '[[rules]]\nname = "cfg"\ns2_scale = 0.0\ncfg_scale = [2.0, 4.0]\n'
        '[[rules]]\nname = "pag"\nrule = ["pag", "blocks=1"]\n'
    )
    command = ["sweep", "--file", grid, *images, "--out", tmp_path / "sets"]
    ended = run_cli(capsys, *command)
    assert ended.status == 0, ended.err
    names = ["cfg_cfg_scale-2", "cfg_cfg_scale-4", "pag"]
    assert sorted(p.name for p in (tmp_path / "sets").iterdir()) == names
    assert ended.out.count("complete") == 3
    packed = []
    for name in names:
        folder = tmp_path / "sets" / name
        assert run_cli(capsys, "pack", "--set", folder).status == 0
        with np.load(folder / "samples_4x6x4x3.npz") as file:
            packed.append(file["arr_0"])
            np.testing.assert_array_equal(file["labels"], [0, 1, 2, 0])
        plan = json.loads((folder / "plan.json").read_text())
        assert plan["run"]["draw"]["prompts"]["name"] == "p.safetensors"
    assert len({a.tobytes() for a in packed}) == 3
    before = (tmp_path / "sets" / "pag" / "plan.json").stat().st_mtime_ns
    assert run_cli(capsys, *command).status == 0  # complete ones are skipped
    assert (tmp_path / "sets" / "pag" / "plan.json").stat().st_mtime_ns == before


def test_videos_in_shards_are_resumed_and_packed(tmp_path, videos, capsys):
    out = tmp_path / "set"
    command = ["generate", *videos, "--out", out, "--num", "3", "--steps", "2"]
    command += ["--shard-size", "2", "--batch-size", "2", "--cfg-scale", "2"]
    ended = run_cli(capsys, *command, "--format", "png")
    assert ended.status != 0 and "draws videos; use --format npz" in ended.err
    assert run_cli(capsys, *command).status == 0
    shard = out / "shard-00001.npz"
    with np.load(shard) as file:
        whole = dict(file)
    # Two latents in time are 3 frames for a decoder that doubles once.
    assert whole["arr_0"].shape == (1, 3, 8, 16, 3) and whole["arr_0"].std() > 1
    np.testing.assert_array_equal(whole["index"], [2])
    shard.unlink()
    ended = run_cli(capsys, "pack", "--set", out)
    assert ended.status != 0 and "resume" in ended.err
    assert run_cli(capsys, *command, "--resume").status == 0
    with np.load(shard) as file:
        np.testing.assert_array_equal(file["arr_0"], whole["arr_0"])
    assert run_cli(capsys, "pack", "--set", out).status == 0
    with np.load(out / "samples_3x3x8x16x3.npz") as file:
        np.testing.assert_array_equal(file["arr_0"][2:], whole["arr_0"])
    pytest.importorskip("av", reason="the video extra is not installed")
    layout = ["--layout", "by-label", "--fps", "8"]
    assert run_cli(capsys, "pack", "--set", out, *layout).status == 0
    names = sorted(p.relative_to(out).as_posix() for p in out.glob("videos/*/*"))
    assert names == [f"videos/{i}/{i:09d}.mp4" for i in range(3)]


def test_rules_of_videos_are_compared_in_one_video(tmp_path, videos, capsys):
    av = pytest.importorskip("av", reason="the video extra is not installed")
    out = tmp_path / "out"
    command = ["compare", *videos, "--out", out, "--num", "2", "--steps", "2"]
    ended = run_cli(capsys, *command, "--rules", "cfg,s2", "--fps", "4")
    assert ended.status == 0, ended.err
    with av.open(out / "compare.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.average_rate, stream.frames) == (4, 3)
        # Two columns of videos enlarged 12 times, two rows of them below a title.
        assert (stream.width, stream.height) == (2 * 16 * 12, 24 + 2 * 8 * 12)
    assert read_image(out / "compare.png").width > 300
    record = json.loads((out / "run.json").read_text())
    assert record["video"]["fps"] == 4 and list(record["rules"]) == ["CFG 5", "S² 0.25"]
