"""Labels for networks, and the score, noise and image that follow from their output."""

import numpy as np
import pytest
import torch

from models.score import Score
from models.utils import get_score_fn
from oracles import ExactNetwork, gaussian, level, planar_mixture
from sde_lib import VESDE, VPSDE, subVPSDE

SDES = dict(ve=VESDE, vp=VPSDE, subvp=subVPSDE)
EXACT = 1e-12  # tolerance for the same formula in float64


def test_continuous_labels_and_scores(sde):
    t = torch.tensor([1e-3, 0.25, 1.0], dtype=torch.float64)
    out = torch.tensor([[1.0], [2.0], [-3.0]], dtype=torch.float64)
    if isinstance(sde, VESDE):
        label, exact = 0.01 * 5000**t, out
    else:
        integral = 0.1 * t + 0.5 * t**2 * 19.9
        variance = -torch.expm1(-integral)
        label = 999 * t
        exact = -out / (variance.sqrt() if isinstance(sde, VPSDE) else variance)[:, None]
    torch.testing.assert_close(sde.network_label(t, continuous=True), label, rtol=EXACT, atol=0)
    torch.testing.assert_close(
        sde.score_from_output(out, t, continuous=True), exact, rtol=EXACT, atol=0
    )


@pytest.mark.parametrize('n', [100, 1000])
def test_discrete_labels_and_scores(n):
    t = torch.tensor([0.0, 0.2504, 0.7, 1.0], dtype=torch.float64)
    out = torch.tensor([[1.0], [2.0], [-3.0], [0.5]], dtype=torch.float64)
    ve = VESDE(N=n)
    label = ve.network_label(t, continuous=False)
    assert label.dtype == torch.long and label.tolist() == [
        n - 1,
        round((1 - 0.2504) * (n - 1)),
        round(0.3 * (n - 1)),
        0,
    ]
    assert torch.equal(ve.score_from_output(out, t, continuous=False), out)

    vp = VPSDE(N=n)
    # labels are not rounded, as in the 2021 release
    torch.testing.assert_close(
        vp.network_label(t, continuous=False), (n - 1) * t, rtol=EXACT, atol=0
    )
    alphabar = np.cumprod(1 - np.linspace(0.1 / n, 20 / n, n))[((n - 1) * t).long()]
    exact = -out.numpy() / np.sqrt(1 - alphabar)[:, None]
    # the table of the chain is float32
    np.testing.assert_allclose(vp.score_from_output(out, t, continuous=False), exact, rtol=1e-6)

    sub = subVPSDE(N=n)
    torch.testing.assert_close(sub.network_label(t, continuous=False), 999 * t, rtol=EXACT, atol=0)
    assert torch.equal(
        sub.score_from_output(out, t[1:2].expand(4), continuous=False),
        sub.score_from_output(out, t[1:2].expand(4)),
    )


@pytest.mark.parametrize('continuous', [True, False], ids=['continuous', 'discrete'])
@pytest.mark.parametrize('name', SDES)
def test_the_exact_network_gives_the_exact_score(name, continuous):
    """A discrete network also has it at the noise levels of its chain, for any number of steps."""
    sde, target = SDES[name](N=1000), planar_mixture()
    # subVP has continuous networks only
    network = ExactNetwork(sde, target, continuous=continuous or name == 'subvp')
    sde.N = 500
    i = torch.tensor([0, 3, 400, 998])
    t = (i + 0.01).double() / 999 if name == 'vp' else i.double() / 999
    t = t.clamp(min=1e-5)
    x = torch.tensor([[0.1, 0.4], [-1.0, 0.7], [2.0, 1.0], [0.0, -3.0]], dtype=torch.float64)
    got = get_score_fn(sde, network, continuous=continuous)(x, t)
    m, std = level(sde, t)
    if name == 'vp' and not continuous:
        alphabar = (1 - torch.linspace(0.1 / 1000, 20 / 1000, 1000, dtype=torch.float64)).cumprod(
            0
        )[i]
        m, std = alphabar.sqrt(), (1 - alphabar).sqrt()
    if name == 've' and not continuous:
        std = 0.01 * 5000 ** (i.double() / 999)
    # the table of the chain is float32
    torch.testing.assert_close(got, target.score(x, m, std), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('t', [0.3, torch.tensor([0.3, 0.3]), 1], ids=['float', 'tensor', 'int'])
def test_methods_of_a_score_accept_one_time_or_one_for_each_image(sde, t):
    """score, noise, denoise and perturb are exact for a number t and for a (B,) tensor."""
    target, x = planar_mixture(), torch.tensor([[0.2, 0.5], [-1.0, 1.0]])
    model = Score(ExactNetwork(sde, target), sde)
    times = torch.full((2,), float(t if isinstance(t, (int, float)) else t[0]))
    exact = target.score(x, *level(sde, times))
    # times and outputs are float32; at t = 1 the label of VE has an error of 1e-6
    torch.testing.assert_close(model.score(x, t).double(), exact, rtol=1e-5, atol=1e-6)
    m, std = level(sde, times)
    torch.testing.assert_close(
        model.noise(x, t).double(), -std[:, None] * exact, rtol=1e-5, atol=1e-6
    )
    estimate = (x + std[:, None] ** 2 * exact) / m[:, None]
    # the two terms of Tweedie's formula almost cancel, and their float32 error is 1e-6 of std^2
    # |s| / m
    terms = (std[:, None] ** 2 * exact / m[:, None]).abs().max().item()
    torch.testing.assert_close(model.denoise(x, t).double(), estimate, rtol=1e-5, atol=3e-6 * terms)
    z = torch.tensor([[1.0, -1.0], [0.5, 2.0]])
    torch.testing.assert_close(
        model.perturb(x, t, z).double(), m[:, None] * x + std[:, None] * z, rtol=1e-6, atol=1e-6
    )
    torch.manual_seed(0)
    drawn = model.perturb(x, t)
    torch.manual_seed(0)
    assert torch.equal(drawn, model.perturb(x, t, torch.randn_like(x)))


def test_methods_of_a_score_are_differentiable(sde):
    """For N(0.7, 0.4) all derivatives are known.

    That of the score is -1 / (0.4 m^2 + std^2), of the denoised estimate 0.4 m / (0.4 m^2 + std^2).
    """
    model = Score(ExactNetwork(sde, gaussian([0.7], [0.4])), sde)
    x = torch.tensor([[0.2], [-1.0]], dtype=torch.float64, requires_grad=True)
    m, std = level(sde, torch.tensor([0.5]))
    variance = 0.4 * m**2 + std**2
    for method, slope in (
        (model.score, -1 / variance),
        (model.noise, std / variance),
        (model.denoise, 0.4 * m / variance),
    ):
        (gradient,) = torch.autograd.grad(method(x, 0.5).sum(), x)
        torch.testing.assert_close(gradient, slope.expand(2, 1), rtol=1e-6, atol=0)


@pytest.mark.parametrize('t', [0.3, np.float32(0.3), torch.tensor(0.3), torch.full((2,), 0.3)])
def test_time_is_any_number_or_one_for_each_image(t):
    x = torch.ones(2, 3)
    model = Score(None, VESDE())
    assert torch.allclose(model.perturb(x, t, noise=torch.zeros(2, 3)), x)
    assert torch.allclose(model.perturb(x, t, noise=x), x + 0.01 * 5000**0.3)
