"""Statistics from feature files: values, files, extraction and the command."""

import io
import json
import struct
import sys
import zipfile
import zlib

import numpy as np
import pytest
from oracles import feature_loops
from PIL import Image
from support.commands import run_cli

from full_models.statistics import (
    FeatureSet,
    extract_features,
    load_callable,
    load_features,
    measure,
    open_images,
    save_features,
)

ARGUMENTS = "full-models features --images {} --using package.module:function"


def two_sets(n=60, m=45, dim=4):
    rng = np.random.default_rng(0)
    real = rng.normal(size=(n, dim)).astype(np.float32)
    generated = (1.3 * rng.normal(size=(m, dim)) + 0.3).astype(np.float32)
    return real, generated


# -- values ---------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 5])
def test_numbers_are_those_of_the_papers(k):
    real, generated = two_sets()
    found = measure(FeatureSet(generated), FeatureSet(real), nearest=k)
    expected = feature_loops.frechet_of_features(generated, real)
    assert found["frechet_distance"] == pytest.approx(expected, rel=1e-9)
    names = ("precision", "recall", "density", "coverage")
    loops = feature_loops.manifolds(real, generated, k)
    assert tuple(found[name] for name in names) == pytest.approx(loops, rel=1e-12)
    assert 0 < found["precision"] < 1 and 0 < found["coverage"] < 1
    assert (found["dim"], found["nearest"]) == (4, k)
    assert (found["num_samples"], found["num_reference"]) == (45, 60)
    assert "inception_score" not in found


@pytest.mark.parametrize("given", ["logits", "probabilities"])
def test_inception_score(given):
    real, generated = two_sets()
    logits = np.random.default_rng(1).normal(size=(45, 7)) * 3 + 1000
    odds = np.exp(logits - 1000)
    probabilities = odds / odds.sum(1, keepdims=True)
    values = {"logits": logits, "probabilities": probabilities}
    samples = FeatureSet(generated, **{given: values[given]})
    found = measure(samples, FeatureSet(real), splits=3)
    mean, std = feature_loops.inception_score(probabilities, 3)
    assert found["inception_score"] == pytest.approx(mean, rel=1e-9)
    assert found["inception_score_std"] == pytest.approx(std, rel=1e-9)
    assert found["splits"] == 3


def test_moments_of_two_gaussians(tmp_path):
    """Commuting covariances: |shift|^2 and the squared differences of deviations."""
    rng = np.random.default_rng(2)
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    stds = rng.uniform(0.2, 2.0, (2, 6))
    shift = rng.normal(size=6)
    for name, mu, s in zip("ab", (shift, 0 * shift), stds, strict=True):
        np.savez(tmp_path / f"{name}.npz", mu=mu, sigma=basis * s**2 @ basis.T)
    a, b = (load_features(tmp_path / f"{name}.npz") for name in "ab")
    found = measure(a, b)
    expected = shift @ shift + np.sum((stds[0] - stds[1]) ** 2)
    assert found == {
        "frechet_distance": pytest.approx(expected, rel=1e-12),
        "dim": 6,
        "num_samples": None,
        "num_reference": None,
        "warnings": [],
    }


def test_features_and_their_moments_are_at_the_same_distance():
    real, generated = two_sets()
    sigma = np.cov(np.float64(real.T))
    moments = FeatureSet(mu=real.mean(0, np.float64), sigma=sigma)
    found = measure(FeatureSet(generated), moments)
    whole = measure(FeatureSet(generated), FeatureSet(real))
    assert found["frechet_distance"] == pytest.approx(whole["frechet_distance"])
    assert "precision" not in found and found["num_samples"] == 45


def test_warnings_tell_what_the_numbers_lack():
    real, generated = two_sets(40, 40, 8)
    assert measure(FeatureSet(generated), FeatureSet(real))["warnings"] == []
    few = FeatureSet(generated[:8], origin="few.npz")
    singular, sizes = measure(few, FeatureSet(real), nearest=2)["warnings"]
    assert "few.npz has 8 samples of 8 dimensions" in singular
    assert "singular" in singular and "8 and 40 samples" in sizes
    moments = FeatureSet(mu=np.zeros(8), sigma=np.eye(8))
    assert len(measure(few, moments)["warnings"]) == 1


def test_sets_that_do_not_fit():
    real, generated = two_sets()
    with pytest.raises(ValueError, match=r"a\.npz has 4, b\.npz has 3.*same function"):
        measure(
            FeatureSet(generated, origin="a.npz"),
            FeatureSet(real[:, :3], origin="b.npz"),
        )
    for nearest in (0, 45):
        with pytest.raises(ValueError, match=f"45 in the features; got {nearest}"):
            measure(FeatureSet(generated), FeatureSet(real), nearest=nearest)


# -- files ----------------------------------------------------------------------------


def test_files_come_back(tmp_path):
    real, _ = two_sets()
    logits = np.arange(120.0).reshape(60, 2)
    path = save_features(tmp_path / "new" / "f.npz", FeatureSet(real, logits=logits))
    found = load_features(path)
    np.testing.assert_array_equal(found.features, real)
    np.testing.assert_array_equal(found.logits, logits)
    assert found.features.dtype == np.float32 and found.probabilities is None
    moments = FeatureSet(mu=np.ones(2), sigma=np.eye(2))
    found = load_features(save_features(path, moments))
    np.testing.assert_array_equal(found.sigma, np.eye(2))
    assert [p.name for p in path.parent.iterdir()] == ["f.npz"]
    with pytest.raises(ValueError, match=r"end in \.npz, got f\.npy; use f\.npz"):
        save_features("f.npy", moments)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_features(tmp_path / "f.npz", FeatureSet(np.ones((3, 2))))

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        save_features(path, FeatureSet(np.zeros((3, 2))))
    assert [p.name for p in tmp_path.iterdir()] == ["f.npz"]
    assert load_features(path).features.all()


@pytest.mark.parametrize("key", ["features", "pool_3", "arr_0"])
def test_keys_of_features(tmp_path, key):
    real, _ = two_sets()
    np.savez_compressed(tmp_path / "f.npz", **{key: real})
    np.testing.assert_array_equal(load_features(tmp_path / "f.npz").features, real)


def test_reference_files_of_evaluators_are_moments(tmp_path):
    """Keys of the published batches; features come first where a file has both."""
    real, _ = two_sets()
    arrays = {
        "arr_0": np.zeros((10, 8, 8, 3), np.uint8),
        "mu": np.zeros(4),
        "sigma": np.eye(4),
        "mu_s": np.zeros(7),
        "sigma_s": np.eye(7),
    }
    np.savez(tmp_path / "f.npz", **arrays)
    found = load_features(tmp_path / "f.npz")
    assert (found.dim, found.count, found.features) == (4, None, None)
    np.savez(tmp_path / "f.npz", **arrays, features=real)
    assert load_features(tmp_path / "f.npz").count == 60


ROWS = np.ones((5, 3))
WITH_NAN = np.where(np.arange(15).reshape(5, 3) == 7, np.nan, 1.0)


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"arr_0": np.zeros((4, 8, 8, 3), np.uint8)}, r"\(4, 8, 8, 3\).*full-models "),
        ({"labels": ROWS}, "features, pool_3 or arr_0 .* found labels"),
        ({}, "found none"),
        ({"features": np.ones(5)}, r"shape \[n, d\], got \(5,\); reshape"),
        ({"features": np.ones((5, 3, 1, 1))}, r"got \(5, 3, 1, 1\); reshape"),
        ({"features": np.ones((5, 0))}, r"got \(5, 0\)"),
        ({"features": ROWS[:1]}, "at least 2 samples, got 1"),
        ({"features": ROWS.astype(str)}, "real numbers, got <U"),
        ({"features": WITH_NAN}, "1 of 5 rows hold NaN .* first is row 2"),
        ({"features": ROWS, "logits": ROWS[:4]}, "each of the 5 features, got 4"),
        ({"features": ROWS, "logits": WITH_NAN}, "logits must be finite"),
        ({"features": ROWS, "probabilities": ROWS[0]}, r"\[n, classes\], got \(3,\)"),
        ({"features": ROWS, "logits": ROWS, "probabilities": ROWS}, "got both; leave"),
        ({"mu": ROWS[0]}, "mu and sigma together"),
        ({"mu": ROWS[0], "sigma": np.eye(4)}, r"got \(3,\) and \(4, 4\)"),
        ({"mu": ROWS[0], "sigma": np.nan * np.eye(3)}, "must be finite"),
        ({"mu": ROWS[0], "sigma": np.tri(3)}, "must be symmetric"),
    ],
)
def test_files_that_will_not_do(tmp_path, arrays, message):
    path = tmp_path / "f.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message) as error:
        load_features(path)
    assert str(path) in str(error.value)


def test_damaged_files(tmp_path):
    path = tmp_path / "f.npz"
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_features(path)
    np.savez(path, features=np.random.default_rng(0).normal(size=(50, 3)))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[500] ^= 1
    for content in (b"", b"text", whole[:-40], whole[:600], bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"damaged or no \.npz file"):
            load_features(path)
    np.savez(path, features=np.array([None, 1], object))
    with pytest.raises(ValueError, match="Object arrays"):
        load_features(path)


def test_a_set_is_features_or_moments():
    with pytest.raises(ValueError, match="got neither"):
        FeatureSet()
    with pytest.raises(ValueError, match="got both"):
        FeatureSet(ROWS, mu=np.zeros(3), sigma=np.eye(3))


# -- images ---------------------------------------------------------------------------


def some_images(n=7, channels=3):
    return np.random.default_rng(3).integers(0, 256, (n, 6, 5, channels), np.uint8)


def write_folder(folder, images):
    for index, image in enumerate(images):
        place = folder / ("b" if index % 2 else "a")
        place.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        picture.save(place / f"{index:03d}.{'png' if index % 3 else 'PNG'}")
    order = sorted(range(len(images)), key=lambda i: (i % 2, i))
    return images[order]


@pytest.mark.parametrize("channels", [1, 3])
def test_all_sources_give_the_same_images(tmp_path, channels):
    images = some_images(channels=channels)
    ordered = write_folder(tmp_path / "folder", images)
    np.savez(tmp_path / "stored.npz", labels=np.arange(7), arr_0=ordered)
    np.savez_compressed(tmp_path / "compressed.npz", arr_0=ordered)
    np.savez(tmp_path / "fortran.npz", arr_0=np.asfortranarray(ordered))
    expected = np.broadcast_to(ordered, (7, 6, 5, 3))
    for name in ("folder", "stored.npz", "compressed.npz", "fortran.npz"):
        source = open_images(tmp_path / name)
        batches = list(source.batches(3))
        assert source.count == 7 and [len(b) for b in batches] == [3, 3, 1]
        np.testing.assert_array_equal(np.concatenate(batches), expected)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_images_are_noticed_while_they_are_read(tmp_path, save):
    path = tmp_path / "images.npz"
    save(path, arr_0=some_images(40))
    content = bytearray(path.read_bytes())
    content[1500] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"images\.npz is damaged"):
        list(open_images(path).batches(16))


def test_images_that_will_not_do(tmp_path):
    def refused(message, path=tmp_path):
        with pytest.raises(ValueError, match=message):
            list(open_images(path).batches(4))

    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        open_images(tmp_path / "absent")
    refused("but has none")
    file = tmp_path / "images.npz"
    np.savez(file, samples=np.ones(3))
    refused("as arr_0; found samples", file)
    for wrong in (some_images().astype(float), some_images()[0], some_images()[:0]):
        np.savez(file, arr_0=wrong)
        refused("must be images, uint8", file)
    write_folder(tmp_path, some_images())
    Image.fromarray(some_images()[0][:4]).save(tmp_path / "grid.png")
    refused(r"grid\.png is \(4, 5\), those before are \(6, 5\)")
    Image.fromarray(np.full((6, 5), 1000, np.uint16)).save(tmp_path / "grid.png")
    refused("must have 8 bits")
    (tmp_path / "grid.png").write_bytes(b"nothing")
    refused(r"grid\.png is damaged")


def test_declared_sizes_are_not_believed(tmp_path):
    """Shapes of an array and of an image, with the checksums that go with them."""
    picture = io.BytesIO()
    Image.fromarray(some_images()[0]).save(picture, "PNG")
    content = bytearray(picture.getvalue())
    for side in (9_000, 60_000):
        content[16:24] = struct.pack(">II", side, side)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.png is damaged or no image .*pixels"):
            next(open_images(tmp_path).batches(1))
    header = io.BytesIO()
    fields = {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)}
    np.lib.format.write_array_header_1_0(header, fields)
    with zipfile.ZipFile(tmp_path / "f.npz", "w") as archive:
        archive.writestr("features.npy", header.getvalue() + bytes(400))
    with pytest.raises(ValueError, match=r"has 400 bytes of 4000000000000"):
        load_features(tmp_path / "f.npz")


def test_an_array_whose_name_is_damaged_is_not_taken_for_absent(tmp_path):
    path = tmp_path / "f.npz"
    np.savez(path, features=np.ones((4, 3)), logits=np.ones((4, 2)))
    content = path.read_bytes()
    start = content.rindex(b"logits.npy")
    for place in range(start, start + 10):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            load_features(path)


# -- extraction -----------------------------------------------------------------------


def test_extraction_joins_batches_of_any_size():
    images = some_images(9)

    def both(batch):
        rows = batch.reshape(len(batch), -1)
        return rows[:, :4].astype(np.float16), rows[:, 4:6] / 255

    whole = extract_features(both, [images])
    done = []
    parts = extract_features(both, np.array_split(images, 4), done.append)
    np.testing.assert_array_equal(parts.features, whole.features)
    np.testing.assert_array_equal(parts.logits, whole.logits)
    assert parts.features.dtype == np.float32 and parts.logits.dtype == np.float64
    assert done == [3, 5, 7, 9]


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda x: x[:, 0, 0, 0], r"shape \[4, d\], got \(4,\)"),
        (lambda x: x, r"got \(4, 6, 5, 3\); flatten"),
        (lambda x: x[1:, 0, 0], r"got \(3, 3\)"),
        (lambda x: (x[:, 0, 0],) * 3, "got 3 results"),
        (lambda x: np.ones((len(x), len(x))), "same widths .* got 4 first and 3 after"),
        (lambda x: np.full((len(x), 2), np.inf), "7 of 7 rows hold NaN"),
    ],
)
def test_functions_that_will_not_do(function, message):
    with pytest.raises(ValueError, match=message):
        extract_features(function, [some_images()[:4], some_images()[4:]])


MODULE = """
import numpy as np

number = 3

def pixels(images):
    assert images.dtype == np.uint8 and images.shape[1:] == (6, 5, 3)
    rows = images.reshape(len(images), -1).astype(np.float32)
    return rows[:, :5] / 255, rows[:, 5:8] / 255

class Extractor:
    @staticmethod
    def means(images):
        return images.mean(axis=(1, 2))
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "own_extractor.py").write_text(MODULE)
    (folder / "own_broken.py").write_text("import no_such_package_at_all")
    monkeypatch.syspath_prepend(str(folder))
    yield "own_extractor"
    sys.modules.pop("own_extractor", None)


def test_functions_by_name(module):
    images = some_images()
    assert load_callable(f"{module}:pixels")(images)[0].shape == (7, 5)
    assert load_callable(f"{module}:Extractor.means")(images).shape == (7, 3)
    for name in ("own_extractor", "own_extractor:", ":pixels"):
        with pytest.raises(ValueError, match="package.module:function, got"):
            load_callable(name)
    with pytest.raises(ImportError, match="no module own_absent.*PYTHONPATH"):
        load_callable("own_absent.inner:f")
    with pytest.raises(ImportError, match="no_such_package_at_all"):
        load_callable("own_broken:f")
    with pytest.raises(ImportError, match="has no pixel; it has Extractor, .*pixels"):
        load_callable(f"{module}:pixel")
    with pytest.raises(ValueError, match="but is a int"):
        load_callable(f"{module}:number")


# -- commands -------------------------------------------------------------------------


def run(capsys, *arguments):
    status, out, error = run_cli(capsys, *arguments)
    return status, " ".join(out.split()), error


def test_from_images_to_a_table(capsys, module, tmp_path):
    real, generated = some_images(40), some_images(80)[40:]
    np.savez(tmp_path / "real.npz", arr_0=real)
    write_folder(tmp_path / "generated", generated)
    options = ("--using", f"{module}:pixels", "--batch-size", "16", "--out")
    for images, out in (("real.npz", "a.npz"), ("generated", "b.npz")):
        status, text, error = run(
            capsys,
            "features",
            "--images",
            tmp_path / images,
            *options,
            tmp_path / out,
        )
        assert status == 0, error
        assert "40 images, features of 5 dimensions, logits of 3" in text
    files = ("--features", tmp_path / "b.npz", "--reference", tmp_path / "a.npz")
    status, text, _ = run(capsys, "statistics", *files)
    assert status == 0 and "Fréchet distance" in text and "written" not in text
    table = tmp_path / "new" / "table.json"
    status, text, _ = run(capsys, "statistics", *files, "--out", table, "--splits", "4")
    assert status == 0 and str(table.name) in text and "warning" not in text
    record = json.loads(table.read_text())
    found = record["statistics"]
    a, b = (load_features(tmp_path / f"{name}.npz") for name in "ab")
    assert found == measure(b, a, splits=4)
    assert found["inception_score"] > 1 and f"{found['coverage']:.6g}" in text
    assert len(record["files"]["reference"]["sha256"]) == 64
    np.savez(tmp_path / "c.npz", features=b.features[:5])
    files = ("--features", tmp_path / "c.npz", "--reference", tmp_path / "a.npz")
    status, text, _ = run(capsys, "statistics", *files, "--nearest", "2")
    assert status == 0 and "warning:" in text and "singular" in text


def test_npz_and_folder_give_the_same_features(capsys, module, tmp_path):
    ordered = write_folder(tmp_path / "folder", some_images())
    np.savez(tmp_path / "stored.npz", arr_0=ordered)
    np.savez_compressed(tmp_path / "compressed.npz", arr_0=ordered)
    found = []
    for size, images in enumerate(("folder", "stored.npz", "compressed.npz"), 2):
        arguments = ("--images", tmp_path / images, "--using", f"{module}:pixels")
        options = ("--out", tmp_path / "f.npz", "--batch-size", size)
        assert run(capsys, "features", *arguments, *options)[0] == 0
        found.append(load_features(tmp_path / "f.npz"))
    for other in found[1:]:
        np.testing.assert_array_equal(other.features, found[0].features)
        np.testing.assert_array_equal(other.logits, found[0].logits)


def test_commands_that_fail_leave_nothing(capsys, module, tmp_path):
    images = tmp_path / "images.npz"
    np.savez(images, arr_0=some_images())
    np.savez(tmp_path / "f.npz", features=ROWS)
    before = sorted(tmp_path.iterdir())
    common = ("features", "--images", images, "--using")
    for arguments, message in (
        ((f"{module}:pixels", "--out", tmp_path / "f"), "ending in .npz"),
        ((f"{module}:pixels", "--out", images / "f.npz"), "cannot be made"),
        ((f"{module}:none", "--out", tmp_path / "g.npz"), "has no none"),
        ((f"{module}:number", "--out", tmp_path / "g.npz"), "but is a int"),
        (
            (f"{module}:pixels", "--out", tmp_path / "g.npz", "--batch-size", "0"),
            "batch_size must be at least 1",
        ),
    ):
        status, _, error = run(capsys, *common, *arguments)
        assert status == 2 and message in error, error
    files = ("--features", images, "--reference", tmp_path / "f.npz")
    status, _, error = run(capsys, "statistics", *files)
    assert status == 2 and ARGUMENTS.format(images) in error
    files = ("--features", tmp_path / "f.npz", "--reference", tmp_path / "f.npz")
    status, _, error = run(capsys, "statistics", *files, "--out", tmp_path)
    assert status == 2 and "must be a file in a folder" in error
    status, _, error = run(capsys, "statistics", *files)
    assert status == 2 and "nearest must be" in error
    assert sorted(tmp_path.iterdir()) == before
