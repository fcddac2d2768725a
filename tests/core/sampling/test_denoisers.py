"""Guidance against closed forms, thresholds against their definitions, and results that do not
depend on the batch."""

import numpy as np
import pytest
import torch

from core.condition import Condition
from core.diffusion.grids import make_grid
from core.diffusion.parameterisations import PREDICTIONS, convert
from core.diffusion.paths import PATHS, make_path
from core.errors import UserError
from core.networks.unet import UNet
from core.noise import Noise
from core.sampling.denoisers import (
    Conditioned,
    Guided,
    Thresholded,
    denoiser_for,
    dynamic_threshold,
    static_threshold,
)
from core.sampling.solvers import SAMPLERS
from tests.helpers.exact import GaussianDenoiser
from tests.helpers.models import model_of

T = torch.tensor(0.6, dtype=torch.float64)


@pytest.fixture(scope="module")
def network() -> UNet:
    torch.manual_seed(0)
    net = UNet(1, 8, widths=(8, 16), blocks=1, attention=(1,), head_width=8, num_classes=3).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


class ClassGaussians(torch.nn.Module):
    """A network that knows classes 0 and 1 as N(means, stds^2), and their null as a third Gaussian;
    answers as `kind`."""

    def __init__(self, path, means, stds, kind):
        super().__init__()
        self.path, self.means, self.stds, self.kind = path, means, stds, kind

    def forward(self, x, t, r=None, label=None):
        assert torch.equal(t, t[:1].expand_as(t))
        x0, _ = GaussianDenoiser(self.path, self.means[label][:, None], self.stds[label][:, None])(
            x, t[0]
        )
        return convert("x0", self.kind, x0, x, t[0], self.path)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("name", PATHS)
def test_guidance_of_gaussians(name, kind):
    """Scores add up: null + scale (class - null), each the derivative of a Gaussian's log
    density."""
    path, scale = make_path(name), 2.5
    means, stds = torch.tensor([-1.0, 0.5, 0.1]).double(), torch.tensor([0.2, 0.6, 0.9]).double()
    model = model_of(ClassGaussians(path, means, stds, kind), path, kind, num_classes=2)
    x, label = (
        torch.linspace(-2, 2, 6, dtype=torch.float64)[:, None],
        torch.tensor([0, 1, 0, 1, 0, 1]),
    )
    got = Guided(model, Condition(label), scale)(x, T)

    alpha, sigma = float(path.alpha(T)), float(path.sigma(T))

    def score(k):
        density = torch.distributions.Normal(
            alpha * means[k], (alpha**2 * stds[k] ** 2 + sigma**2).sqrt()
        )
        point = x[:, 0].clone().requires_grad_()
        return torch.autograd.grad(density.log_prob(point).sum(), point)[0]

    null = score(torch.full((6,), 2))
    eps = -sigma * (null + scale * (score(label) - null))
    torch.testing.assert_close(got.eps[:, 0], eps, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(alpha * got.x0 + sigma * got.eps, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_guided_sampling_of_equal_widths(scale):
    """With equal widths the guided flow is that of one Gaussian at null mean + scale (class mean -
    null mean)."""
    path, std = make_path("trigonometric"), 0.4
    means, stds = torch.tensor([-0.5, 1.0, 0.1]).double(), torch.full((3,), std).double()
    model = model_of(ClassGaussians(path, means, stds, "v"), path, num_classes=2)
    label, x = torch.tensor([0, 1, 1]), torch.tensor([[-1.0], [0.0], [1.2]]).double()
    got = SAMPLERS["dpm++3m"].run(
        denoiser_for(model, Condition(label), scale), x, make_grid("time", path, 200)
    )
    shifted = GaussianDenoiser(
        path, (0.1 + scale * (means[label] - 0.1))[:, None], stds[label][:, None]
    )
    exact = shifted.flow(x, torch.tensor(1.0), torch.tensor(0.0))
    torch.testing.assert_close(got, exact, rtol=0, atol=2e-3)
    assert float((got - exact).abs().max()) < 0.01 * float((got - x).abs().max())


def test_guidance_scales_one_and_zero(network):
    model = model_of(network, "vp-cosine", num_classes=3)
    x, label = torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 3, 0])
    null = torch.full_like(label, 3)
    with torch.no_grad():
        plain, free = (Conditioned(model, Condition(k))(x, T) for k in (label, null))
        for part in (0, 1):
            torch.testing.assert_close(
                Guided(model, Condition(label), 1.0)(x, T)[part], plain[part], rtol=1e-5, atol=1e-5
            )
            torch.testing.assert_close(
                Guided(model, Condition(label), 0.0)(x, T)[part], free[part], rtol=1e-5, atol=1e-5
            )
            torch.testing.assert_close(
                Conditioned(model)(x, T)[part], free[part], rtol=1e-5, atol=1e-5
            )
        doubled = Guided(model, Condition(label), 2.0)(x, T)
        torch.testing.assert_close(
            doubled.x0 - free.x0, 2 * (plain.x0 - free.x0), rtol=1e-4, atol=1e-4
        )
        assert float((plain.x0 - free.x0)[:3].abs().max()) > 1e-3  # labels matter to this network
        assert isinstance(denoiser_for(model, Condition(label), 1.0), Conditioned)


def test_bad_labels_and_guidance(network):
    model = model_of(network, "vp-cosine", num_classes=3)
    for label in (-1, 4):
        with pytest.raises(UserError, match=f"label {label} .*0 to 2"):
            denoiser_for(model, Condition(torch.tensor([0, label])))
    denoiser_for(model, Condition(torch.tensor([0, 3])))
    for label, classes in ((None, 3), (torch.tensor([0]), 0)):
        with pytest.raises(UserError):
            denoiser_for(model_of(network, "vp-cosine", num_classes=classes), Condition(label), 2.0)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("threshold", ["static", "dynamic"])
def test_thresholds_keep_the_mixture(name, threshold):
    """x = alpha x0 + sigma eps holds for the clipped guess too, and the guess is an image."""
    path = make_path(name)
    denoiser = denoiser_for(model_of(torch.nn.Identity(), path), threshold=threshold)
    denoiser.inner = GaussianDenoiser(path, torch.tensor(1.5).double(), torch.tensor(1.0).double())
    x = 2 * torch.randn(4, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in (1.0, 0.6, 0.01):
        x0, eps = denoiser(x, torch.tensor(t, dtype=torch.float64))
        torch.testing.assert_close(
            path.mix(x0, eps, torch.tensor(t, dtype=torch.float64)), x, rtol=1e-9, atol=1e-9
        )
        assert x0.abs().max() <= 1
        assert not torch.allclose(x0, denoiser.inner(x, torch.tensor(t, dtype=torch.float64)).x0)


def test_threshold_values():
    x0 = torch.randn(5, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x0 *= torch.tensor([0.1, 0.3, 1.0, 3.0, 10.0]).view(-1, 1, 1, 1)
    np.testing.assert_array_equal(static_threshold(x0).numpy(), np.clip(x0.numpy(), -1, 1))
    got = dynamic_threshold(0.9)(x0)
    for image, thresholded in zip(x0.numpy(), got.numpy(), strict=True):
        limit = max(1.0, np.quantile(np.abs(image), 0.9))
        np.testing.assert_allclose(thresholded, np.clip(image, -limit, limit) / limit, rtol=1e-6)
    assert torch.equal(got[0], x0[0])  # an image within the range is left alone


def test_a_thresholded_run_ends_in_the_range():
    path = make_path("vp-cosine")
    wide = GaussianDenoiser(path, torch.tensor(0.0).double(), torch.tensor(3.0).double())
    x = torch.randn(50, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grid = make_grid("time", path, 20)
    assert SAMPLERS["ddim"].run(wide, x, grid).abs().max() > 2
    assert SAMPLERS["ddim"].run(Thresholded(wide, static_threshold), x, grid).abs().max() <= 1


@pytest.mark.parametrize("sampler", ["ddpm", "dpm++2m", "euler-maruyama"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_samples_do_not_depend_on_the_batch(network, sampler, guidance):
    """Sample i is the same in batches of 7 and of 64, to rounding: its noise is its own."""
    model = model_of(network, "vp-cosine", num_classes=3)

    def samples(size: int) -> torch.Tensor:
        parts = []
        for indices in torch.arange(64).split(size):
            rng = Noise(3, indices)
            label, x = rng.integers(3, "label"), rng.normal((1, 8, 8), "start")
            grid = make_grid("time", model.path, 3)
            parts.append(
                SAMPLERS[sampler].run(denoiser_for(model, Condition(label), guidance), x, grid, rng)
            )
        return torch.cat(parts)

    with torch.no_grad():
        small, large = samples(7), samples(64)
    torch.testing.assert_close(small, large, rtol=1e-4, atol=1e-4)
    assert float(small.std(0).min()) > 0.05  # and the samples differ from one another


def test_guidance_of_a_null_label_that_was_never_trained(network):
    label = Condition(torch.tensor([0, 1]))
    for trained in (True, None):
        model = model_of(network, "vp-cosine", num_classes=3, null_trained=trained)
        assert isinstance(denoiser_for(model, label, 2.0), Guided)
    model = model_of(network, "vp-cosine", num_classes=3, null_trained=False)
    assert isinstance(denoiser_for(model, label, 1.0), Conditioned)
    with pytest.raises(UserError, match="never learned its null label"):
        denoiser_for(model, label, 2.0)
