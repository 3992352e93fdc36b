"""``WanDecoder``: the causal decoder of Wan 2.1's autoencoder of videos.

Time is causal: a frame depends on itself and those before it. The first latent gives
one frame, each further one four. Every convolution in time sees the last two frames of
its own input, zeros at first, so that latents are decoded one after the other by one
program whose memory does not grow with their number.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from full_models.models.attention import attention
from full_models.models.family import DType
from full_models.models.layers import Conv, Linear

_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
_PAST = 2  # frames that a convolution in time sees besides its own


@dataclasses.dataclass(frozen=True)
class WanVAEConfig:
    """Shape of a ``WanDecoder``; the defaults are Wan 2.1's.

    Attributes:
        latent_channels: channels of a latent.
        base_width: width at full size; inner ones are multiples of it.
        width_multiples: from the frame inwards; each but the last doubles height and
            width.
        doubles_time: from the frame inwards: whether each doubling of the size also
            doubles the number of frames after the first.
        layers_per_block: residual layers of the encoder; the decoder has one more.
        latents_mean: means of the autoencoder's latents, by channel.
        latents_std: their standard deviations, by which the diffusion model divides.
        compute_dtype: of convolutions; norms and softmax are float32 in any case.

    Raises:
        ValueError: for values out of these ranges.
    """

    latent_channels: int = 16
    base_width: int = 96
    width_multiples: tuple[int, ...] = (1, 2, 4, 4)
    doubles_time: tuple[bool, ...] = (False, True, True)
    layers_per_block: int = 2
    latents_mean: tuple[float, ...] = _MEAN
    latents_std: tuple[float, ...] = _STD
    compute_dtype: DType = "float32"

    def __post_init__(self):
        channels, levels = self.latent_channels, len(self.width_multiples)
        count = ("a whole number of at least 1", lambda v: type(v) is int and v >= 1)
        numbers = (f"{channels} numbers", lambda v: len(v) == channels)
        checks = {
            "latent_channels": count,
            "base_width": count,
            "layers_per_block": count,
            "width_multiples": ("whole numbers", lambda v: v and all(map(count[1], v))),
            "doubles_time": (
                f"{levels - 1} times True or False",
                lambda v: len(v) == levels - 1 and all(type(x) is bool for x in v),
            ),
            "latents_mean": numbers,
            "latents_std": (
                f"{channels} numbers above 0",
                lambda v: len(v) == channels and min(v) > 0,
            ),
            "compute_dtype": (
                "'float32' or 'bfloat16'",
                lambda v: v in get_args(DType),
            ),
        }
        for name, (what, holds) in checks.items():
            if not holds(value := getattr(self, name)):
                raise ValueError(f"{name} must be {what}, got {value!r}.")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels from the innermost block outwards."""
        return tuple(self.base_width * m for m in reversed(self.width_multiples))

    @classmethod
    def from_diffusers(cls, found: dict[str, Any]) -> WanVAEConfig:
        """From the content of an ``AutoencoderKLWan``'s ``config.json``.

        Raises:
            ValueError: if a field has a value that this decoder does not implement.
        """
        implemented: dict[str, tuple[Any, ...]] = {
            "_class_name": ("AutoencoderKLWan",),
            "is_residual": (False, None),
            "patch_size": (None, 1),
            "attn_scales": ([], None),
            "in_channels": (3,),
            "out_channels": (3,),
            "decoder_base_dim": (None, found.get("base_dim", 96)),
        }
        for field, values in implemented.items():
            value = found.get(field, values[0])
            if value not in values:
                raise ValueError(
                    f"{field} must be {values[0]!r}, got {value!r}; this decoder is "
                    f"that of Wan 2.1 (Wan 2.2 TI2V-5B has another)."
                )
        names = {
            "z_dim": "latent_channels",
            "base_dim": "base_width",
            "dim_mult": "width_multiples",
            "temperal_downsample": "doubles_time",
            "num_res_blocks": "layers_per_block",
            "latents_mean": "latents_mean",
            "latents_std": "latents_std",
        }
        given: dict[str, Any] = {
            ours: tuple(found[theirs])
            if isinstance(found[theirs], list)
            else found[theirs]
            for theirs, ours in names.items()
            if theirs in found
        }
        return cls(**given)


class WanDecoder(nnx.Module):
    """The decoder of ``AutoencoderKLWan``: from latents to videos.

    Wan team 2025 (arXiv 2503.20314). Products are computed in ``config.compute_dtype``,
    everything else in float32.

    Args:
        config: the shape.
        rngs: Flax random streams.
    """

    def __init__(self, config: WanVAEConfig, *, rngs: nnx.Rngs):
        self.config = config
        dtype, inner = config.compute_dtype, config.widths[0]
        self.post_quant_conv = Linear(
            config.latent_channels, config.latent_channels, dtype=dtype, rngs=rngs
        )
        self.conv_in = CausalConv(config, config.latent_channels, inner, rngs=rngs)
        self.first = ResidualLayer(config, inner, inner, rngs=rngs)
        self.attention = FrameAttention(config, inner, rngs=rngs)
        self.second = ResidualLayer(config, inner, inner, rngs=rngs)
        blocks = []
        doubles = (*reversed(config.doubles_time), None)
        for outer, doubles_time in zip(config.widths, doubles, strict=True):
            blocks.append(UpBlock(config, inner, outer, doubles_time, rngs=rngs))
            inner = outer if doubles_time is None else outer // 2
        self.blocks = nnx.List(blocks)
        self.norm_out = ChannelNorm(inner)
        self.conv_out = CausalConv(config, inner, 3, rngs=rngs)

    @property
    def frames_per_latent(self) -> int:
        """Frames of each latent after the first, which has one."""
        return 2 ** sum(self.config.doubles_time)

    def decode(self, latents: jax.Array, *, latents_at_once: int = 1) -> jax.Array:
        """Decode latents to frames.

        Args:
            latents: ``[n, T, h, w, C]`` as the diffusion model has them, normalized.
            latents_at_once: how many latents after the first are decoded together, at
                least 1; more need more memory and give the same frames.

        Returns:
            Frames ``[n, 4 (T - 1) + 1, 8 h, 8 w, 3]``, float32 in [-1, 1].

        Raises:
            ValueError: for another number of axes or channels, or no latents at once.
        """
        c = self.config
        if latents.ndim != 5 or latents.shape[-1] != c.latent_channels:
            raise ValueError(
                f"latents must have shape [n, T, h, w, {c.latent_channels}], channels "
                f"last, got {latents.shape}."
            )
        if latents_at_once < 1:
            raise ValueError(
                f"latents_at_once must be at least 1, got {latents_at_once}."
            )
        mean, std = (
            jnp.asarray(values, jnp.float32)[None, None, None, None]
            for values in (c.latents_mean, c.latents_std)
        )
        z = latents.astype(jnp.float32) * std + mean
        first, past = self._chunk(z[:, :1], Past(()), is_first=True)
        parts = [first]
        later = z[:, 1:]
        whole = later.shape[1] // latents_at_once * latents_at_once
        if whole:
            shape = (z.shape[0], -1, latents_at_once, *z.shape[2:])
            chunks = later[:, :whole].reshape(shape).swapaxes(0, 1)

            def step(past, chunk):
                frames, past = self._chunk(chunk, Past(past))
                return past, frames

            past, frames = jax.lax.scan(step, past, chunks)
            frames = frames.swapaxes(0, 1)
            parts.append(frames.reshape(z.shape[0], -1, *frames.shape[3:]))
        if whole < later.shape[1]:
            parts.append(self._chunk(later[:, whole:], Past(past))[0])
        return jnp.concatenate(parts, axis=1)

    def _chunk(
        self, z: jax.Array, past: Past, is_first: bool = False
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Frames of some latents in a row, and what their successors need of them."""
        x = self.conv_in(self.post_quant_conv(z), past)
        x = self.second(self.attention(self.first(x, past)), past)
        for block in self.blocks:
            x = block(x, past, is_first)
        x = self.conv_out(jax.nn.silu(self.norm_out(x)), past)
        return jnp.clip(x, -1.0, 1.0), tuple(past.after)


class Past:
    """The last frames of the input of each convolution, in the order of their use.

    Args:
        before: of the latents before, ``[n, 2, H, W, C]`` each; ``()`` before any.
    """

    def __init__(self, before: tuple[jax.Array, ...]):
        self._before = list(before)
        self.after: list[jax.Array] = []

    def extended(self, x: jax.Array) -> jax.Array:
        """The input behind its last two frames, which are zeros at first."""
        first = not self._before
        past = jnp.zeros_like(x[:, :1].repeat(_PAST, 1)) if first else self._pop()
        x = jnp.concatenate([past, x], axis=1)
        self.after.append(x[:, -_PAST:])
        return x

    def skipped(self, x: jax.Array) -> None:
        """Leave a convolution out: its successors see zeros in place of this input."""
        if self._before:
            self._pop()
        self.after.append(jnp.zeros_like(x[:, :1].repeat(_PAST, 1)))

    def _pop(self) -> jax.Array:
        return self._before.pop(0)


class CausalConv(nnx.Module):
    """A convolution over three frames, none of them later, and 3 x 3 places."""

    def __init__(
        self, config: WanVAEConfig, inner: int, outer: int, size: int = 3, *, rngs
    ):
        side = size // 2
        self.conv = Conv(
            inner,
            outer,
            (3, size, size),
            padding=((0, 0), (side, side), (side, side)),
            dtype=config.compute_dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array, past: Past) -> jax.Array:
        """``[n, T, H, W, inner]`` to ``[n, T, H, W, outer]``."""
        return self.conv(past.extended(x))


class ChannelNorm(nnx.Module):
    """Channels of unit mean square, times a learned scale; float32."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones(channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        """The same shape."""
        x = x.astype(jnp.float32)
        square = jnp.sum(x**2, axis=-1, keepdims=True)
        # The norm is at least 1e-12, whose square float32 still resolves.
        unit = x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
        scale = self.scale[...].astype(jnp.float32) * x.shape[-1] ** 0.5
        return unit * jnp.expand_dims(scale, range(x.ndim - 1))


class ResidualLayer(nnx.Module):
    """Twice norm, SiLU and convolution, added to a shortcut."""

    def __init__(self, config: WanVAEConfig, inner: int, outer: int, *, rngs: nnx.Rngs):
        self.norm1 = ChannelNorm(inner)
        self.conv1 = CausalConv(config, inner, outer, rngs=rngs)
        self.norm2 = ChannelNorm(outer)
        self.conv2 = CausalConv(config, outer, outer, rngs=rngs)
        self.shortcut = (
            Linear(inner, outer, dtype=config.compute_dtype, rngs=rngs)
            if inner != outer
            else None
        )

    def __call__(self, x: jax.Array, past: Past) -> jax.Array:
        """``[n, T, H, W, inner]`` to ``[n, T, H, W, outer]``."""
        y = self.conv1(jax.nn.silu(self.norm1(x)), past)
        y = self.conv2(jax.nn.silu(self.norm2(y)), past)
        return y + (x if self.shortcut is None else self.shortcut(x))


class FrameAttention(nnx.Module):
    """Self-attention of all places of a frame with one head; softmax in float32."""

    def __init__(self, config: WanVAEConfig, channels: int, *, rngs: nnx.Rngs):
        self.dtype = config.compute_dtype
        make = functools.partial(Linear, dtype=self.dtype, rngs=rngs)
        self.norm = ChannelNorm(channels)
        self.qkv, self.out = make(channels, 3 * channels), make(channels, channels)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The same shape."""
        n, frames, height, width, channels = x.shape
        places = self.norm(x).reshape(n * frames, height * width, 1, channels)
        parts = jnp.split(self.qkv(places).astype(self.dtype), 3, axis=-1)
        return x + self.out(attention(*parts)).reshape(x.shape)


class UpBlock(nnx.Module):
    """Residual layers; then twice the size, and in some twice the frames.

    Args:
        config: the shape.
        inner: channels of the input.
        outer: channels inside; doubling the size halves them.
        doubles_time: whether the number of frames doubles as well; ``None`` doubles
            nothing.
        rngs: Flax random streams.
    """

    def __init__(
        self,
        config: WanVAEConfig,
        inner: int,
        outer: int,
        doubles_time: bool | None,
        *,
        rngs: nnx.Rngs,
    ):
        widths = [inner] + [outer] * config.layers_per_block
        self.layers = nnx.List(
            ResidualLayer(config, width, outer, rngs=rngs) for width in widths
        )
        self.time_conv = (
            CausalConv(config, outer, 2 * outer, 1, rngs=rngs) if doubles_time else None
        )
        self.conv = (
            None
            if doubles_time is None
            else Conv(outer, outer // 2, (3, 3), dtype=config.compute_dtype, rngs=rngs)
        )

    def __call__(self, x: jax.Array, past: Past, is_first: bool) -> jax.Array:
        """``[n, T, H, W, inner]`` to up to ``[n, 2 T, 2 H, 2 W, outer / 2]``."""
        for layer in self.layers:
            x = layer(x, past)
        if self.time_conv is not None:
            if is_first:  # the first frame passes, and those after it never see it
                past.skipped(x)
            else:
                n, frames, height, width, channels = x.shape
                pairs = self.time_conv(x, past)
                pairs = pairs.reshape(n, frames, height, width, 2, channels)
                x = jnp.moveaxis(pairs, 4, 2).reshape(n, -1, height, width, channels)
        if self.conv is None:
            return x
        return self.conv(x.repeat(2, 2).repeat(2, 3))
