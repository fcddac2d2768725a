"""Paths against the discrete tables they continue, against autograd, and at their ends."""

import math

import mpmath
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from core.diffusion.paths import PATHS, make_path
from core.errors import UserError

ENTRIES = (
    torch.arange(1000, dtype=torch.float64) + 1
) / 1000  # entry k of a table of 1000 sits at t = (k + 1) / 1000
INSIDE = torch.linspace(1e-3, 0.9995, 777, dtype=torch.float64)


def _tables(betas) -> tuple[np.ndarray, np.ndarray]:
    """alpha^2 and sigma^2 after each beta, multiplied out with 40 digits."""
    product, tables = mpmath.mpf(1), []
    for beta in betas:
        product *= 1 - beta
        tables.append((float(product), float(1 - product)))
    a, s = zip(*tables, strict=True)
    return np.array(a), np.array(s)


def _linear_betas():
    first, last = mpmath.mpf("1e-4"), mpmath.mpf("0.02")
    return [first + (last - first) * k / 999 for k in range(1000)]


def _cosine_betas():
    def f(n):
        return (
            mpmath.cos(
                (mpmath.mpf(n) / 1000 + mpmath.mpf("0.008")) / mpmath.mpf("1.008") * mpmath.pi / 2
            )
            ** 2
        )

    return [min(1 - f(k + 1) / f(k), mpmath.mpf("0.999")) for k in range(1000)]


@pytest.mark.parametrize(
    "name, betas", [("vp-linear", _linear_betas), ("vp-cosine", _cosine_betas)]
)
def test_every_table_entry_is_exact(name, betas):
    with mpmath.workdps(40):
        alpha2, sigma2 = _tables(betas())
    c = make_path(name).at(ENTRIES)
    np.testing.assert_allclose(c.alpha.square().numpy(), alpha2, rtol=1e-11)
    np.testing.assert_allclose(c.sigma.square().numpy(), sigma2, rtol=1e-11)


@pytest.mark.parametrize(
    "name, schedule", [("vp-linear", "linear"), ("vp-cosine", "squaredcos_cap_v2")]
)
def test_tables_of_diffusers(name, schedule):
    table = DDPMScheduler(
        num_train_timesteps=1000, beta_schedule=schedule
    ).alphas_cumprod.double()  # made in float32
    torch.testing.assert_close(make_path(name).alpha(ENTRIES).square(), table, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("name", PATHS)
def test_derivatives(name):
    path = make_path(name)
    t = INSIDE.clone().requires_grad_()
    c = path.at(t)
    (dalpha,) = torch.autograd.grad(c.alpha.sum(), t, retain_graph=True)
    (dsigma,) = torch.autograd.grad(c.sigma.sum(), t)
    torch.testing.assert_close(c.dalpha, dalpha, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(c.dsigma, dsigma, rtol=1e-9, atol=1e-9)

    # and against central differences, away from the bend of the cosine path
    t, h = torch.linspace(0.01, 0.99, 99, dtype=torch.float64), 1e-5
    c, low, high = path.at(t), path.at(t - h), path.at(t + h)
    torch.testing.assert_close(c.dalpha, (high.alpha - low.alpha) / (2 * h), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(c.dsigma, (high.sigma - low.sigma) / (2 * h), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", PATHS)
def test_lam_and_its_inverse(name):
    path = make_path(name)
    t = torch.cat([torch.logspace(-9, -3, 25, dtype=torch.float64), INSIDE])
    torch.testing.assert_close(path.time(path.lam(t)), t, rtol=1e-9, atol=1e-14)
    lam = torch.linspace(-5, 15, 300, dtype=torch.float64)  # all paths reach these
    torch.testing.assert_close(path.lam(path.time(lam)), lam, rtol=1e-9, atol=1e-9)
    # lam means half the log of the signal-to-noise ratio
    c = path.at(INSIDE)
    torch.testing.assert_close(
        torch.exp(2 * path.lam(INSIDE)), (c.alpha / c.sigma) ** 2, rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("name", PATHS)
def test_monotone_and_positive(name):
    t = torch.linspace(0, 1, 5001, dtype=torch.float64)
    c, lam = make_path(name).at(t), make_path(name).lam(t)
    assert (c.alpha[:-1] > 0).all() and (c.alpha >= 0).all() and (c.sigma[1:] > 0).all()
    assert (c.alpha.diff() < 0).all() and (c.sigma.diff() >= 0).all() and (lam.diff() < 0).all()
    assert (c.dalpha[1:] < 0).all() and (c.dsigma[:-1] > 0).all()


@pytest.mark.parametrize("name", PATHS)
def test_variance(name):
    """The straight path adds amplitudes, all others variances."""
    c = make_path(name).at(torch.cat([torch.logspace(-12, -3, 10, dtype=torch.float64), INSIDE]))
    total = c.alpha + c.sigma if name == "rectified" else c.alpha.square() + c.sigma.square()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", PATHS)
def test_ends(name):
    path = make_path(name)
    data, noise = path.at(torch.tensor(0.0)), path.at(torch.tensor(1.0))
    assert data.alpha == 1 and data.sigma == 0 and not math.copysign(1, data.sigma) < 0
    assert data.dsigma > 0 and torch.isfinite(data.dalpha)
    assert path.lam(torch.tensor(0.0)) == math.inf and path.time(torch.tensor(math.inf)) == 0
    assert all(torch.isfinite(v) for v in noise)
    if name in ("rectified", "trigonometric"):
        assert noise.alpha == 0 and noise.sigma == 1
        assert path.lam(torch.tensor(1.0)) == -math.inf and path.time(torch.tensor(-math.inf)) == 1
    else:
        # Ho et al. 2020: sqrt(prod(1 - beta)) = 0.0064; Nichol and Dhariwal leave less by far
        assert 0 < noise.alpha < (0.0064 if name == "vp-linear" else 1e-4)


@pytest.mark.parametrize("name", PATHS)
def test_mix_broadcasts_over_samples_only(name):
    """Four samples of side 4 with four times: a wrong broadcast would go unseen in shapes."""
    path, generator = make_path(name), torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(4, 4, 4, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    t = torch.tensor([0.1, 0.5, 0.7, 1.0], dtype=torch.float64)
    mixed = path.mix(x0, eps, t)
    for i in range(4):
        alpha, sigma = float(path.alpha(t[i])), float(path.sigma(t[i]))
        torch.testing.assert_close(mixed[i], alpha * x0[i] + sigma * eps[i])
    torch.testing.assert_close(path.mix(x0, eps, t[1]), path.mix(x0, eps, t[1].expand(4)))


def test_unknown_path_names_the_nearest():
    with pytest.raises(UserError, match="vp-cosine"):
        make_path("vp-cosin")
