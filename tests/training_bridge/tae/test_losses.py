"""Losses and measures against closed forms, and what the outlier penalty is for."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from torch import Tensor

from training_bridge.tae import losses, measures
from training_bridge.tae.losses import Discriminator, Lpips


def test_l1_and_kl_are_means_over_a_sample() -> None:
    x = torch.zeros(2, 3, 4, 8, 8)
    y = torch.stack([x[0] + 0.5, x[1] - 0.25])
    assert losses.l1(x, y).tolist() == [0.5, 0.25]
    mean, logvar = torch.full((1, 16, 2, 3, 3), 2.0), torch.full((1, 16, 2, 3, 3), math.log(0.25))
    expected = 0.5 * (4 + 0.25 - 1 - math.log(0.25))
    torch.testing.assert_close(losses.kl(mean, logvar), torch.tensor([expected]))
    ours = torch.distributions.Normal(mean, torch.full_like(mean, 0.5))
    theirs = torch.distributions.kl_divergence(ours, torch.distributions.Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(losses.kl(mean, logvar)[0], theirs)


def test_the_outlier_penalty_is_the_papers_formula() -> None:
    z = torch.randn(2, 5, 3, 16, 12)
    z[1, :, 2, 3, 4] += 30.0

    def of_frame(X: np.ndarray) -> float:
        _, H, W = X.shape
        mean, std = X.mean(axis=(1, 2)), X.std(axis=(1, 2))
        total = 0.0
        for i in range(H):
            for j in range(W):
                total += max(np.linalg.norm(X[:, i, j] - mean) - 3 * np.linalg.norm(std), 0)
        return total / (H * W)

    expected = [np.mean([of_frame(z[b, :, t].double().numpy()) for t in range(3)]) for b in range(2)]
    assert expected[1] > 0.05 > expected[0]
    torch.testing.assert_close(losses.outlier(z), torch.tensor(expected, dtype=torch.float32), atol=1e-6, rtol=1e-4)
    flat = torch.zeros(1, 4, 1, 16, 16, requires_grad=True)
    losses.outlier(flat).sum().backward()
    assert flat.grad is not None and flat.grad.isfinite().all(), "a black video is no reason for NaN"
    dot = torch.zeros(1, 1, 1, 16, 16)
    dot[..., 5, 7] = 16.0  # mean 1/16, deviation 15 15/16, standard deviation sqrt(255) / 16
    one = (16 - 1 / 16 - 3 * math.sqrt(255) / 16) / 256
    torch.testing.assert_close(losses.outlier(dot), torch.tensor([one]))
    assert losses.outlier(dot[..., 5:8, 7:10]) == 0, "on a plane of 3 x 3 nothing is three deviations away"


def test_the_multiscale_loss_sees_gradients_not_brightness() -> None:
    x = torch.zeros(1, 3, 2, 16, 16)
    assert losses.multiscale(x, x + 0.7) == 0
    ramp = x + torch.arange(16.0) * 0.01
    slopes = [0.01, 0.02, 0.04, 0.08]  # of a ramp that is pooled: the step doubles
    torch.testing.assert_close(losses.multiscale(ramp, x), torch.tensor([sum(slopes) / 8]))
    edge = x.clone()
    edge[..., 8:] = 1.0
    blurred = edge.clone()
    blurred[..., 7], blurred[..., 8] = 1 / 3, 2 / 3
    shifted = torch.roll(edge, 1, dims=-1)
    shifted[..., 0] = 0
    assert losses.multiscale(edge, shifted) > losses.multiscale(edge, blurred) > 0
    torch.testing.assert_close(losses.multiscale(torch.cat([ramp, edge]), torch.cat([x, x]))[:1], losses.multiscale(ramp, x))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Files of the published layouts, with random numbers in them."""
    folder = tmp_path_factory.mktemp("lpips")
    torch.manual_seed(0)
    tensors, width = {}, 3
    for number, channels in zip((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (n for n in losses.VGG if n), strict=True):
        tensors[f"features.{number}.weight"] = torch.randn(channels, width, 3, 3) * (2 / (9 * width)) ** 0.5
        tensors[f"features.{number}.bias"] = torch.randn(channels) * 0.1
        width = channels
    tensors["classifier.0.weight"] = torch.zeros(2, 2)
    torch.save(tensors, folder / "vgg16.pth")
    heads = {f"lin{n}.model.1.weight": torch.rand(1, c, 1, 1) for n, c in enumerate(losses.LPIPS_LAYERS.values())}
    torch.save(heads, folder / "vgg.pth")
    return str(folder / "vgg16.pth"), str(folder / "vgg.pth")


@torch.no_grad()
def test_lpips_is_the_published_distance(published: tuple[str, str]) -> None:
    trunk, heads = (torch.load(path, weights_only=True) for path in published)
    x, y = torch.rand(2, 1, 3, 2, 32, 32) * 2 - 1
    total = torch.zeros(2)
    for frame in range(2):
        a, b = x[:, :, frame], y[:, :, frame]
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        a, b = ((v - shift[:, None, None]) / scale[:, None, None] for v in (a, b))
        head = 0
        for number in range(30):
            if f"features.{number}.weight" in trunk:
                w, bias = trunk[f"features.{number}.weight"], trunk[f"features.{number}.bias"]
                a, b = (torch.conv2d(v, w, bias, padding=1).relu() for v in (a, b))
            elif number in (4, 9, 16, 23):
                a, b = (torch.max_pool2d(v, 2) for v in (a, b))
            elif number in (3, 8, 15, 22, 29):
                p, q = (v / v.norm(dim=1, keepdim=True) for v in (a, b))
                total[frame] += (heads[f"lin{head}.model.1.weight"] * (p - q) ** 2).sum(1).mean()
                head += 1
    lpips = Lpips(*published)
    torch.testing.assert_close(lpips(x, y), total.mean()[None], atol=1e-5, rtol=1e-4)
    assert lpips(x, x) == 0 and not any(p.requires_grad for p in lpips.parameters())


def test_lpips_of_another_layout_is_refused(published: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vgg.pth' is not of the published layout"):
        Lpips(published[1], published[1])
    with pytest.raises(ValueError, match=r"vgg16.pth' is not of the published layout"):
        Lpips(published[0], published[0])
    with pytest.raises(ValueError, match=r"needs both losses\.vgg_weights and losses.lpips_weights"):
        losses.LossConfig(vgg_weights="vgg16.pth")


def test_the_discriminator_takes_images_and_videos_each_sample_by_itself() -> None:
    torch.manual_seed(0)
    judge = Discriminator(8)
    x = torch.rand(3, 3, 5, 32, 48)
    scores = judge(x)
    assert scores.shape == (3, 1, 5, 2, 4) and judge(x[:, :, :1]).shape == (3, 1, 1, 2, 4)
    torch.testing.assert_close(judge(x[1:2]), scores[1:2], atol=1e-5, rtol=1e-4)
    other = x.clone()
    other[0, :, 4] = 0
    assert not torch.equal(judge(other)[0, :, 3], scores[0, :, 3]), "it sees motion"
    hinge = losses.hinge(torch.tensor([[0.5, 2.0], [0.0, 0.0]]), torch.tensor([[-3.0, 0.5], [0.0, 0.0]]))
    assert hinge.tolist() == [0.5 * (0.5 + 0 + 0 + 1.5) / 2, 1.0]


def test_psnr_is_of_clipped_frames_and_averaged_over_them() -> None:
    target = torch.full((2, 3, 2, 16, 16), 1.0)
    x = target.clone()
    x[0, :, 0] -= 0.2  # 0.1 of [0, 1]: 20 dB
    x[0, :, 1] -= 0.02  # 40 dB
    x[1] += 5.0  # clipped: equal
    torch.testing.assert_close(measures.psnr(x, target), torch.tensor([30.0, 100.0]), atol=1e-3, rtol=0)


def test_ssim_is_wangs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 24, 20))
    window = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def smooth(v: np.ndarray) -> np.ndarray:
        return correlate1d(correlate1d(v, window, axis=0), window, axis=1)[5:-5, 5:-5]

    ma, mb = smooth(a), smooth(b)
    va, vb, cov = smooth(a * a) - ma**2, smooth(b * b) - mb**2, smooth(a * b) - ma * mb
    expected = ((2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))).mean()

    def video(v: np.ndarray) -> Tensor:
        return torch.from_numpy(v).float().expand(1, 3, 2, 24, 20) * 2 - 1

    assert measures.ssim(video(a), video(b)).item() == pytest.approx(expected, abs=1e-4)
    assert measures.ssim(video(a), video(a)).item() == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(ValueError, match="11 pixels or more, not 8 x 16"):
        measures.ssim(torch.zeros(1, 3, 1, 8, 16), torch.zeros(1, 3, 1, 8, 16))


class Means(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=[2, 3, 4])


def test_the_frechet_distance_of_known_gaussians() -> None:
    def moments(features: Tensor) -> measures.Moments:
        found = measures.Moments()
        for part in features.split(7):
            found.add(part)
        return found

    torch.manual_seed(0)
    white = torch.randn(400, 4, dtype=torch.double)
    white = white - white.mean(0)
    white = white @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(white.T))).T  # mean 0, covariance exactly 1
    turn, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.double))
    a = white * torch.tensor([1.0, 2.0, 3.0, 0.5])
    b = white * torch.tensor([2.0, 2.0, 1.0, 0.0]) + torch.tensor([1.0, 0.0, -2.0, 0.0])
    expected = 5 + (1 - 2) ** 2 + 0 + (3 - 1) ** 2 + 0.5**2  # commuting: |m|^2 + sum (s1 - s2)^2
    assert measures.frechet(moments(a @ turn), moments(b @ turn)) == pytest.approx(expected, rel=1e-6)
    assert measures.frechet(moments(a), moments(a)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="two samples or more, not 1"):
        moments(a[:1]).gaussian()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_rfvd_takes_a_torchscript_file(tmp_path: Path) -> None:
    path = tmp_path / "means.pt"
    torch.jit.script(Means()).save(path)
    rfvd = measures.Rfvd(str(path))
    real = torch.rand(6, 3, 4, 8, 8) - 0.5
    for part in real.split(2):
        rfvd.add(part + 0.1, part)
    assert rfvd.value() == pytest.approx(3 * 0.1**2, rel=1e-4)
    with pytest.raises(ValueError, match="two samples or more, not 0"):
        rfvd.value()  # it begins anew
    torch.save({}, path)
    with pytest.raises(ValueError, match="is no TorchScript file"):
        measures.Rfvd(str(path))
