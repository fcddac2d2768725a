"""The exact denoiser against numerical integration, against the gradient of the log density, and
against its own samples."""

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import distributions

from core.diffusion.parameterisations import ConsistencyFunction, SingularTime
from core.diffusion.paths import PATHS, make_path
from core.errors import UserError
from core.model import Model
from teachers.exact import MixtureDenoiser, gaussian_flow, mixture_model

MEANS, STDS, WEIGHTS = [-1.0, 0.2, 1.5], [0.3, 0.05, 0.6], [0.5, 0.2, 0.3]


MIXTURE = tuple(torch.tensor(v, dtype=torch.float64) for v in ([[m] for m in MEANS], STDS, WEIGHTS))


def _denoiser(path):
    return MixtureDenoiser(path, *MIXTURE)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("time", [0.05, 0.4, 0.9, 1.0])
def test_posterior_mean_by_quadrature(name, time):
    """E[x0 | x] = integral of x0 p(x0) p(x | x0) over p(x), in one dimension."""
    path, t = make_path(name), torch.tensor(time, dtype=torch.float64)
    alpha, sigma = float(path.alpha(t)), float(path.sigma(t))

    def joint(x0, x):
        prior = sum(
            w * stats.norm.pdf(x0, m, s) for m, s, w in zip(MEANS, STDS, WEIGHTS, strict=True)
        )
        return prior * stats.norm.pdf(x, alpha * x0, sigma)

    x0 = np.linspace(-8, 8, 40_001)
    for x in (-1.7, -0.3, 0.1, 0.9, 2.0):
        density = joint(x0, x)
        expected = integrate.trapezoid(x0 * density, x0) / integrate.trapezoid(density, x0)
        got = _denoiser(path).x0(torch.tensor([[x]], dtype=torch.float64), t)
        assert float(got) == pytest.approx(expected, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("name", PATHS)
def test_tweedie(name):
    """x + sigma^2 d log p(x) / dx = alpha E[x0 | x], the density differentiated by autograd, in 2 x
    3 dimensions."""
    path, generator = make_path(name), torch.Generator().manual_seed(0)
    means = torch.randn(3, 2, 3, dtype=torch.float64, generator=generator)
    stds, weights = MIXTURE[1:]
    denoiser = MixtureDenoiser(path, means, stds, weights)
    x = torch.randn(6, 2, 3, dtype=torch.float64, generator=generator)
    times = torch.tensor([0.02, 0.1, 0.3, 0.6, 0.95, 0.999], dtype=torch.float64)
    got = denoiser.x0(x, times)
    for i, t in enumerate(times):
        alpha, sigma = path.alpha(t), path.sigma(t)
        width = (alpha**2 * stds**2 + sigma**2).sqrt()[:, None].expand(3, 6)
        components = distributions.Independent(
            distributions.Normal(alpha * means.flatten(1), width), 1
        )
        p = distributions.MixtureSameFamily(distributions.Categorical(weights), components)
        point = x[i].flatten().clone().requires_grad_()
        (score,) = torch.autograd.grad(p.log_prob(point), point)
        torch.testing.assert_close(
            alpha * got[i].flatten(), point.detach() + sigma**2 * score, rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("name", PATHS)
def test_as_a_model(name):
    """Read through a Model, the v it returns is its own posterior mean again."""
    path = make_path(name)
    model = mixture_model(path, *MIXTURE)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    for time in (0.1, 0.7, 1.0):
        t = torch.tensor(time, dtype=torch.float64)
        torch.testing.assert_close(model.x0(x, t), _denoiser(path).x0(x, t), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PATHS)
def test_the_score_of_a_model(name):
    """model.score is the gradient of log p_t, by autograd, at a time for each sample; at clean data
    it is refused, and so is that of a consistency function."""
    path, generator = make_path(name), torch.Generator().manual_seed(0)
    means = torch.randn(3, 1, 2, 2, dtype=torch.float64, generator=generator)
    stds, weights = MIXTURE[1:]
    model = mixture_model(path, means, stds, weights)
    times = torch.tensor([0.02, 0.3, 0.95, 1.0], dtype=torch.float64)
    x = torch.randn(4, 1, 2, 2, dtype=torch.float64, generator=generator)
    point = x.clone().requires_grad_()
    c = path.at(times)
    for i in range(4):
        width = (c.alpha[i] ** 2 * stds**2 + c.sigma[i] ** 2).sqrt()[:, None].expand(3, 4)
        components = distributions.Independent(
            distributions.Normal(c.alpha[i] * means.flatten(1), width), 1
        )
        p = distributions.MixtureSameFamily(distributions.Categorical(weights), components)
        p.log_prob(point[i].flatten()).backward()
    torch.testing.assert_close(model.score(x, times), point.grad, rtol=1e-9, atol=1e-9)
    with pytest.raises(SingularTime, match="score of data without noise"):
        model.score(x, torch.tensor(0.0, dtype=torch.float64))
    spec = model.spec.model_copy(update={"prediction": ConsistencyFunction()})
    with pytest.raises(UserError, match="no score"):
        Model(model.network, spec).score(x, times)


@pytest.mark.parametrize("name", PATHS)
def test_gaussian_flow(name):
    """Against the probability-flow ODE in straight coordinates, integrated by scipy with the score
    of a Gaussian."""
    path, mean, std = make_path(name), 0.7, 0.4
    t, s = torch.tensor(0.95, dtype=torch.float64), torch.tensor(0.05, dtype=torch.float64)

    def straight(time):
        alpha, sigma = float(path.alpha(time)), float(path.sigma(time))
        return alpha + sigma, sigma / (alpha + sigma)

    def slope(w, y):  # dy/dw = eps - x0 at alpha = 1 - w, sigma = w
        score = -(y - (1 - w) * mean) / ((1 - w) ** 2 * std**2 + w**2)
        eps = -w * score
        return eps - (y - w * eps) / (1 - w)

    x = np.array([-1.0, 0.2, 2.0])
    (scale_t, w_t), (scale_s, w_s) = straight(t), straight(s)
    solution = integrate.solve_ivp(
        slope, (w_t, w_s), x / scale_t, method="DOP853", rtol=1e-12, atol=1e-12
    )
    got = gaussian_flow(
        path, torch.tensor(x)[:, None], t, s, torch.tensor(mean, dtype=torch.float64), std
    )
    np.testing.assert_allclose(got[:, 0].numpy(), scale_s * solution.y[:, -1], rtol=1e-9)


def test_samples():
    samples = (
        _denoiser(make_path("rectified"))
        .sample(torch.Generator().manual_seed(0), 20_000)[:, 0]
        .numpy()
    )

    def cdf(x):
        return sum(
            w * stats.norm.cdf(x, m, s) for m, s, w in zip(MEANS, STDS, WEIGHTS, strict=True)
        )

    assert stats.kstest(samples, cdf).pvalue > 1e-3
