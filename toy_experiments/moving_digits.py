"""Guidance of a small text-to-video model: handwritten digits that move.

The digits of scikit-learn are moved, turned and scaled over nine frames, with captions
such as "three moving left", and a small Wan (the network of the published models) is
trained on them. CFG and S² are compared where reviewers asked the S² paper for numbers:
whether a video shows the digit and the motion of its caption, and how it changes from
frame to frame. Differences are paired: each video starts from the same noise.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import gmm_guidance as gg
from full_models import Prompts, Wan, WanConfig, as_stack, wan_schedule
from full_models.generation.images import to_uint8
from full_models.generation.videos import has_writer, save_mp4, side_by_side
from toy_experiments.common.experiment import Config, Experiment, check_at_least
from toy_experiments.common.images import Classifier
from toy_experiments.common.records import (
    Metrics,
    Record,
    Tables,
    over_seeds,
    plus_minus,
    single,
)
from toy_experiments.common.rules import RULE_COLORS, RULE_TITLES, make_rule
from toy_experiments.common.store import Arrays, Context, Store
from toy_experiments.common.style import PAGE_WIDTH, TRUTH
from toy_experiments.common.sweep import draw_samples_of
from toy_experiments.digits import NUM_CLASSES, load_digits

FRAMES, SIDE = 9, 12
#: Frames that one latent of the network holds as its channels.
GROUP = 3
DIGITS = "zero one two three four five six seven eight nine".split()
_SHIFT, _ANGLE, _GROWTH = 2.0, np.radians(40.0), 0.35  # at the last frame
#: By its words: row and column shift, angle (clockwise) and logarithm of the size.
MOTIONS = {
    "moving left": (0.0, -_SHIFT, 0.0, 0.0),
    "moving right": (0.0, _SHIFT, 0.0, 0.0),
    "moving up": (-_SHIFT, 0.0, 0.0, 0.0),
    "moving down": (_SHIFT, 0.0, 0.0, 0.0),
    "turning left": (0.0, 0.0, -_ANGLE, 0.0),
    "turning right": (0.0, 0.0, _ANGLE, 0.0),
    "growing": (0.0, 0.0, 0.0, _GROWTH),
    "shrinking": (0.0, 0.0, 0.0, -_GROWTH),
}
#: Label ``d + 10 m`` is digit ``d`` under motion ``m``.
CAPTIONS = [f"{digit} {motion}" for motion in MOTIONS for digit in DIGITS]
MEASURES = {
    "digit": "digit of the caption",
    "motion": "motion of the caption",
    "both": "digit and motion",
    "frame_difference": "frame difference",
    "flicker": "flicker",
    "sharpness": "sharpness",
}
_SHOWN = ("three moving left", "eight turning right", "five growing", "two moving up")


# -- data ------------------------------------------------------------------------------


class VideoData(NamedTuple):
    """Videos ``[n, 9, 12, 12]`` in [-1, 1], float32, and labels ``[n]``, int32.

    Attributes:
        train_videos: each training image under every motion.
        train_labels: their captions by number.
        held_videos: of images that no network and no classifier is trained on.
        held_labels: their captions by number.
    """

    train_videos: np.ndarray
    train_labels: np.ndarray
    held_videos: np.ndarray
    held_labels: np.ndarray


def load_videos() -> VideoData:
    """Every image of ``load_digits`` under each motion; nothing is random."""
    data = load_digits()
    train = moved(data.train_images, data.train_labels)
    held = moved(data.held_images, data.held_labels)
    return VideoData(*train, *held)


def moved(images: np.ndarray, digits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Videos of images ``[n, 8, 8, 1]`` under each motion, and their captions.

    The motion is centered: the middle frame is the image itself. Pixels between those
    of the image are interpolated linearly.
    """
    ink = images.reshape(len(images), -1) + 1.0
    times = np.linspace(-1.0, 1.0, FRAMES)
    maps = np.array([[_map(motion, t) for t in times] for motion in MOTIONS.values()])
    videos = np.einsum("np,mfpq->mnfq", ink, maps, optimize=True) - 1.0
    labels = digits[None] + NUM_CLASSES * np.arange(len(MOTIONS))[:, None]
    shape = (-1, FRAMES, SIDE, SIDE)
    return videos.reshape(shape).astype(np.float32), labels.reshape(-1).astype(np.int32)


def _map(motion: tuple[float, float, float, float], time: float) -> np.ndarray:
    """Weights ``[64, 144]`` of the pixels of an image in those of a frame."""
    *shift, angle, growth = time * np.array(motion)
    places = np.mgrid[:SIDE, :SIDE].reshape(2, -1) - (SIDE - 1) / 2.0
    cos, sin = np.cos(angle), np.sin(angle)
    # Back from the frame to the image; rows point down, so this angle is clockwise.
    back = np.array([[cos, -sin], [sin, cos]]) / np.exp(growth)
    source = back @ (places - np.array(shift)[:, None]) + 3.5
    near = [np.maximum(0.0, 1.0 - np.abs(np.arange(8)[:, None] - s)) for s in source]
    return np.einsum("ip,jp->ijp", *near).reshape(64, -1)


def to_latents(videos: np.ndarray) -> np.ndarray:
    """``[n, 9, 12, 12]`` to ``[n, 3, 12, 12, 3]``: three frames as channels."""
    parts = videos.reshape(-1, FRAMES // GROUP, GROUP, SIDE, SIDE)
    return np.moveaxis(parts, 2, -1)


def to_videos(latents: np.ndarray) -> np.ndarray:
    """The inverse of ``to_latents``."""
    return np.moveaxis(latents, -1, 2).reshape(-1, FRAMES, SIDE, SIDE)


def embedded_captions(config: WanConfig) -> np.ndarray:
    """Every caption and the empty one, last: ``[81, text_length, C]``.

    In place of a text encoder each word is a fixed random vector, and so is the end of
    a text; what follows is zero, as behind the texts of UMT5.
    """
    words = sorted({word for caption in CAPTIONS for word in caption.split()})
    vectors = np.random.default_rng(0).normal(size=(len(words) + 1, config.text_width))
    table = np.zeros((len(CAPTIONS) + 1, config.text_length, config.text_width))
    for row, caption in zip(table, [*CAPTIONS, ""], strict=True):
        numbers = [words.index(word) for word in caption.split()] + [len(words)]
        row[: len(numbers)] = vectors[numbers]
    return table.astype(np.float32)


# -- configuration ---------------------------------------------------------------------

_NETWORK = WanConfig(
    latent_shape=(FRAMES // GROUP, SIDE, SIDE),
    in_channels=GROUP,
    width=64,
    depth=8,
    num_heads=4,
    mlp_width=128,
    text_width=16,
    text_length=4,
)
_TRAINING = gg.FitConfig(
    snapshots=(500,),
    batch_size=32,
    learning_rate=2e-3,
    decay_steps=None,
    ema_decay=0.99,
    weight_decay=0.01,
    label_dropout=0.1,
)


@dataclasses.dataclass(frozen=True)
class MovingDigitsConfig(Config):
    """Configuration of ``moving_digits``.

    Attributes:
        num_samples: videos of each rule and network, a multiple of the 80 captions.
        num_steps: steps of UniPC.
        network: shape of the network; its latents hold 9 frames of 12 x 12 pixels.
        training: its training; the last snapshot is evaluated.
        shift: of the noise levels, > 0.
        scales: total scales of CFG, > 1; the last is that of sheet and video.
        s2_scales: weights of S², > 0; the first is that of sheet and video.
    """

    seeds: int = 2
    num_samples: int = 240
    num_steps: int = 16
    network: WanConfig = _NETWORK
    training: gg.FitConfig = _TRAINING
    shift: float = 3.0
    scales: tuple[float, ...] = (2.0, 4.0)
    s2_scales: tuple[float, ...] = (0.25, 0.5)

    QUICK: ClassVar[dict[str, Any]] = Config.QUICK | {
        "num_samples": 80,
        "num_steps": 6,
        "network": dataclasses.replace(_NETWORK, width=32, depth=4, mlp_width=64),
        "training": dataclasses.replace(_TRAINING, snapshots=(80,), batch_size=32),
        "scales": (3.0,),
        "s2_scales": (0.25,),
    }

    def __post_init__(self):
        super().__post_init__()
        if self.num_samples % len(CAPTIONS):
            raise ValueError(
                f"num_samples must be a multiple of the {len(CAPTIONS)} captions, got "
                f"{self.num_samples}."
            )
        # The rarest digit has 52 held-out images.
        if self.num_samples > (most := 50 * len(CAPTIONS)):
            raise ValueError(
                f"num_samples must be at most {most}, got {self.num_samples}; there "
                f"are no more held-out videos of each caption."
            )
        check_at_least(2, num_steps=self.num_steps)
        if not self.scales or min(self.scales) <= 1 or min(self.s2_scales) <= 0:
            raise ValueError(
                f"scales must be > 1 and s2_scales > 0, got {self.scales} and "
                f"{self.s2_scales}."
            )
        shape, channels = self.network.latent_shape, self.network.in_channels
        if (shape, channels) != (_NETWORK.latent_shape, GROUP):
            raise ValueError(
                f"the network must draw {_NETWORK.latent_shape} latents of {GROUP} "
                f"channels, got {shape} of {channels}."
            )

    @property
    def settings(self) -> list[Setting]:
        """No guidance, CFG at each scale, and S² at each scale and weight."""
        cfg = [Setting("cfg", scale) for scale in self.scales]
        s2 = [Setting("s2", s, w) for s in self.scales for w in self.s2_scales]
        return [Setting("unguided"), *cfg, *s2]

    @property
    def shown(self) -> list[Setting]:
        """Settings of sheet and video."""
        scale = self.scales[-1]
        s2 = Setting("s2", scale, self.s2_scales[0])
        return [Setting("unguided"), Setting("cfg", scale), s2]


class Setting(NamedTuple):
    """One rule with its numbers.

    Attributes:
        rule: ``"unguided"``, ``"cfg"`` or ``"s2"``.
        scale: total CFG scale; 1 = off.
        s2_scale: weight of S², 0 without.
    """

    rule: str
    scale: float = 1.0
    s2_scale: float = 0.0

    @property
    def title(self) -> str:
        """For figures."""
        numbers = [f"{n:g}" for n in (self.scale, self.s2_scale) if n not in (0.0, 1.0)]
        return " ".join([RULE_TITLES[self.rule], ", ".join(numbers)]).strip()


# -- computation -----------------------------------------------------------------------


def compute(config: MovingDigitsConfig, store: Store) -> tuple[Tables, Arrays]:
    """Train, draw the same noise under every rule, measure and compare."""
    data = load_videos()
    judges = Judges.fit(data)
    labels = np.arange(config.num_samples, dtype=np.int32) % len(CAPTIONS)
    held = _held_out(data, labels)
    networks = []
    for seed in range(config.seeds):
        arrays = store.cell(train_network, config.network, config.training, seed)
        networks.append(_network(config.network, arrays))
    schedule = wan_schedule(config.num_steps, config.shift)

    def draw_one(setting: Setting, seed: int) -> np.ndarray:
        return store.cell(
            draw_videos, networks[seed], setting, schedule, labels, 1000 + seed
        )["videos"]

    found = store.map(
        "moving digits under each rule",
        draw_one,
        [(s, seed) for s in config.settings for seed in range(config.seeds)],
        program=lambda item: item[0].rule,
    )
    values = {item: judges.measure(videos, labels) for item, videos in found.items()}
    moments = gg.metrics.feature_moments(judges.motion.features(data.train_videos))

    def means(setting: Setting, seed: int) -> dict[str, float]:
        features = judges.motion.features(found[setting, seed])
        own = {name: float(v.mean()) for name, v in values[setting, seed].items()}
        return own | {"frechet": gg.metrics.frechet_distance(features, moments)}

    def changes(setting: Setting) -> Record:
        cfg = Setting("cfg", setting.scale)
        seeds = range(config.seeds)
        return _paired(
            [values[setting, i] for i in seeds], [values[cfg, i] for i in seeds]
        )

    tables: Tables = {
        "real": [{n: float(v.mean()) for n, v in judges.measure(held, labels).items()}],
        "settings": [
            s._asdict() | over_seeds([means(s, seed) for seed in range(config.seeds)])
            for s in config.settings
        ],
        "paired": [s._asdict() | changes(s) for s in config.settings if s.rule == "s2"],
    }
    shown = {"real videos": held} | {s.title: found[s, 0] for s in config.shown}
    places = [CAPTIONS.index(caption) for caption in _SHOWN]
    if has_writer():
        byte = {
            name: np.asarray(to_uint8(videos[places]))[..., None]
            for name, videos in shown.items()
        }
        save_mp4(store.folder("moving_digits") / "rules.mp4", side_by_side(byte), 6)
    return tables, {
        "sheet": np.stack([videos[places] for videos in shown.values()]),
        "sheet_names": np.array(list(shown)),
    }


def train_network(
    context: Context, config: WanConfig, training: gg.FitConfig, seed: int
) -> Arrays:
    """Train on all training videos; the arrays of the network. Resumes bit for bit.

    The loss is the mean squared error of the velocity at flow times whose logit is
    standard normal (Esser et al. 2024, arXiv 2403.03206).
    """
    data = load_videos()
    network = Wan(config, rngs=nnx.Rngs(seed))
    table = jnp.asarray(embedded_captions(config))
    title = f"training a video model on moving digits, seed {seed}"
    with context.reporter.task(title, training.snapshots[-1]) as task:
        run = gg.train(
            jax.random.key(seed),
            network,
            (to_latents(data.train_videos), data.train_labels),
            training,
            loss=functools.partial(velocity_loss, table, training.label_dropout),
            progress=lambda report: task.move_to(report.step, report.detail),
            checkpoint=context.checkpoint,
            mesh=context.mesh,
        )
    return {str(i): np.asarray(a) for i, a in enumerate(jax.tree.leaves(run.network))}


def velocity_loss(
    table: jax.Array,
    label_dropout: float,
    network: Wan,
    key: jax.Array,
    latents: jax.Array,
    labels: jax.Array,
) -> jax.Array:
    """Mean squared error of the velocity on a batch, a scalar."""
    n = len(latents)
    time_key, noise_key, drop_key = jax.random.split(key, 3)
    time = jax.nn.sigmoid(jax.random.normal(time_key, (n,)))
    noise = jax.random.normal(noise_key, latents.shape)
    dropped = jax.random.bernoulli(drop_key, label_dropout, (n,))
    labels = jnp.where(dropped, len(CAPTIONS), labels)
    level = time.reshape(n, 1, 1, 1, 1)
    noisy = (1.0 - level) * latents + level * noise
    velocity = network.bind(table).predict(noisy, time, labels)
    return jnp.mean((velocity - (noise - latents)) ** 2)


def _network(config: WanConfig, arrays: Arrays) -> Any:
    """The model of stored arrays, with the captions as its labels."""
    abstract = jax.eval_shape(lambda: Wan(config, rngs=nnx.Rngs(0)))
    leaves = [jnp.asarray(arrays[str(i)]) for i in range(len(arrays))]
    network = jax.tree.unflatten(jax.tree.structure(abstract), leaves)
    table = embedded_captions(config)
    return as_stack(network).with_prompts(Prompts(table[:-1], table[-1]))


def draw_videos(
    context: Context,
    network: Any,
    setting: Setting,
    schedule: Any,
    labels: np.ndarray,
    key: int,
) -> Arrays:
    """Videos of captions under a rule. The noise depends on key and index alone."""
    rule = make_rule(setting.rule, setting.scale, setting.s2_scale)
    latents = draw_samples_of(
        network,
        rule,
        schedule,
        jax.random.key(key),
        labels,
        mesh=context.mesh,
        solver="unipc",
    )
    return {"videos": to_videos(np.asarray(latents))}


def _held_out(data: VideoData, labels: np.ndarray) -> np.ndarray:
    """A held-out video of each label, none twice."""
    places = {label: np.flatnonzero(data.held_labels == label) for label in set(labels)}
    counts = np.arange(len(labels)) // len(CAPTIONS)
    chosen = [places[lab][i] for lab, i in zip(labels, counts, strict=True)]
    return data.held_videos[chosen]


def _middle(videos: np.ndarray) -> np.ndarray:
    return videos[:, FRAMES // 2]


@dataclasses.dataclass(frozen=True)
class Judges:
    """Classifiers of digit and motion, trained on real videos.

    Attributes:
        digit: sees the middle frame, in which the image has not moved.
        motion: sees the whole video.
    """

    digit: Classifier
    motion: Classifier

    @classmethod
    def fit(cls, data: VideoData) -> Judges:
        """Each training image under two of its motions: the same for the same data."""
        count = len(data.train_videos) // len(MOTIONS)
        images = np.arange(count)
        places = [(images + shift) % len(MOTIONS) * count + images for shift in (0, 4)]
        chosen = np.concatenate(places)
        videos, labels = data.train_videos[chosen], data.train_labels[chosen]
        return cls(
            Classifier.fit(_middle(videos)[:count], labels[:count] % NUM_CLASSES, 64),
            Classifier.fit(videos, labels // NUM_CLASSES, 32),
        )

    def measure(self, videos: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """``MEASURES`` of each video, ``[n]``; correct is 1, wrong is 0."""
        digit = self.digit.predict(_middle(videos)) == labels % NUM_CLASSES
        motion = self.motion.predict(videos) == labels // NUM_CLASSES
        temporal = gg.metrics.temporal_statistics(videos[..., None])
        return {
            "digit": digit.astype(float),
            "motion": motion.astype(float),
            "both": (digit & motion).astype(float),
            "frame_difference": temporal.frame_difference,
            "flicker": temporal.flicker,
            "sharpness": temporal.sharpness.mean(axis=1),
        }


def _paired(
    values: list[dict[str, np.ndarray]], cfg: list[dict[str, np.ndarray]]
) -> Record:
    """Changes against CFG at the same scale, with 95 % intervals over all videos.

    The interval is over noise and captions, for these networks; seeds of the training
    are too few for an interval of their own and are listed.
    """
    record: Record = {}
    for name in MEASURES:
        changes = [a[name] - b[name] for a, b in zip(values, cfg, strict=True)]
        together = np.concatenate(changes)
        mean, error = gg.metrics.mean_and_standard_error(together)
        low, high = gg.metrics.confidence_interval(together)
        record[name] = {
            "mean": float(mean),
            "standard_error": float(error),
            "interval_95": [float(low), float(high)],
        }
        record[f"{name}_by_seed"] = [float(change.mean()) for change in changes]
    return record


# -- figures and text ------------------------------------------------------------------


def draw(metrics: Metrics, data: Arrays) -> dict[str, Figure]:
    """The measures of each rule, and a sheet of frames."""
    return {"figure": _draw_measures(metrics), "sheet": _draw_sheet(data)}


def _draw_measures(metrics: Metrics) -> Figure:
    records = metrics["tables"]["settings"]
    figure, axes = plt.subplots(2, 3, figsize=(PAGE_WIDTH, 3.6))
    names = [_setting(record).title for record in records]
    (real,) = metrics["tables"]["real"]
    for ax, (name, title) in zip(axes.flat, MEASURES.items(), strict=True):
        for place, record in enumerate(records):
            ax.errorbar(
                record[name]["mean"],
                place,
                xerr=record[name]["standard_error"],
                marker="o",
                markersize=3.5,
                capsize=1.5,
                color=RULE_COLORS[record["rule"]],
            )
        ax.axvline(real[name], color=TRUTH, linewidth=0.9)
        ax.set_title(title)
        ax.invert_yaxis()
        _rows(ax, names if ax in axes[:, 0] else [""] * len(names))
    figure.suptitle("gray: real videos; bars: standard error over networks", fontsize=8)
    return figure


def _rows(ax: Axes, names: list[str]) -> None:
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(axis="y", length=0)


def _draw_sheet(data: Arrays) -> Figure:
    """For each caption a row of frames under each rule."""
    names, sheet = [str(name) for name in data["sheet_names"]], data["sheet"]
    figure, axes = plt.subplots(2, 2, figsize=(PAGE_WIDTH, 3.4))
    for index, (ax, caption) in enumerate(zip(axes.flat, _SHOWN, strict=True)):
        tiles = np.pad(
            sheet[:, index], [(0, 0), (0, 0), (0, 1), (0, 1)], constant_values=1.0
        )
        picture = tiles.transpose(0, 2, 1, 3).reshape(len(names) * (SIDE + 1), -1)
        ax.imshow(picture[:-1, :-1], cmap="gray", vmin=-1, vmax=1)
        places = (SIDE + 1) * np.arange(len(names)) + SIDE / 2
        ax.set_yticks(places, names if ax in axes[:, 0] else [""] * len(names))
        ax.tick_params(length=0)
        ax.set_xticks([])
        ax.spines[:].set_visible(False)
        ax.set_title(caption)
    return figure


def _setting(record: Record) -> Setting:
    return Setting(record["rule"], record["scale"], record["s2_scale"])


def _change(entry: Record, digits: int = 3) -> str:
    low, high = entry["interval_95"]
    d = f"+.{digits}f"
    return f"{entry['mean']:{d}} [{low:{d}}, {high:{d}}]".replace("-", "−")


def summarize(metrics: Metrics) -> list[str]:
    """Accuracy of each rule, and what S² changes."""
    lines = [
        f"{_setting(r).title}: digit and motion {plus_minus(r['both'])}, flicker "
        f"{plus_minus(r['flicker'])}"
        for r in metrics["tables"]["settings"]
    ]
    return lines + [
        f"{_setting(r).title} minus CFG: digit and motion {_change(r['both'])}, "
        f"flicker {_change(r['flicker'], 4)}"
        for r in metrics["tables"]["paired"]
    ]


def page(metrics: Metrics) -> str:
    """Findings, figures and tables in Markdown."""
    (real,) = metrics["tables"]["real"]
    head = ["rule", *MEASURES.values(), "Fréchet distance"]
    rows = [["real videos", *(f"{real[name]:.3f}" for name in MEASURES), ""]]
    rows += [
        [_setting(r).title, *(plus_minus(r[n]) for n in (*MEASURES, "frechet"))]
        for r in metrics["tables"]["settings"]
    ]
    changes = [
        [_setting(r).title, *(_change(r[name]) for name in MEASURES)]
        for r in metrics["tables"]["paired"]
    ]
    config = metrics["config"]
    return "\n\n".join(
        [
            *_findings(metrics),
            "![Frames under each rule](figures/moving_digits_sheet.png)",
            "![Measures of each rule](figures/moving_digits_figure.png)",
            _table(head, rows),
            "S² minus CFG at the same scale, paired by noise and caption, with 95 % "
            "intervals over the videos of all networks:",
            _table(head[:-1], changes),
            f"{metrics['seeds']} networks of width {config['network']['width']} and "
            f"depth {config['network']['depth']}, "
            f"{config['training']['snapshots'][-1]} steps with batches "
            f"of {config['training']['batch_size']}; "
            f"{config['num_samples']} videos of each rule and network, "
            f"{config['num_steps']} steps of UniPC at shift {config['shift']:g}. Mean "
            f"± standard error over the networks. Digit and motion are read by "
            f"classifiers trained on real videos, the digit in the middle frame; the "
            f"Fréchet distance is to all training videos, in features of the other.",
        ]
    )


def _findings(metrics: Metrics) -> list[str]:
    """A sentence for each scale and weight."""
    result = []
    for record in metrics["tables"]["paired"]:
        setting = _setting(record)
        cfg = single(metrics, "settings", rule="cfg", scale=setting.scale)
        own = single(metrics, "settings", **setting._asdict())
        words = []
        for name, title in MEASURES.items():
            low, high = record[name]["interval_95"]
            if low > 0 or high < 0:
                words.append(f"{title} {_change(record[name])}")
        text = ", ".join(words) or "nothing beyond its intervals"
        result.append(
            f"**{setting.title}.** Digit and motion {plus_minus(own['both'])}, with "
            f"CFG alone {plus_minus(cfg['both'])}. S² changes {text}."
        )
    return result


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


EXPERIMENT = Experiment(
    "moving_digits",
    "images",
    "CFG and S² on a small text-to-video model (Wan) of handwritten digits that move",
    MovingDigitsConfig,
    compute,
    draw,
    summarize,
    page,
    needs=("sklearn", "digits"),
)
