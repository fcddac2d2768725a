"""The path from a table of betas: every entry against 40 digits, and what all paths promise
(tests/core/diffusion/test_paths.py)."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from core.config import parse
from core.diffusion.grids import GRIDS, make_grid
from core.diffusion.paths import make_path
from core.diffusion.tables import BetaTable
from core.errors import UserError
from core.model import ModelSpec

ROUGH = tuple(
    (1e-4 + 0.3 * torch.rand(60, generator=torch.Generator().manual_seed(0)).double() ** 4).tolist()
)
TABLES = {
    "scaled linear": BetaTable(schedule="scaled_linear", first=0.00085, last=0.012),
    "linear, other ends": BetaTable(schedule="linear", steps=500, first=2e-4, last=0.03),
    "cosine of 50": BetaTable(schedule="squaredcos_cap_v2", steps=50),
    "sigmoid": BetaTable(schedule="sigmoid"),
    "laplace": BetaTable(schedule="laplace"),
    "rough": BetaTable(schedule="given", steps=60, betas=ROUGH),
    "linear, zero": BetaTable(schedule="linear", zero_terminal_snr=True),
    "cosine, zero": BetaTable(schedule="squaredcos_cap_v2", zero_terminal_snr=True),
    "given to zero": BetaTable(schedule="given", steps=3, betas=(0.1, 0.5, 1.0)),
}
SMOOTH = [name for name in TABLES if name not in ("rough", "given to zero", "cosine of 50")]
INSIDE = torch.linspace(1e-3, 0.9995, 777, dtype=torch.float64)


def _exact(table: BetaTable) -> tuple[np.ndarray, np.ndarray]:
    """alpha^2 and sigma^2 at each entry, from the definitions, with 40 digits."""
    f, T = mpmath.mpf, table.steps
    first, last = f(table.first), f(table.last)
    if table.schedule == "given":
        betas = list(map(f, table.betas))
    elif table.schedule == "linear":
        betas = [first + (last - first) * k / (T - 1) for k in range(T)]
    elif table.schedule == "scaled_linear":
        betas = [
            (mpmath.sqrt(first) + (mpmath.sqrt(last) - mpmath.sqrt(first)) * k / (T - 1)) ** 2
            for k in range(T)
        ]
    elif table.schedule == "sigmoid":
        betas = [
            (last - first) / (1 + mpmath.exp(6 - f(12) * k / (T - 1))) + first for k in range(T)
        ]
    else:
        g = [
            mpmath.cos((f(n) / T + f("0.008")) / f("1.008") * mpmath.pi / 2) ** 2
            for n in range(T + 1)
        ]
        betas = [min(1 - g[k + 1] / g[k], f("0.999")) for k in range(T)]
    products, product = [], f(1)
    for beta in betas:
        product *= 1 - beta
        products.append(product)
    if table.zero_terminal_snr:
        roots = [mpmath.sqrt(p) for p in products]
        products = [((r - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2 for r in roots]
    return np.array([float(p) for p in products]), np.array([float(1 - p) for p in products])


@pytest.mark.parametrize("name", [name for name in TABLES if name != "laplace"])
def test_every_entry_is_exact(name):
    table = TABLES[name]
    with mpmath.workdps(40):
        alpha2, sigma2 = _exact(table)
    c = table.build().at((torch.arange(table.steps, dtype=torch.float64) + 1) / table.steps)
    np.testing.assert_allclose(c.alpha.square().numpy(), alpha2, rtol=1e-9, atol=1e-30)
    np.testing.assert_allclose(c.sigma.square().numpy(), sigma2, rtol=1e-11)


@pytest.mark.parametrize(
    "schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"]
)
@pytest.mark.parametrize("zero", [False, True])
def test_tables_of_diffusers(schedule, zero):
    theirs = DDPMScheduler(
        beta_schedule=schedule, rescale_betas_zero_snr=zero
    ).alphas_cumprod.double()  # made in float32
    table = BetaTable(schedule=schedule, zero_terminal_snr=zero)
    ours = table.build().alpha((torch.arange(1000, dtype=torch.float64) + 1) / 1000).square()
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-9)
    assert (ours[-1] == 0) == zero
    torch.testing.assert_close(
        (1 - table.effective_betas()).cumprod(0), ours, rtol=1e-9, atol=1e-15
    )


@pytest.mark.parametrize(
    "name, table", [("vp-linear", "linear"), ("vp-cosine", "squaredcos_cap_v2")]
)
def test_between_entries_it_is_near_the_analytic_paths(name, table):
    t = torch.linspace(0, 0.998, 7777, dtype=torch.float64)
    ours, exact = BetaTable(schedule=table).build(), make_path(name)
    torch.testing.assert_close(ours.alpha(t), exact.alpha(t), rtol=1e-7, atol=0)
    inside = t[t > 2e-3]
    torch.testing.assert_close(ours.at(inside).dsigma, exact.at(inside).dsigma, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", TABLES)
def test_derivatives(name):
    path = TABLES[name].build()
    t = INSIDE.clone().requires_grad_()
    c = path.at(t)
    (dalpha,) = torch.autograd.grad(c.alpha.sum(), t, retain_graph=True)
    (dsigma,) = torch.autograd.grad(c.sigma.sum(), t)
    torch.testing.assert_close(c.dalpha, dalpha, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(c.dsigma, dsigma, rtol=1e-9, atol=1e-9)
    if name in SMOOTH:  # the slope is continuous at the entries, which these times are
        t, h = torch.linspace(0.01, 0.99, 99, dtype=torch.float64), 1e-6
        c, low, high = path.at(t), path.at(t - h), path.at(t + h)
        torch.testing.assert_close(
            c.dalpha, (high.alpha - low.alpha) / (2 * h), rtol=1e-5, atol=1e-7
        )
        torch.testing.assert_close(
            c.dsigma, (high.sigma - low.sigma) / (2 * h), rtol=1e-5, atol=1e-7
        )


@pytest.mark.parametrize("name", TABLES)
def test_lam_and_its_inverse(name):
    path = TABLES[name].build()
    t = torch.cat([torch.logspace(-9, -3, 25, dtype=torch.float64), INSIDE])
    torch.testing.assert_close(path.time(path.lam(t)), t, rtol=1e-9, atol=1e-14)
    lam = torch.linspace(float(path.lam(torch.tensor(0.9999))), 15, 300, dtype=torch.float64)
    torch.testing.assert_close(path.lam(path.time(lam)), lam, rtol=1e-9, atol=1e-9)
    assert path.time(torch.tensor(math.inf)) == 0 and path.time(torch.tensor(-math.inf)) == 1
    assert path.time(lam.view(3, 100)).shape == (3, 100)


@pytest.mark.parametrize("name", TABLES)
def test_monotone_with_right_ends(name):
    path = TABLES[name].build()
    t = torch.linspace(0, 1, 5001, dtype=torch.float64)
    c, lam = path.at(t), path.lam(t)
    assert (c.alpha[:-1] > 0).all() and (c.alpha >= 0).all() and (c.sigma[1:] > 0).all()
    assert (c.alpha.diff() < 0).all() and (c.sigma.diff() >= 0).all() and (lam.diff() < 0).all()
    assert (c.dalpha[1:] < 0).all() and (c.dsigma[:-1] > 0).all()
    torch.testing.assert_close(
        c.alpha.square() + c.sigma.square(), torch.ones(5001).double(), rtol=0, atol=1e-14
    )
    assert c.alpha[0] == 1 and c.sigma[0] == 0 and torch.isfinite(c.dalpha).all()
    zero = "zero" in name
    assert (
        (c.alpha[-1] == 0 and c.sigma[-1] == 1 and lam[-1] == -math.inf)
        if zero
        else c.alpha[-1] > 0
    )
    # a far smaller time than any entry still has its digits: sigma^2 starts as a line
    tiny = path.at(torch.tensor([1e-12, 2e-12], dtype=torch.float64)).sigma.square()
    assert float(tiny[1] / tiny[0]) == pytest.approx(2, rel=1e-6)


@pytest.mark.parametrize("name", ["scaled linear", "linear, zero", "given to zero"])
@pytest.mark.parametrize("grid", GRIDS)
def test_grids(grid, name):
    for steps in (1, 2, 7, 100):
        times = make_grid(grid, TABLES[name].build(), steps)
        assert times[0] == 1 and times[-1] == 0 and (times.diff() < 0).all()


def test_it_travels_in_the_spec():
    values = {
        "path": {
            "name": "table",
            "schedule": "scaled_linear",
            "first": 0.001,
            "last": 0.012,
            "zero_terminal_snr": True,
        }
    }
    spec = parse(ModelSpec, values | {"channels": 1, "side": 8, "num_classes": 0}, "test")
    again = ModelSpec.model_validate_json(spec.model_dump_json())
    assert again == spec and again.path == BetaTable(
        schedule="scaled_linear", first=0.001, last=0.012, zero_terminal_snr=True
    )
    assert spec.build().path.alpha(torch.tensor(1.0)) == 0
    assert (
        parse(ModelSpec, {"channels": 1, "side": 8, "num_classes": 0}, "test").path == "vp-cosine"
    )


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("vp-cosin", "test: path: .*'vp-cosine'.*got 'vp-cosin'"),
        ({"name": "table", "schedule": "lineer"}, "path.schedule: .*'linear'.*'lineer'"),
        (
            {"name": "table", "schedule": "linear", "frist": 0.1},
            r"unknown key 'path.frist' \(did you mean 'first'\?\)",
        ),
        (
            {"name": "table", "schedule": "linear", "last": 1.5},
            "every beta must be above 0 and below 1",
        ),
        ({"name": "table", "schedule": "linear", "first": 0.0}, "every beta must be above 0"),
        (
            {"name": "table", "schedule": "given", "steps": 2, "betas": [1.0, 0.5]},
            "every beta must be above 0 and below 1",
        ),
        (
            {"name": "table", "schedule": "given", "steps": 3, "betas": [0.1, 0.5]},
            "2 betas for steps = 3",
        ),
        (
            {"name": "table", "schedule": "linear", "betas": [0.1]},
            "betas are given exactly when schedule is given",
        ),
    ],
)
def test_mistakes(path, says):
    with pytest.raises(UserError, match=says):
        parse(ModelSpec, {"path": path, "channels": 1, "side": 8, "num_classes": 0}, "test")


def test_more_timesteps_than_there_are():
    path = TABLES["cosine of 50"].build()
    for grid in ("trailing", "leading", "linspace"):
        theirs = DDIMScheduler(num_train_timesteps=50, timestep_spacing=grid)
        theirs.set_timesteps(9)
        assert (
            (make_grid(grid, path, 9, 50)[:-1] * 50).round().long() - 1
        ).tolist() == theirs.timesteps.tolist()
        with pytest.raises(UserError, match="51.*50"):
            make_grid(grid, path, 51, 50)
    with pytest.raises(UserError, match="past the last of 50"):
        make_grid("leading-offset", path, 50, 50)
    with pytest.raises(UserError, match="gives one of them twice"):
        make_grid("leading-multistep", path, 50, 50)
