"""The temporal autoencoder: an image autoencoder (LDM's) inflated in time, 8 x 8 x 8 compression to 16 channels.

After each 3 x 3 spatial convolution stands a temporal one of 3 frames, after the spatial attention a temporal one ("2.5D",
Movie Gen, section on the TAE). Nothing is causal: time is padded on both sides by repeating the frame at the edge, so
that a single frame sees only itself. Temporal convolutions begin as the identity and temporal attention adds zero: a model
whose spatial weights are those of an image autoencoder gives that model's result on every single frame.

Legend of suffixes: B batch, T frames, H height, W width, C channels, N = B x T frames, P = H x W pixels. Between the
layers activations are x_BTHWC in one piece of memory: both a batch of frames (N, C, H, W) and a batch of pixel rows
(B, C, T, P) are views of it, channels last, so no operator asks for a copy.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training_bridge.tae.cosines import Cosines

Scale = Literal["same", "down", "up"]
START_LOGVAR = -10.0
"""Of a model with skip: its latents mean something from the first step on, and noise of size 1 would hide it."""
SEQUENCES = 2**15
"""Most sequences of one attention call; CUDA kernels count them in 16 bits."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture, and two settings that change memory but no result."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    width: int = 128
    """Channels at full resolution."""
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    """Channels of each level as a multiple of `width`; each level but the last halves height and width."""
    encoder_blocks: tuple[int, ...] = (2, 2, 2, 2)
    """Residual blocks of each level, from pixels to latents."""
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 3)
    """The same of the decoder, in the same order of levels."""
    halves_time: tuple[bool, ...] = (True, True, True)
    """Which of the steps between the levels halve time too."""
    latent_channels: int = 16
    groups: int = 32
    """Groups of each normalisation, over one frame."""
    skip: bool = False
    """The low frequencies of each 8 x 8 x 8 block go round the encoder into the latents, and from them round the decoder
    (in the spirit of DC-AE's averages, arXiv 2410.10733); the layers learn what to add. A small model then trains in
    minutes. One with published image weights has none."""
    checkpoint: bool = False
    """Keep only the residual blocks' inputs for the backward pass, and compute the rest again."""
    chunk_elements: int = 2**28
    """Largest tensor that one spatial or temporal operator is given; larger ones go through in parts. Neither cuDNN nor
    attention kernels can count 2^31 elements, which 32 frames of 768 x 768 with 128 channels have."""

    def __post_init__(self) -> None:
        levels = len(self.multipliers)
        if not len(self.encoder_blocks) == len(self.decoder_blocks) == len(self.halves_time) + 1 == levels:
            raise ValueError(
                f"{levels} multipliers need as many encoder_blocks and decoder_blocks and one halves_time less, not "
                f"{len(self.encoder_blocks)}, {len(self.decoder_blocks)} and {len(self.halves_time)}"
            )
        if wrong := [c for c in self.channels if c % self.groups]:
            raise ValueError(f"{wrong[0]} channels do not divide into {self.groups} groups")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.width * multiplier for multiplier in self.multipliers)

    @property
    def frames_per_latent(self) -> int:
        """How many frames become one: 8."""
        return int(2 ** sum(self.halves_time))

    @property
    def pixels_per_latent(self) -> int:
        """How many pixels of a side become one: 8."""
        return int(2 ** len(self.halves_time))

    def architecture(self) -> dict[str, Any]:
        """What decides results and the names and shapes of weights."""
        return {k: v for k, v in asdict(self).items() if k not in ("checkpoint", "chunk_elements")}

    def cosines(self) -> Cosines:
        """What goes round the layers of a model with `skip`."""
        return Cosines(self.latent_channels, self.frames_per_latent, self.pixels_per_latent)

    def latent_frames(self, frames: int) -> int:
        """T = ceil(T' / 8)."""
        return -(-frames // self.frames_per_latent)


FULL = ModelConfig()
"""The size of the published image autoencoders of LDM, Stable Diffusion and their kin."""
TINY = ModelConfig(
    width=8, multipliers=(1, 4, 8, 16), encoder_blocks=(0, 0, 1, 1), decoder_blocks=(0, 0, 1, 1), groups=4, skip=True
)
"""Trains in minutes on two cores, for tests and the demo."""
SIZES = {"tiny": TINY, "full": FULL}


def in_parts(f: Callable[[Tensor], Tensor], x: Tensor, dim: int, size: int) -> Tensor:
    """`f` over slices of at most `size` along `dim`, which it must not mix."""
    count = x.shape[dim]
    if count <= max(1, size):
        return f(x)
    starts = range(0, count, max(1, size))
    parts = (f(x.narrow(dim, start, min(max(1, size), count - start))) for start in starts)
    if torch.is_grad_enabled():
        return torch.cat(list(parts), dim)
    whole = None  # without gradients the parts need not stand beside the whole
    for start, part in zip(starts, parts, strict=True):
        if whole is None:
            whole = part.new_empty(*part.shape[:dim], count, *part.shape[dim + 1 :])
        whole.narrow(dim, start, part.shape[dim]).copy_(part)
    assert whole is not None
    return whole


def frames_of(x_BTHWC: Tensor) -> Tensor:
    """A batch of images (N, C, H, W), a view."""
    return x_BTHWC.flatten(0, 1).permute(0, 3, 1, 2)


class Norm(nn.GroupNorm):
    """Group normalisation of each frame by itself, so that an image in a video is what it is alone."""

    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__(config.groups, channels, eps=1e-6)


class Conv(nn.Module):
    """A spatial convolution, then a temporal one that begins as the identity; before them, where asked, norm and SiLU.

    `scale` "down" halves height and width by a stride, "up" doubles them by the nearest pixel, before the convolution; with
    `time` the frames likewise, before or in the temporal convolution.
    """

    def __init__(
        self, config: ModelConfig, inputs: int, outputs: int, *, norm: bool = True, scale: Scale = "same", time: bool = False
    ) -> None:
        super().__init__()
        self.limit, self.scale, self.doubles = config.chunk_elements, scale, scale == "up" and time
        self.norm = Norm(config, inputs) if norm else None
        self.space = nn.Conv2d(inputs, outputs, 3, stride=2 if scale == "down" else 1, padding=0 if scale == "down" else 1)
        self.time = nn.Conv2d(outputs, outputs, (3, 1), stride=(2 if scale == "down" and time else 1, 1))
        nn.init.zeros_(self.time.weight)
        with torch.no_grad():
            self.time.weight[:, :, 1, 0].copy_(torch.eye(outputs))
        assert self.time.bias is not None
        nn.init.zeros_(self.time.bias)

    def forward(self, x_BTHWC: Tensor, frames: int | None = None) -> Tensor:
        """`frames` are kept of what was doubled: the last one may come from a single frame, as in the encoder."""
        B, T, H, W, C = x_BTHWC.shape
        largest = max(C, self.space.out_channels) * H * W * (4 if self.scale == "up" else 1)
        x_NHWC = in_parts(self._space, x_BTHWC.flatten(0, 1), 0, self.limit // largest)
        H, W, C = x_NHWC.shape[1:]
        x_BTPC = x_NHWC.view(B, T, H * W, C)
        T = frames or (2 * T if self.doubles else T)
        x_BTPC = in_parts(lambda part: self._time(part, T), x_BTPC, 2, self.limit // (B * (T + 2) * C))
        return x_BTPC.view(B, -1, H, W, C)

    def _space(self, x_NHWC: Tensor) -> Tensor:
        x_NCHW = x_NHWC.permute(0, 3, 1, 2)
        if self.norm is not None:
            x_NCHW = F.silu(self.norm(x_NCHW))
        if self.scale == "up":
            x_NCHW = F.interpolate(x_NCHW, scale_factor=2.0)
        elif self.scale == "down":
            x_NCHW = F.pad(x_NCHW, (0, 1, 0, 1))  # on the right and below only, as the image model does
        return channels_last(self.space(x_NCHW))

    def _time(self, x_BTPC: Tensor, frames: int) -> Tensor:
        if self.doubles:
            x_BTPC = x_BTPC.repeat_interleave(2, dim=1)[:, :frames]
        x_BTPC = torch.cat([x_BTPC[:, :1], x_BTPC, x_BTPC[:, -1:]], dim=1)
        return channels_last(self.time(x_BTPC.permute(0, 3, 1, 2)))


def channels_last(x_NCHW: Tensor) -> Tensor:
    """(N, H, W, C) in one piece; no copy where the operator before left it so."""
    return x_NCHW.permute(0, 2, 3, 1).contiguous()


class ResBlock(nn.Module):
    """Two convolutions round which the input goes."""

    def __init__(self, config: ModelConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = Conv(config, inputs, outputs)
        self.conv2 = Conv(config, outputs, outputs)
        self.shortcut = nn.Linear(inputs, outputs) if inputs != outputs else None
        self.limit, self.most = config.chunk_elements, max(inputs, outputs)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        y_BTHWC: Tensor = self.conv2(self.conv1(x_BTHWC))
        if self.shortcut is None:
            return x_BTHWC + y_BTHWC
        _, _, H, W, _ = x_BTHWC.shape
        x_NHWC = in_parts(self.shortcut, x_BTHWC.flatten(0, 1), 0, self.limit // (H * W * self.most))
        return y_BTHWC + x_NHWC.view_as(y_BTHWC)


class Attention(nn.Module):
    """One head over the pixels of each frame or, `temporal`, over the frames of each pixel, added to the input."""

    def __init__(self, config: ModelConfig, channels: int, *, temporal: bool) -> None:
        super().__init__()
        self.limit, self.temporal = config.chunk_elements, temporal
        self.norm = Norm(config, channels)
        self.q, self.k, self.v, self.out = (nn.Linear(channels, channels) for _ in range(4))
        if temporal:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        B, T, H, W, C = x_BTHWC.shape
        y_BTHWC = channels_last(self.norm(frames_of(x_BTHWC))).view(B, T, H, W, C)
        if not self.temporal:
            y_NPC = in_parts(self._attend, y_BTHWC.view(B * T, H * W, C), 0, self.limit // (H * W * C))
            return x_BTHWC + y_NPC.view(B, T, H, W, C)
        y = y_BTHWC.view(B, T, H * W, C).transpose(1, 2).reshape(B * H * W, T, C)
        y = in_parts(self._attend, y, 0, min(SEQUENCES, self.limit // (T * C)))
        return x_BTHWC + y.view(B, H * W, T, C).transpose(1, 2).reshape(B, T, H, W, C)

    def _attend(self, x_NLC: Tensor) -> Tensor:
        q, k, v = (layer(x_NLC).unsqueeze(1) for layer in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).squeeze(1))  # type: ignore[no-any-return]


class Middle(nn.Module):
    """The deepest level's block, attention over space and over time, and another block."""

    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__()
        self.block1 = ResBlock(config, channels, channels)
        self.space = Attention(config, channels, temporal=False)
        self.time = Attention(config, channels, temporal=True)
        self.block2 = ResBlock(config, channels, channels)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        return self.block2(self.time(self.space(self.block1(x_BTHWC))))  # type: ignore[no-any-return]


class Resize(Conv):
    """The step between two levels: half the height and width, or twice, and the frames where the level says so."""

    def __init__(self, config: ModelConfig, inputs: int, outputs: int, *, scale: Scale, time: bool) -> None:
        super().__init__(config, inputs, outputs, norm=False, scale=scale, time=time)


def run(layer: nn.Module, x_BTHWC: Tensor, config: ModelConfig, *more: int) -> Tensor:
    """A layer's result; where the config says so, what is inside it is computed again for the backward pass."""
    if config.checkpoint and torch.is_grad_enabled():
        return checkpoint(layer, x_BTHWC, *more, use_reentrant=False)  # type: ignore[no-any-return]
    return layer(x_BTHWC, *more)  # type: ignore[no-any-return]


def begin_at(conv: Conv, values: Tensor) -> None:
    """A convolution whose result is these values at first, whatever its input."""
    nn.init.zeros_(conv.space.weight)
    assert conv.space.bias is not None
    with torch.no_grad():
        conv.space.bias.copy_(values)


def into_layers(x_BCTHW: Tensor) -> Tensor:
    """x_BTHWC in one piece."""
    return x_BCTHW.permute(0, 2, 3, 4, 1).contiguous()


def per_channel(values_C: Tensor) -> Tensor:
    """(C, 1, 1, 1), to stand beside (B, C, T, H, W)."""
    return values_C.view(-1, 1, 1, 1)


class Encoder(nn.Module):
    """Pixels (B, 3, T', H', W') in [-1, 1] to mean and log-variance of latents (B, C, ceil(T' / 8), H' / 8, W' / 8).

    `shift` and `scale` are the latents' own per-channel mean and standard deviation over a training set (`measured`):
    what leaves the autoencoder, to be stored or modelled, is `normalised`.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config, channels = config, config.channels
        self.conv_in = Conv(config, 3, channels[0], norm=False)
        self.levels, width = nn.ModuleList(), channels[0]
        for level, outputs in enumerate(channels):
            layers: list[nn.Module] = []
            for _ in range(config.encoder_blocks[level]):
                layers.append(ResBlock(config, width, outputs))
                width = outputs
            if level < len(config.halves_time):
                outputs = width if config.encoder_blocks[level + 1] else channels[level + 1]
                layers.append(Resize(config, width, outputs, scale="down", time=config.halves_time[level]))
                width = outputs
            self.levels.append(nn.ModuleList(layers))
        self.middle = Middle(config, width)
        self.conv_out = Conv(config, width, 2 * config.latent_channels)
        self.around = config.cosines() if config.skip else None
        if config.skip:
            begin_at(self.conv_out, torch.tensor([0.0, START_LOGVAR]).repeat_interleave(config.latent_channels))
        self.register_buffer("shift", torch.zeros(config.latent_channels))
        self.register_buffer("scale", torch.ones(config.latent_channels))

    def forward(self, x_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """Raises ValueError where height or width is not a multiple of 8."""
        size = self.config.pixels_per_latent
        if x_BCTHW.ndim != 5 or x_BCTHW.shape[1] != 3 or x_BCTHW.shape[3] % size or x_BCTHW.shape[4] % size:
            raise ValueError(f"pixels are (B, 3, T, H, W) with H and W multiples of {size}, not {tuple(x_BCTHW.shape)}")
        x_BTHWC = self.conv_in(into_layers(x_BCTHW))
        for level in self.levels:
            assert isinstance(level, nn.ModuleList)
            for layer in level:
                x_BTHWC = run(layer, x_BTHWC, self.config)
        out_BTHWC = self.conv_out(run(self.middle, x_BTHWC, self.config))
        mean_BCTHW, logvar_BCTHW = (half.contiguous() for half in out_BTHWC.float().permute(0, 4, 1, 2, 3).chunk(2, dim=1))
        if self.around is not None:
            mean_BCTHW = mean_BCTHW + self.around(x_BCTHW)
        return mean_BCTHW, logvar_BCTHW.clamp(-30.0, 20.0)

    def normalised(self, z_BCTHW: Tensor) -> Tensor:
        """Latents with mean 0 and standard deviation 1 in each channel over the training set."""
        return (z_BCTHW - per_channel(self.shift)) / per_channel(self.scale)

    def denormalised(self, z_BCTHW: Tensor) -> Tensor:
        """What the decoder takes."""
        return z_BCTHW * per_channel(self.scale) + per_channel(self.shift)


class Decoder(nn.Module):
    """Latents (B, C, T, H, W) to pixels (B, 3, frames, 8 H, 8 W), about [-1, 1]: 8 T frames, or as many as are asked for.

    Surplus frames are dropped at each level where they arise, so that all levels are as long as the encoder's, and an
    image costs what it costs an image model.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config, channels = config, config.channels
        width = channels[-1]
        self.conv_in = Conv(config, config.latent_channels, width, norm=False)
        self.middle = Middle(config, width)
        self.levels = nn.ModuleList()
        for level in reversed(range(len(channels))):
            layers: list[nn.Module] = []
            for _ in range(config.decoder_blocks[level]):
                layers.append(ResBlock(config, width, channels[level]))
                width = channels[level]
            if level:
                outputs = width if config.decoder_blocks[level - 1] else channels[level - 1]
                layers.append(Resize(config, width, outputs, scale="up", time=config.halves_time[level - 1]))
                width = outputs
            self.levels.append(nn.ModuleList(layers))
        self.conv_out = Conv(config, width, 3)
        self.around = config.cosines() if config.skip else None
        if config.skip:
            begin_at(self.conv_out, torch.zeros(3))

    def forward(self, z_BCTHW: Tensor, frames: int | None = None) -> Tensor:
        """Raises ValueError where so many frames are not what these latents are of."""
        T = z_BCTHW.shape[2]
        frames = frames or T * self.config.frames_per_latent
        if z_BCTHW.ndim != 5 or z_BCTHW.shape[1] != self.config.latent_channels or self.config.latent_frames(frames) != T:
            raise ValueError(
                f"latents are (B, {self.config.latent_channels}, {self.config.latent_frames(frames)}, H, W) for {frames} "
                f"frames, not {tuple(z_BCTHW.shape)}"
            )
        lengths = self._lengths(frames)
        x_BTHWC = run(self.middle, self.conv_in(into_layers(z_BCTHW)), self.config)
        for level in self.levels:
            assert isinstance(level, nn.ModuleList)
            for layer in level:
                more = (lengths.pop(),) if isinstance(layer, Resize) else ()
                x_BTHWC = run(layer, x_BTHWC, self.config, *more)
        x_BCTHW: Tensor = self.conv_out(x_BTHWC).float().permute(0, 4, 1, 2, 3).contiguous()
        return x_BCTHW if self.around is None else x_BCTHW + self.around.back(z_BCTHW, frames)

    def _lengths(self, frames: int) -> list[int]:
        """Frames after each step up, the last step's first."""
        lengths = [frames]
        for halves in self.config.halves_time[:-1]:
            lengths.append(-(-lengths[-1] // 2) if halves else lengths[-1])
        return lengths
