"""Densities by the flow against closed forms: of a Gaussian, of a mixture, of noised data, and of
what arrives at the prior."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributions, nn

from core.codec import Identity, Pixels
from core.counting import count_evals
from core.diffusion.parameterisations import PREDICTIONS, SingularTime, convert
from core.diffusion.paths import PATHS, make_path
from core.errors import UserError
from core.noise import Noise
from eval.likelihood.bits import bits_per_dimension, dequantised
from eval.likelihood.flow import Integration, log_density, rademacher
from teachers.exact import MixtureDenoiser, gaussian_flow, mixture_model
from tests.helpers.models import model_of

SHAPE = (1, 2, 2)
STDS, WEIGHTS = torch.tensor([0.3, 0.2, 0.6]).double(), torch.tensor([0.5, 0.2, 0.3]).double()
MEANS = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
EXACT = Integration(trace="exact", tolerance=1e-6)


def mixture(alpha: float = 1.0, sigma: float = 0.0) -> distributions.Distribution:
    """Of alpha x0 + sigma eps, by PyTorch's own distributions."""
    width = (alpha**2 * STDS**2 + sigma**2).sqrt()[:, None].expand(3, 4)
    components = distributions.Independent(distributions.Normal(alpha * MEANS.flatten(1), width), 1)
    return distributions.MixtureSameFamily(distributions.Categorical(WEIGHTS), components)


def points(count: int, seed: int = 1) -> torch.Tensor:
    torch.manual_seed(seed)
    return mixture().sample((count,)).view(count, *SHAPE)


def bits(nats: torch.Tensor) -> torch.Tensor:
    return -nats / 4 / math.log(2)


def from_other_prior(path, x: torch.Tensor) -> torch.Tensor:
    """What log p changes where x arrive at N(0, I) and not at the mixture's noisiest distribution:
    only vp-linear has so much signal left that it counts."""
    c = path.at(torch.tensor(1.0, dtype=torch.float64))
    standard = distributions.Normal(0.0, 1.0).log_prob(x).flatten(1).sum(1)
    change = standard - mixture(float(c.alpha), float(c.sigma)).log_prob(x.flatten(1))
    assert (float(bits(change).abs().max()) < 1e-4) == (path.config != "vp-linear")
    return change


@pytest.mark.parametrize("name", ["vp-cosine", "rectified", "trigonometric"])
def test_bits_of_a_gaussian(name):
    """To 1e-3, at the usual t_min and tolerance, by both kinds of trace: the flow scales all
    directions alike, so that Hutchinson's estimate has no error."""
    mean, std = MEANS[:1], 0.5
    one = torch.ones(1).double()
    model = mixture_model(make_path(name), mean, std * one, one)
    x = mean + std * torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(2)).double()
    expected = bits(distributions.Normal(mean, std).log_prob(x).flatten(1).sum(1))
    for how in (Integration(trace="exact"), Integration(probes=2)):
        found = log_density(model, x, how, Noise(0, torch.arange(5)))
        torch.testing.assert_close(bits(found.value), expected, rtol=0, atol=1e-3)
    assert float(found.error.max()) < 1e-6


@pytest.mark.parametrize("name", PATHS)
def test_bits_of_a_mixture(name):
    x = points(12)
    path = make_path(name)
    found = log_density(mixture_model(path, MEANS, STDS, WEIGHTS), x, EXACT)
    expected = mixture().log_prob(x.flatten(1)) + from_other_prior(path, found.prior)
    torch.testing.assert_close(bits(found.value), bits(expected), rtol=0, atol=1e-3)
    assert found.error is None


@pytest.mark.parametrize("t_min", [0.02, 0.3])
@pytest.mark.parametrize("name", ["rectified", "trigonometric"])
def test_at_t_min_it_is_the_density_of_noised_data(name, t_min):
    path = make_path(name)
    c = path.at(torch.tensor(t_min, dtype=torch.float64))
    x = points(8)
    how = EXACT.model_copy(update={"t_min": t_min, "tolerance": 1e-9})
    found = log_density(mixture_model(path, MEANS, STDS, WEIGHTS), x, how)
    expected = mixture(float(c.alpha), float(c.sigma)).log_prob(x.flatten(1))
    torch.testing.assert_close(found.value, expected, rtol=0, atol=1e-6)


def test_hutchinsons_mean_is_the_exact_trace_within_its_error():
    model, x = mixture_model(make_path("rectified"), MEANS, STDS, WEIGHTS), points(10)
    exact = log_density(model, x, Integration(trace="exact", tolerance=1e-5, t_min=0.05)).value

    def estimated(probes: int):
        how = Integration(probes=probes, tolerance=1e-5, t_min=0.05)
        return log_density(model, x, how, Noise(0, torch.arange(10)))

    found = estimated(64)
    z = (found.value - exact) / found.error
    assert float(found.error.min()) > 1e-3
    assert float(z.abs().max()) < 4
    assert float(z.square().mean()) > 0.1  # the error is of the right size from below too
    ratio = estimated(16).error / found.error
    assert 1.5 < float(ratio.mean()) < 2.6  # as one over the root of the number of probes
    assert bool(torch.isnan(estimated(1).error).all())


def test_probes_are_addressed_by_sample():
    every, one = Noise(3, torch.arange(10)), Noise(3, torch.tensor([7]))
    assert torch.equal(rademacher(every, SHAPE, 2)[7:8], rademacher(one, SHAPE, 2))
    assert rademacher(every, SHAPE, 2).unique().tolist() == [-1.0, 1.0]
    assert not torch.equal(rademacher(every, SHAPE, 2), rademacher(every, SHAPE, 3))


def test_a_smaller_tolerance_costs_more_and_errs_less():
    model, x = mixture_model(make_path("rectified"), MEANS, STDS, WEIGHTS), points(8)
    c = model.path.at(torch.tensor(0.01, dtype=torch.float64))
    exact = mixture(float(c.alpha), float(c.sigma)).log_prob(x.flatten(1))
    errors, forwards = [], []
    for tolerance in (1e-2, 1e-4, 1e-6, 1e-8):
        with count_evals(model.network) as counter:
            how = Integration(trace="exact", tolerance=tolerance, t_min=0.01)
            found = log_density(model, x, how).value
        errors.append(float((found - exact).abs().max()) / 4)
        forwards.append(counter.forwards / len(x))
        # one forward, and a backward for each of 4 dimensions
        assert counter.evals == 5 * counter.forwards
    for tolerance, error in zip((1e-2, 1e-4, 1e-6, 1e-8), errors):
        assert error < 20 * tolerance
    assert errors == sorted(errors, reverse=True)
    assert forwards == sorted(forwards)
    assert forwards[-1] > 3 * forwards[0]


class Exact(nn.Module):
    """The mixture's denoiser in terms of any prediction."""

    def __init__(self, path, kind: str):
        super().__init__()
        self.denoiser, self.kind = MixtureDenoiser(path, MEANS, STDS, WEIGHTS), kind

    def forward(self, x, t, r=None, label=None):
        path = self.denoiser.path
        return convert("x0", self.kind, self.denoiser.x0(x.double(), t), x.double(), t, path)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("name", ["rectified", "vp-cosine"])
def test_a_density_does_not_depend_on_the_prediction(name, kind):
    path, x = make_path(name), points(4)
    model = model_of(Exact(path, kind), path, kind, side=2)
    if name == "rectified" and kind == "eps":
        with pytest.raises(SingularTime, match="alpha is 0"):
            log_density(model, x, EXACT)
        return
    found = log_density(model, x, EXACT).value
    known = log_density(mixture_model(path, MEANS, STDS, WEIGHTS), x, EXACT).value
    torch.testing.assert_close(found, known, rtol=0, atol=1e-3)


def test_the_prior_is_where_the_exact_flow_arrives():
    path, one = make_path("vp-linear"), torch.ones(1).double()
    model = mixture_model(path, MEANS[:1], 0.5 * one, one)
    x, (start, end) = points(5), torch.tensor([1e-5, 1.0], dtype=torch.float64)
    found = log_density(model, x, EXACT).prior
    expected = gaussian_flow(path, x, start, end, MEANS[:1], 0.5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_network_of_float32_is_followed_in_float64():
    """The divergence through a real network against one by central differences, in the sum over
    the flow that both make."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4)).double()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, t, r=None, label=None):
            return self.net(x).view_as(x)

    x = points(3)
    path = make_path("rectified")
    found = log_density(model_of(Net(), path, "u", side=2), x, EXACT).value
    # Euler's product of the flow's Jacobian by differences: det of d x_1 / d x_0
    steps, h = 400, 1e-5

    def flow(y):
        for i in range(steps):
            middle = y + 0.5 / steps * net(y).view_as(y)
            y = y + net(middle).view_as(y) / steps
        return y

    with torch.no_grad():
        for i in range(3):
            columns = []
            for d in range(4):
                move = torch.zeros(4).double()
                move[d] = h
                move = move.view(1, *SHAPE)
                columns.append((flow(x[i : i + 1] + move) - flow(x[i : i + 1] - move)) / (2 * h))
            _, logdet = torch.linalg.slogdet(torch.stack([c.flatten() for c in columns], 1))
            end = flow(x[i : i + 1]).flatten()
            expected = distributions.Normal(0.0, 1.0).log_prob(end).sum() + logdet
            assert float(found[i]) == pytest.approx(float(expected), abs=2e-4)


def test_what_has_no_flow_is_refused():
    path, x = make_path("rectified"), points(2)
    net = Exact(path, "v")
    with pytest.raises(UserError, match="consistency function"):
        log_density(model_of(net, path, {"name": "consistency"}, side=2), x, EXACT)
    with pytest.raises(UserError, match="knows 4 times alone"):
        log_density(model_of(net, path, "v", side=2, discrete_steps=4), x, EXACT)
    generator = model_of(net, path, "v", side=2, sampling={"sampler": "consistency", "steps": 1})
    with pytest.raises(UserError, match="jumps to the data"):
        log_density(generator, x, EXACT)

    class Diverged(nn.Module):
        def forward(self, x, t, r=None, label=None):
            return x * torch.nan

    with pytest.raises(UserError, match="diverged"):
        log_density(model_of(Diverged(), path, "v", side=2), x, EXACT)


def test_bits_of_uniform_pixels_are_eight():
    """All 256 values equally likely: a density of 1 over 256 cells in every dimension."""
    log_p = torch.tensor([-12 * math.log(256 / 127.5)], dtype=torch.float64)
    assert float(bits_per_dimension(log_p, 12, Pixels())) == pytest.approx(8.0, abs=1e-12)
    assert float(bits_per_dimension(log_p, 12, Identity())) == pytest.approx(
        math.log2(256 / 127.5), abs=1e-12
    )


def test_dequantised_pixels_fill_their_cells_and_decode_to_themselves():
    images = torch.randint(0, 256, (200, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)
    x = dequantised(Pixels(), images, Noise(0, torch.arange(200)))
    assert torch.equal(Pixels().decode(x), images)
    gap = (x - Pixels().encode(images).double()) * 127.5
    assert -0.5 < float(gap.min()) < -0.49
    assert 0.49 < float(gap.max()) < 0.5
    assert float(gap.std()) == pytest.approx(12**-0.5, rel=0.03)
    part = dequantised(Pixels(), images[50:60], Noise(0, torch.arange(50, 60)))
    assert torch.equal(part, x[50:60])
    values = torch.randn(3, 2, 1, 1)
    assert torch.equal(dequantised(Identity(), values, Noise(0, torch.arange(3))), values.double())
