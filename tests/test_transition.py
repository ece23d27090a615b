"""Transitions of an SDE from one time to another."""

import pytest
import torch

from published_samplers import ALL_SDES


@pytest.mark.parametrize('name', ALL_SDES)
def test_the_transition_maps_one_marginal_to_the_next(name):
    """The transitions from x_0 to s and from s to t give the marginal at t.

    Each image has its own s and t; some of them are equal or almost equal.
    """
    sde, x0 = ALL_SDES[name](1000), torch.randn(6, 3, 2, 2, dtype=torch.float64)
    s, t = sde.T * torch.tensor(
        [[1e-5, 0.1, 0.3, 0.5, 0.05, 0.99], [0.01, 0.7, 1.0, 0.5, 1.0, 1.0]], dtype=torch.float64
    )
    (mean_s, std_s), (mean_t, std_t) = sde.marginal_prob(x0, s), sde.marginal_prob(x0, t)
    mean, std = sde.transition_prob(mean_s, s, t)
    ratio = sde.transition_prob(torch.ones_like(x0), s, t)[0][:, 0, 0, 0]
    assert mean.shape == x0.shape and std.shape == (6,)
    # float64 formulas with few operations
    torch.testing.assert_close(mean, mean_t, rtol=1e-12, atol=0)
    torch.testing.assert_close((std**2 + (ratio * std_s) ** 2).sqrt(), std_t, rtol=1e-12, atol=0)


@pytest.mark.parametrize('name', ALL_SDES)
def test_the_transition_follows_the_drift_and_the_diffusion(name):
    """The moments obey dm/dt = a m and dv/dt = 2 a v + g^2, where the drift is a x.

    They are integrated from 0.3 T to 0.6 T by the midpoint rule, whose error with 20000 steps is
    below 1e-8.
    """
    sde, n = ALL_SDES[name](1000), 20000
    s, t, one = 0.3 * sde.T, 0.6 * sde.T, torch.ones(1, 1, dtype=torch.float64)
    times = s + (t - s) * (torch.arange(n, dtype=torch.float64) + 0.5) / n
    drift, g = sde.sde(one.expand(n, 1), times)
    rate, dt = drift[:, 0], (t - s) / n
    to_the_end = rate.flip(0).cumsum(0).flip(0) * dt - rate * dt / 2
    mean, std = sde.transition_prob(one, torch.full((1,), s).double(), torch.full((1,), t).double())
    assert mean.item() == pytest.approx((rate.sum() * dt).exp().item(), rel=1e-6)
    assert std.item() ** 2 == pytest.approx(
        ((2 * to_the_end).exp() * g**2 * dt).sum().item(), rel=1e-6
    )


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('name', ALL_SDES)
def test_a_transition_of_length_zero_changes_nothing(name, dtype):
    sde, x = ALL_SDES[name](1000), torch.randn(5, 4, dtype=dtype)
    times = sde.T * torch.tensor([1e-5, 1e-3, 0.2, 0.7, 1.0], dtype=dtype)
    mean, std = sde.transition_prob(x, times, times)
    assert (
        torch.equal(mean, x)
        and torch.equal(std, torch.zeros(5, dtype=dtype))
        and mean.dtype == std.dtype == dtype
    )
