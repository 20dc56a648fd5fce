"""How good a reconstruction is: PSNR, SSIM, and the Frechet distance of video features (rFVD). Pixels x_BCTHW in [-1, 1].

All are computed in fp32 or better on clipped pixels, for each frame by itself, and averaged over a sample's frames.
"""

import warnings

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 1e-10
"""Mean squared error of frames that are equal: 100 dB."""
WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def unit_frames(x_BCTHW: Tensor) -> Tensor:
    """(N, C, H, W) in [0, 1], clipped."""
    return (x_BCTHW.float().clamp(-1, 1).add(1) / 2).transpose(1, 2).flatten(0, 1)


def psnr(x_BCTHW: Tensor, target_BCTHW: Tensor) -> Tensor:
    """In dB (B,): of each frame, then the mean."""
    error_N = (unit_frames(x_BCTHW) - unit_frames(target_BCTHW)).square().mean(dim=(1, 2, 3))
    return (-10 * error_N.clamp_min(SMALLEST).log10()).view(x_BCTHW.shape[0], -1).mean(dim=1)


def ssim(x_BCTHW: Tensor, target_BCTHW: Tensor) -> Tensor:
    """Structural similarity (B,) as Wang et al. 2004: a Gaussian window of 11 x 11 pixels that stays inside the frame, each
    colour by itself. Raises ValueError where a side has fewer than 11 pixels.
    """
    x, y = unit_frames(x_BCTHW), unit_frames(target_BCTHW)
    if min(x.shape[2:]) < WINDOW:
        raise ValueError(f"SSIM needs sides of {WINDOW} pixels or more, not {x.shape[2]} x {x.shape[3]}")
    x, y = x.flatten(0, 1)[:, None], y.flatten(0, 1)[:, None]
    mean_x, mean_y = smooth(x), smooth(y)
    var_x, var_y = smooth(x * x) - mean_x.square(), smooth(y * y) - mean_y.square()
    cov = smooth(x * y) - mean_x * mean_y
    c1, c2 = K1**2, K2**2
    map_ = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2))
    return map_.view(x_BCTHW.shape[0], -1).mean(dim=1)


def smooth(x_N1HW: Tensor) -> Tensor:
    """The Gaussian window's means."""
    at = torch.arange(WINDOW, device=x_N1HW.device, dtype=torch.float32) - WINDOW // 2
    line = torch.exp(-at.square() / (2 * SIGMA**2))
    line = line / line.sum()
    return F.conv2d(F.conv2d(x_N1HW, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))


class Moments:
    """Mean and covariance of features that come a few at a time, here or on several ranks."""

    def __init__(self) -> None:
        self.count = 0
        self.total_D, self.outer_DD = torch.zeros(0), torch.zeros(0)

    def add(self, features_ND: Tensor) -> None:
        """More samples."""
        features = features_ND.detach().double().cpu()
        if not self.count:
            self.total_D, self.outer_DD = features.new_zeros(features.shape[1]), features.new_zeros(2 * features.shape[1:])
        self.count += len(features)
        self.total_D += features.sum(dim=0)
        self.outer_DD += features.T @ features

    def over_ranks(self, group: dist.ProcessGroup) -> None:
        """Add up what all ranks of a gloo group have seen; each has seen something."""
        whole = torch.cat([torch.tensor([self.count]).double(), self.total_D, self.outer_DD.flatten()])
        dist.all_reduce(whole, group=group)
        D = len(self.total_D)
        self.count, self.total_D, self.outer_DD = int(whole[0]), whole[1 : D + 1], whole[D + 1 :].view(D, D)

    def gaussian(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and unbiased covariance (D, D). Raises ValueError where there are fewer than two samples."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two samples or more, not {self.count}")
        mean = self.total_D / self.count
        return mean, (self.outer_DD - self.count * torch.outer(mean, mean)) / (self.count - 1)


def frechet(a: Moments, b: Moments) -> float:
    """The Frechet distance of two Gaussians: |m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^1/2)."""
    (mean_a, cov_a), (mean_b, cov_b) = a.gaussian(), b.gaussian()
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    shared = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * shared)


class Rfvd:
    """The Frechet distance between features of reconstructed and of real videos.

    The features are those of a TorchScript file of yours, for instance an I3D: it takes x_BCTHW in [-1, 1], of any length and
    size, and returns (B, D). Figures compare only where extractor, length and size agree.
    """

    def __init__(self, path: str) -> None:
        """Raises ValueError where the file is no TorchScript."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript, in which I3D for FVD is published
                self.extractor = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise ValueError(f"{path!r} is no TorchScript file: {str(error).partition(chr(10))[0]}") from error
        self.ours, self.real = Moments(), Moments()

    @torch.no_grad()
    def add(self, x_BCTHW: Tensor, target_BCTHW: Tensor) -> None:
        """Some samples."""
        self.extractor.to(x_BCTHW.device)
        self.ours.add(self.extractor(x_BCTHW.float().clamp(-1, 1)))
        self.real.add(self.extractor(target_BCTHW.float()))

    def value(self, group: dist.ProcessGroup | None = None) -> float:
        """The distance of all that was added, on all ranks of a gloo group where one is given; then it begins anew."""
        ours, real = self.ours, self.real
        self.ours, self.real = Moments(), Moments()
        for moments in (ours, real):
            if group is not None:
                moments.over_ranks(group)
        return frechet(ours, real)
