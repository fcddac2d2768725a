"""Samplers on distributions whose answers are known: order of convergence, whole trajectories,
whole distributions."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import torchdiffeq
from diffusers import DPMSolverMultistepScheduler
from scipy import stats

from core.condition import Condition
from core.counting import count_evals
from core.diffusion.grids import make_grid
from core.diffusion.parameterisations import Denoised
from core.diffusion.paths import PATHS, make_path
from core.errors import UserError
from core.noise import Noise
from core.sampling.denoisers import Conditioned, denoiser_for
from core.sampling.solvers import SAMPLERS, make_sampler
from core.sampling.solvers.unipc import unipc
from tests.helpers.exact import (
    MEAN,
    STD,
    GaussianDenoiser,
    fitted_order,
    mixture,
    mixture_cdf,
    mixture_flow,
)
from tests.helpers.models import model_of

DETERMINISTIC = [name for name, s in SAMPLERS.items() if s.order and not s.stochastic]
STOCHASTIC = [name for name, s in SAMPLERS.items() if s.stochastic and s.order]
SOLVERS = {name: (SAMPLERS[name].run, SAMPLERS[name].order) for name in DETERMINISTIC}
SOLVERS |= {
    f"unipc-{p}": (partial(unipc, order=p), p + 1) for p in (1, 2, 3)
}  # with its corrector one order more


def _times(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _interior(steps: int) -> torch.Tensor:
    """From 0.95 to 0.1; the two tiny steps at the start keep a multistep method's first, low-order
    steps out of sight."""
    return torch.cat(
        [
            _times(0.95, 0.95 - 1e-5),
            torch.linspace(0.95 - 2e-5, 0.1, steps + 1, dtype=torch.float64),
        ]
    )


def _gaussians(path) -> GaussianDenoiser:
    """Several at once: a single one's error may cross zero and feign any order."""
    return GaussianDenoiser(
        path, torch.full((4, 1), 0.5).double(), _times(0.2, 0.4, 0.7, 1.1)[:, None]
    )


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_order_on_gaussians(solver, name):
    """Against the closed form of the flow."""
    run, order = SOLVERS[solver]
    denoiser, steps, errors = _gaussians(make_path(name)), [80, 160], []
    x = torch.full((4, 1), 1.5, dtype=torch.float64)
    for n in steps:
        grid = _interior(n)
        errors.append(
            float((run(denoiser, x, grid) - denoiser.flow(x, grid[0], grid[-1])).abs().max())
        )
    assert fitted_order(steps, errors) >= order - 0.3
    assert errors[-1] > 1e-11, "below rounding, where no order can be seen"
    assert errors[0] < 0.05


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_order_on_a_mixture(solver, name):
    """Against trajectories integrated by scipy."""
    path, (run, order) = make_path(name), SOLVERS[solver]
    # Fewer steps where the order is high: scipy's trajectories have ten digits.
    x, steps = np.linspace(-1.9, 1.9, 9), [80, 160] if order < 4 else [20, 40]
    exact = mixture_flow(path, x, 0.95, 0.1)
    denoiser = Conditioned(mixture(path))
    errors = [
        float(
            np.sqrt(
                np.mean(
                    (run(denoiser, torch.tensor(x)[:, None], _interior(n))[:, 0].numpy() - exact)
                    ** 2
                )
            )
        )
        for n in steps
    ]
    assert fitted_order(steps, errors) >= order - 0.3
    assert 1e-9 < errors[-1] and errors[0] < 0.05


def test_third_order_of_dpm_solver_is_lost_in_diffusers():
    """Its second difference has half the weight of ours: of order 2 by measurement, while ours is
    of order 3."""
    path, steps = make_path("vp-cosine"), [40, 80, 160, 320]
    denoiser, x = _gaussians(path), torch.full((4, 1), 1.5, dtype=torch.float64)

    def theirs(grid):
        scheduler, c, y, guesses = DPMSolverMultistepScheduler(solver_order=3), path.at(grid), x, []
        scheduler.sigmas = c.sigma / c.alpha
        for i in range(len(grid) - 1):
            scheduler._step_index = i
            guesses.append(denoiser(y, grid[i]).x0)
            if i == 0:
                y = scheduler.dpm_solver_first_order_update(guesses[-1], sample=y)
            elif i == 1:
                y = scheduler.multistep_dpm_solver_second_order_update(guesses, sample=y)
            else:
                y = scheduler.multistep_dpm_solver_third_order_update(guesses, sample=y)
        return y

    errors = {"ours": [], "theirs": []}
    for n in steps:
        grid = _interior(n)
        exact = denoiser.flow(x, grid[0], grid[-1])
        errors["ours"].append(
            float((SAMPLERS["dpm++3m"].run(denoiser, x, grid) - exact).abs().max())
        )
        errors["theirs"].append(float((theirs(grid) - exact).abs().max()))
    assert fitted_order(steps, errors["ours"]) > 2.8
    assert 1.7 < fitted_order(steps, errors["theirs"]) < 2.3
    assert errors["ours"][-1] < errors["theirs"][-1] / 4


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize(
    "solver, tolerance",
    [("ddim", 0.02), ("heun", 1e-3), ("dpm++2m", 2e-3), ("dpm++3m", 2e-3), ("unipc", 1e-3)],
)
def test_whole_trajectories(solver, tolerance, name):
    """From pure noise to the data on the usual grid, both ends included."""
    path = make_path(name)
    x = stats.norm.ppf((np.arange(21) + 0.5) / 21)
    exact = mixture_flow(path, x, 1.0, 1e-9)
    grid = make_grid(SAMPLERS[solver].grid, path, 200)
    got = (
        SAMPLERS[solver]
        .run(Conditioned(mixture(path)), torch.tensor(x)[:, None], grid)[:, 0]
        .numpy()
    )
    assert np.sqrt(np.mean((got - exact) ** 2)) < tolerance


class Impulses:
    """In place of Noise: sample j gets noise 1 at step j - 1 and none at any other; samples 0 and 1
    get none at all."""

    def __init__(self, count: int):
        self.count = count

    def normal(self, shape, stream, step=0, dtype=torch.float32):
        z = torch.zeros(self.count, *shape, dtype=dtype)
        z[step + 1] = 1
        return z


def _moments(run, denoiser: GaussianDenoiser, grid: torch.Tensor) -> tuple[float, float]:
    """The exact mean and standard deviation of a sampler's results on one Gaussian, without a
    random number.

    All is linear in the starting noise and the noise of each step: their impulse responses add in
    squares.
    """
    count = len(grid) + 1  # the mean, the start, and each step
    mean, std = denoiser.marginal(grid[0])
    x = mean.expand(count, 1).clone()
    x[1] += std
    out = run(denoiser, x, grid, Impulses(count))[:, 0]
    return float(out[0]), float((out[1:] - out[0]).square().sum().sqrt())


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_weak_order(sampler, name):
    """Mean and spread at t = 0.1, started from the exact distribution at t = 0.95."""
    path, steps, errors = make_path(name), [40, 80, 160], []
    for n in steps:
        grid = torch.linspace(0.95, 0.1, n + 1, dtype=torch.float64)
        error = 0.0
        for m, s in ((0.5, 0.2), (-0.3, 0.7), (1.0, 1.2)):
            denoiser = GaussianDenoiser(path, _times(m), _times(s))
            got, exact = (
                _moments(SAMPLERS[sampler].run, denoiser, grid),
                denoiser.marginal(grid[-1]),
            )
            error = max(error, *(abs(g - float(e)) for g, e in zip(got, exact, strict=True)))
        errors.append(error)
    assert fitted_order(steps, errors) >= SAMPLERS[sampler].order - 0.3
    assert 1e-7 < errors[-1] and errors[0] < 0.15


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_whole_runs_have_the_right_moments(sampler, name):
    path, errors = make_path(name), []
    for n in (100, 400):
        grid, error = make_grid("time", path, n), 0.0
        for m, s in ((0.5, 0.2), (-0.3, 0.5)):
            mean, std = _moments(
                SAMPLERS[sampler].run, GaussianDenoiser(path, _times(m), _times(s)), grid
            )
            error = max(error, abs(mean - m), abs(std - s))
        errors.append(error)
    assert errors[0] < 0.05 and errors[1] < 0.4 * errors[0]


@pytest.mark.parametrize("name", ["vp-cosine", "rectified"])
@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_samples_of_a_mixture(sampler, name):
    """The samples themselves, drawn with the repository's noise, come from the mixture."""
    path, rng = make_path(name), Noise(1, torch.arange(3000))
    x = rng.normal((1,), "start", dtype=torch.float64)
    got = (
        SAMPLERS[sampler]
        .run(Conditioned(mixture(path)), x, make_grid("time", path, 250), rng)[:, 0]
        .numpy()
    )
    assert stats.kstest(got, mixture_cdf).pvalue > 1e-3
    assert got.mean() == pytest.approx(MEAN, abs=4 * STD / np.sqrt(3000))
    assert got.std() == pytest.approx(STD, rel=0.06)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_jumps_of_an_exact_consistency_function(steps):
    """Every jump of an exact consistency function lands on the data, so any number of them has the
    right moments."""
    path = make_path("trigonometric")
    gaussian = GaussianDenoiser(path, _times(0.5), _times(0.3))

    def consistent(x, t):
        return Denoised(gaussian.flow(x, t, torch.tensor(0.0)), torch.full_like(x, torch.nan))

    consistent.path, consistent.marginal = path, gaussian.marginal
    assert _moments(
        SAMPLERS["consistency"].run, consistent, make_grid("time", path, steps)
    ) == pytest.approx((0.5, 0.3))


class QuickNoise:
    """In place of Noise where a thousand draws would take seconds."""

    def __init__(self, count: int):
        self.count, self.generator = count, torch.Generator().manual_seed(0)

    def normal(self, shape, stream, step=0, dtype=torch.float32):
        return torch.randn(self.count, *shape, dtype=dtype, generator=self.generator)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_step_count_ends_at_the_data(sampler, name):
    """Finite and near the data at 1, 2, 3, 999 and 1000 steps; discrete grids too; no callback is
    missed."""
    path, rng = make_path(name), QuickNoise(64)
    x = rng.normal((1,), "start", dtype=torch.float64)
    denoiser = GaussianDenoiser(path, _times(0.5), _times(0.3))
    for steps, discrete in ((1, None), (2, None), (3, None), (3, 1000), (999, 1000), (1000, None)):
        grid, seen = make_grid("time", path, steps, discrete), []
        got = SAMPLERS[sampler].run(denoiser, x, grid, rng, callback=seen.append)
        assert torch.isfinite(got).all()
        assert (got - 0.5).abs().max() < 0.3 * 4.5, f"{steps} steps end outside the data"
        assert float(got.mean()) == pytest.approx(0.5, abs=0.15)
        if steps >= 999 and SAMPLERS[sampler].order:
            assert float(got.std()) == pytest.approx(
                0.3, abs=0.09
            )  # three standard errors of 64 samples
        assert [p.index for p in seen] == list(range(1, steps + 1)) and {p.steps for p in seen} == {
            steps
        }
        assert [p.t for p in seen] == grid[:-1].tolist() and [p.s for p in seen] == grid[
            1:
        ].tolist()
        assert torch.equal(seen[-1].x, got)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("grid", ["quadratic", "lam", "karras"])
def test_other_grids(sampler, grid):
    """The grids that crowd times at the ends are finite at few steps and right at 100."""
    for name in PATHS:
        path, rng = make_path(name), QuickNoise(256)
        x = rng.normal((1,), "start", dtype=torch.float64)
        denoiser = GaussianDenoiser(path, _times(0.5), _times(0.3))
        for steps in (1, 2, 3, 100):
            got = SAMPLERS[sampler].run(denoiser, x, make_grid(grid, path, steps), rng)
            assert torch.isfinite(got).all()
        if SAMPLERS[sampler].order:
            assert float(got.mean()) == pytest.approx(0.5, abs=0.06)
            assert float(got.std()) == pytest.approx(0.3, abs=0.06)


@pytest.mark.parametrize("name", PATHS)
def test_adaptive_steps_keep_their_tolerance(name):
    """Against trajectories integrated by scipy; a tenth of the tolerance costs more evaluations
    and no more steps of the grid do."""
    path, x = make_path(name), np.linspace(-1.9, 1.9, 9)
    exact, model = mixture_flow(path, x, 0.95, 0.1), mixture(path)
    calls = []
    for tolerance in (1e-3, 1e-5, 1e-7):
        with count_evals(model.network) as counter, torch.no_grad():
            grid = torch.linspace(0.95, 0.1, 4, dtype=torch.float64)
            start = torch.tensor(x)[:, None]
            got = SAMPLERS["rk45"].run(Conditioned(model), start, grid, tolerance=tolerance)
        calls.append(counter.forwards / len(x))
        assert np.abs(got[:, 0].numpy() - exact).max() < 20 * tolerance
    assert calls[0] < calls[1] < calls[2] and all(n == int(n) for n in calls)
    with count_evals(model.network) as counter, torch.no_grad():
        grid = torch.linspace(0.95, 0.1, 50, dtype=torch.float64)
        SAMPLERS["rk45"].run(Conditioned(model), start, grid, tolerance=1e-5)
    assert counter.forwards / len(x) == calls[1]


def test_adaptive_evaluations_are_torchdiffeqs_calls():
    """On the rectified path, where w is t, dopri5 is given the same equation by hand."""
    model, asked = mixture(make_path("rectified")), []
    start = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]

    def slope(t, y):
        asked.append(float(t))
        guess = Conditioned(model)(y, t)
        return guess.eps - guess.x0

    grid, options = _times(0.9, 0.2), {"norm": lambda y: y.abs().max()}  # of one number a sample
    with torch.no_grad():
        theirs = torchdiffeq.odeint(
            slope, start, grid, rtol=1e-4, atol=1e-4, method="dopri5", options=options
        )[-1]
    with count_evals(model.network) as counter, torch.no_grad():
        ours = SAMPLERS["rk45"].run(Conditioned(model), start, grid)
    assert counter.forwards == 5 * len(asked) > 5 * 7
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_tolerance_that_is_none():
    x, denoiser = torch.zeros(1, 1).double(), _gaussians(make_path("rectified"))
    with pytest.raises(UserError, match="tolerance = 0"):
        SAMPLERS["rk45"].run(denoiser, x, _interior(2), tolerance=0.0)


class Counting(torch.nn.Module):
    """Counts calls and samples on its own."""

    def __init__(self):
        super().__init__()
        self.calls = self.samples = 0

    def forward(self, x, t, r=None, label=None):
        self.calls, self.samples = self.calls + 1, self.samples + len(x)
        return 0.1 * x


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_evaluations_per_sample(sampler, guidance):
    """One a step, two with guidance; Heun evaluates twice except where it ends on the data, midpoint
    twice, RK4 four times, and RK45 as often as it likes."""
    batch, steps, network = 3, 5, Counting()
    model = model_of(network, "rectified", num_classes=2)
    denoiser = denoiser_for(model, Condition(torch.tensor([0, 1, 1])), guidance)
    rng = Noise(0, torch.arange(batch))
    with count_evals(network) as counter, torch.no_grad():
        SAMPLERS[sampler].run(
            denoiser, rng.normal((1, 4, 4), "start"), make_grid("time", model.path, steps), rng
        )
    calls = {"heun": 2 * steps - 1, "midpoint": 2 * steps, "rk4": 4 * steps, "rk45": network.calls}
    expected = calls.get(sampler, steps) * (2 if guidance != 1.0 else 1)
    assert network.samples == batch * expected
    assert counter.forwards == counter.evals == network.samples


def test_stochastic_samplers_ask_for_noise():
    denoiser = GaussianDenoiser(make_path("rectified"), _times(0.5), _times(0.3))
    for name, sampler in SAMPLERS.items():
        run = partial(
            sampler.run, denoiser, torch.ones(1, 1).double(), make_grid("time", denoiser.path, 3)
        )
        if sampler.stochastic:
            with pytest.raises(ValueError, match="rng"):
                run()
        else:
            assert torch.equal(run(), run(Noise(0, torch.arange(1)))), f"{name} is deterministic"


def test_euler_on_the_straight_path_is_euler():
    """x + (s - t) dx/dt, written out with the model's own velocity."""
    path = make_path("rectified")
    model, grid = mixture(path), make_grid("time", path, 7)
    x = y = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    for t, s in pairwise(grid):
        y = y + (s - t) * model.u(y, t)
    torch.testing.assert_close(SAMPLERS["euler"].run(Conditioned(model), x, grid), y)


def test_unknown_sampler_names_the_nearest():
    with pytest.raises(UserError, match=r"dpm\+\+2m"):
        make_sampler("dpmpp2m")
