"""The backbone: a LLaMa3 transformer with full attention, cross-attention to text, and time by adaptive layer norm.

Shapes: B samples, C latent channels, T x H x W latent frames and sides, S tokens of a sample or of this rank's part of it,
P = 4 C values of a patch, D width, N heads, E width of a head, L tokens of text, F time features.

The backbone sees tokens, not pictures: whoever calls it makes patches of the latents, and gives this rank's part of them
under context parallelism. Blocks see (B, S, D) only, of any B and S.

Where the paper (Movie Gen, section 3.1) is silent: one SiLU and Linear D -> 6 D shared by all layers, with 6 x D learned values
of each layer added, scale and shift what self-attention and the feed-forward net see, and gate what they add (PixArt);
cross-attention is not modulated.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from training_bridge.exchange import Gather, Ulysses

PATCH = 2
"""Side of a patch; along time it is 1."""
TIME_FEATURES = 256
KERNELS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}

ZERO = ("modulation", "modulation.1.weight", "head.out.weight", "cross.out.weight")
"""Parameters that start at zero, by the ends of their names."""

Grid = tuple[int, int, int]
"""Tokens along time, height and width."""
How = Literal["extend", "interpolate"]


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """What the backbone looks like."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    layers: int
    width: int
    heads: int
    ffn: int
    channels: int = 16
    """Of the latents."""
    lengths: tuple[int, int, int] = (32, 32, 32)
    """Rows of the position tables for time, height and width: the longest side in tokens. 32 latent frames are 256 frames.
    Sides of the 256-pixel class are 12 to 21 tokens (32 rows), those of the 768-pixel class 36 to 64 (96 rows)."""
    qk_norm: bool = True
    """RMSNorm over each head's queries and keys, in both attentions."""
    kernels: tuple[str, ...] = ("cudnn", "flash", "efficient", "math")
    """Attention kernels, the preferred first; one that cannot do a call passes it on. Changes speed, not the model."""

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width // self.heads % 8:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads of a multiple of 8")
        if unknown := set(self.kernels) - KERNELS.keys():
            raise ValueError(f"kernels {', '.join(sorted(unknown))} are none of {', '.join(KERNELS)}")
        if min(self.lengths) < 1:
            raise ValueError(f"position tables of {self.lengths} rows: each needs one at least")

    @property
    def patch(self) -> int:
        """Values of a patch."""
        return self.channels * PATCH * PATCH


SIZES: dict[str, dict[str, int]] = {
    "tiny": {"layers": 4, "width": 256, "heads": 4, "ffn": 704},
    "1b": {"layers": 24, "width": 1536, "heads": 12, "ffn": 4096},
    "5b": {"layers": 32, "width": 3072, "heads": 24, "ffn": 8192},
    "30b": {"layers": 48, "width": 6144, "heads": 48, "ffn": 16384},
}


def config_of(size: str, **more: Any) -> BackboneConfig:
    """The config of a named size. Raises ValueError where there is none of that name."""
    if size not in SIZES:
        raise ValueError(f"no size {size!r}: there are {', '.join(SIZES)}")
    return BackboneConfig(**{**SIZES[size], **more})


def parameters_of(config: BackboneConfig) -> int:
    """How many parameters a backbone has, in closed form."""
    d, head = config.width, config.width // config.heads
    attention = 4 * d * d + (2 * head if config.qk_norm else 0)
    block = 2 * attention + 3 * d * config.ffn + 3 * d + 6 * d
    time = (TIME_FEATURES * d + d) + (d * d + d) + (6 * d * d + 6 * d)
    ends = (config.patch * d + d) + (d + 2 * d + d * config.patch + config.patch)
    return config.layers * block + time + ends + sum(config.lengths) * d


def patchify(x_BCTHW: Tensor) -> Tensor:
    """Patches of 1 x 2 x 2, rows of pictures first: (B, S, P). Raises ValueError where the sides are odd."""
    b, c, t, h, w = x_BCTHW.shape
    if h % PATCH or w % PATCH:
        raise ValueError(f"latents of {h} x {w} do not divide into patches of {PATCH} x {PATCH}")
    x = x_BCTHW.reshape(b, c, t, h // PATCH, PATCH, w // PATCH, PATCH)
    return x.permute(0, 2, 3, 5, 1, 4, 6).reshape(b, t * (h // PATCH) * (w // PATCH), c * PATCH * PATCH)


def unpatchify(x_BSP: Tensor, grid: Grid) -> Tensor:
    """The latents of all patches of a sample: (B, C, T, H, W)."""
    t, h, w = grid
    x = x_BSP.reshape(len(x_BSP), t, h, w, -1, PATCH, PATCH)
    return x.permute(0, 4, 1, 2, 5, 3, 6).reshape(len(x_BSP), -1, t, h * PATCH, w * PATCH)


def grid_of(shape: Sequence[int]) -> Grid:
    """Tokens along each axis of latents (..., T, H, W)."""
    t, h, w = shape[-3:]
    return t, h // PATCH, w // PATCH


def time_features(time_B: Tensor) -> Tensor:
    """Sines and cosines of 1000 t (DiT). In float32, outside the backbone: in bfloat16 neighbouring times are one."""
    half = TIME_FEATURES // 2
    rates = torch.exp(torch.arange(half, device=time_B.device, dtype=torch.float32) * (-math.log(10_000) / half))
    angles = 1000 * time_B.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def modulated(x_BSD: Tensor, shift_BD: Tensor, scale_BD: Tensor) -> Tensor:
    """x scaled and shifted, each sample its own way."""
    return x_BSD * (1 + scale_BD.unsqueeze(1)) + shift_BD.unsqueeze(1)


class Attention(nn.Module):
    """Projections and heads of an attention. Under tensor parallelism this rank has some of the heads."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        d, self.head = config.width, config.width // config.heads
        self.q, self.k, self.v, self.out = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.q_norm = nn.RMSNorm(self.head, eps=1e-6) if config.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(self.head, eps=1e-6) if config.qk_norm else nn.Identity()
        self.kernels = [KERNELS[name] for name in config.kernels]

    def projected(self, x_BSD: Tensor, of_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of `x`, keys and values of `of`: (B, N, S or L, E)."""
        q, k, v = (y.unflatten(-1, (-1, self.head)) for y in (self.q(x_BSD), self.k(of_BLD), self.v(of_BLD)))
        return self.q_norm(q).transpose(1, 2), self.k_norm(k).transpose(1, 2), v.transpose(1, 2)

    def attend(self, q_BNSE: Tensor, k_BNLE: Tensor, v_BNLE: Tensor, mask: Tensor | None = None) -> Tensor:
        """Full attention by the preferred kernel that can."""
        with sdpa_kernel(self.kernels, set_priority=True):
            return F.scaled_dot_product_attention(q_BNSE, k_BNLE, v_BNLE, attn_mask=mask)

    def merged(self, y_BNSE: Tensor) -> Tensor:
        """Heads side by side, projected."""
        y: Tensor = self.out(y_BNSE.transpose(1, 2).flatten(2))
        return y


class SelfAttention(Attention):
    """Attention between all tokens of a sample; through `exchange` where ranks have parts of the sequence."""

    exchange: Ulysses | Gather | None = None

    def forward(self, x_BSD: Tensor) -> Tensor:
        q, k, v = self.projected(x_BSD, x_BSD)
        y = self.attend(q, k, v) if self.exchange is None else self.exchange(q, k, v, self.attend)
        return self.merged(y)


class CrossAttention(Attention):
    """Attention to the text, of which every rank has all: nothing is exchanged."""

    def forward(self, x_BSD: Tensor, text_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        q, k, v = self.projected(x_BSD, text_BLD)
        mask = mask_BL[:, None, None].expand(-1, q.shape[1], q.shape[2], -1)
        return self.merged(self.attend(q, k, v, mask))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.ffn, bias=False)
        self.up = nn.Linear(config.width, config.ffn, bias=False)
        self.down = nn.Linear(config.ffn, config.width, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        y: Tensor = self.down(F.silu(self.gate(x_BSD)) * self.up(x_BSD))
        return y


class Block(nn.Module):
    """One layer: self-attention, cross-attention, feed-forward net."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.cross = CrossAttention(config)
        self.ffn = FeedForward(config)
        self.attention_norm, self.cross_norm, self.ffn_norm = (nn.RMSNorm(config.width, eps=1e-6) for _ in range(3))
        self.modulation = nn.Parameter(torch.zeros(6, config.width))
        """This layer's own part of shift, scale and gate of self-attention, and of the feed-forward net."""

    def forward(self, x_BSD: Tensor, places_1SD: Tensor, modulation_B6D: Tensor, text_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (modulation_B6D + self.modulation).unbind(1)
        x = x_BSD + places_1SD
        x = x + gate_a.unsqueeze(1) * self.attention(modulated(self.attention_norm(x), shift_a, scale_a))
        x = x + self.cross(self.cross_norm(x), text_BLD, mask_BL)
        y: Tensor = x + gate_f.unsqueeze(1) * self.ffn(modulated(self.ffn_norm(x), shift_f, scale_f))
        return y


class Entry(nn.Module):
    """Patches, positions and time, as the blocks take them."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        d = config.width
        self.patches = nn.Linear(config.patch, d)
        self.places = nn.ModuleDict({a: nn.Embedding(n, d) for a, n in zip("thw", config.lengths, strict=True)})
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, d), nn.SiLU(), nn.Linear(d, d))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))

    def forward(self, patches_BSP: Tensor, places_S3: Tensor, time_BF: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens (B, S, D), their positions (1, S, D), modulation (B, 6, D), time (B, D)."""
        places = sum(self.places[axis](places_S3[:, i]) for i, axis in enumerate("thw"))
        time = self.time(time_BF)
        return self.patches(patches_BSP), places.unsqueeze(0), self.modulation(time).unflatten(-1, (6, -1)), time


class Head(nn.Module):
    """The velocity of each patch."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.width, eps=1e-6)
        self.modulation = nn.Parameter(torch.zeros(2, config.width))
        self.out = nn.Linear(config.width, config.patch)

    def forward(self, x_BSD: Tensor, time_BD: Tensor) -> Tensor:
        shift, scale = (time_BD.unsqueeze(1) + self.modulation).unbind(1)
        y: Tensor = self.out(modulated(self.norm(x_BSD), shift, scale))
        return y


class Backbone(nn.Module):
    """The velocity of noisy latents, patch by patch."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.entry = Entry(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.head = Head(config)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        for name, parameter in self.named_parameters():
            self.initial(name, parameter)

    def initial(self, name: str, values: Tensor, random: torch.Generator | None = None) -> Tensor:
        """Fill the values of a parameter: normal with deviation 0.02, less where branches add up; norms are one, biases zero.

        Zero, as in DiT: the modulation and the output; and the output of cross-attention, so that a block starts as nothing.
        """
        if "norm" in name:
            return values.fill_(1)
        if values.ndim == 1 or name.endswith(ZERO):
            return values.zero_()
        deep = name.endswith(("attention.out.weight", "ffn.down.weight"))
        return values.normal_(std=0.02 / math.sqrt(2 * self.config.layers) if deep else 0.02, generator=random)

    def _blocks(self) -> Iterator[Block]:
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block

    def set_exchange(self, exchange: Ulysses | Gather | None) -> None:
        """From now on sequences are divided, and attention goes through `exchange`; None: ranks have whole sequences."""
        for block in self._blocks():
            block.attention.exchange = exchange

    def forward(
        self, patches_BSP: Tensor, time_BF: Tensor, text_BLD: Tensor, mask_BL: Tensor, grid: Grid, first: int = 0
    ) -> Tensor:
        """The velocity (B, S, P) of the tokens from `first` on, of samples of `grid` tokens.

        `mask` is True where there is text. Raises ValueError where the position tables are too short.
        """
        check_grid(self.config, grid)
        places = token_places(grid, first, patches_BSP.shape[1], patches_BSP.device)
        x, places, modulation, time = self.entry(patches_BSP, places, time_BF)
        for block in self.blocks:
            x = block(x, places, modulation, text_BLD, mask_BL)
        y: Tensor = self.head(x, time).clone()  # FSDP puts a hook on it, which views may lose
        return y


def check_grid(config: BackboneConfig, grid: Grid) -> None:
    """Raises ValueError where a sample is longer than the position tables."""
    if any(n > most for n, most in zip(grid, config.lengths, strict=True)):
        raise ValueError(f"a sample of {grid} tokens (time, height, width), the position tables have {config.lengths} rows")


def token_places(grid: Grid, first: int, count: int, device: torch.device) -> Tensor:
    """Where tokens lie along time, height and width: (S, 3)."""
    _, h, w = grid
    number = torch.arange(first, first + count, device=device)
    return torch.stack([number // (h * w), number // w % h, number % w], dim=1)


def grown(table: Tensor, rows: int, how: How) -> Tensor:
    """A position table of more rows.

    `extend` keeps positions, for longer samples of the same class: a new row starts as the last one, so that a first video is a
    row of pictures. `interpolate` is for a change of class: what lay at a place of the picture lies at the same place after,
    by straight lines between the centres of tokens. Raises ValueError where the table would shrink.
    """
    if rows < len(table):
        raise ValueError(f"a position table of {len(table)} rows cannot become one of {rows}")
    if how == "interpolate":
        return F.interpolate(table.T[None], size=rows, mode="linear", align_corners=False)[0].T.contiguous()
    return torch.cat([table, table[-1:].expand(rows - len(table), -1)])


def grow_positions(
    state: dict[str, Tensor], moments: Sequence[dict[str, Tensor]], lengths: tuple[int, int, int], time: How, space: How
) -> None:
    """Grow the position tables of a state dict, in place, each way along time and along space.

    `moments` are the first and second moments of AdamW by the parameters' names. They grow as the tables do, so that what was
    learned goes on as it was; but rows that `extend` adds have moments of zero, and the count of steps stays.
    """
    for axis, rows, how in zip("thw", lengths, (time, space, space), strict=True):
        for name in [name for name in state if name.endswith(f"entry.places.{axis}.weight")]:
            before = len(state[name])
            state[name] = grown(state[name], rows, how)
            for moment in moments:
                moment[name] = grown(moment[name], rows, how)
                if how == "extend":
                    moment[name][before:] = 0


class _Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.").split(".")[0]
        if name.startswith("_scaled_dot_product") and not name.endswith("backward"):
            self.kernels[name.removeprefix("_scaled_dot_product_").removesuffix("_attention")] += 1
        elif name == "_safe_softmax":
            self.kernels["math"] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def kernels_seen() -> Iterator[Counter[str]]:
    """Counts the attention kernels that run inside: cudnn, flash, flash_attention_for_cpu, efficient, math."""
    with _Seen() as mode:
        yield mode.kernels
