"""Inpainting: the known pixels, and the times that the sampler visits."""

import math

import pytest
import torch
from torch import nn

from controllable_generation import get_pc_inpainter
from models.score import Score
from oracles import ExactNetwork, level, planar_mixture
from published_samplers import (
    ALL_SDES,
    HALF,
    SDES,
    SEED,
    correlated,
    identity,
    inpainted,
    made,
    walked,
)
from runtime.errors import UserError
from sampling import Corrector, Loop, Options, Predictor, sample
from sde_lib import VPSDE


@pytest.mark.parametrize('name', ALL_SDES)
def test_without_denoising_known_values_have_the_last_noise_level(name):
    """Without denoising, known values are samples of p_eps given the data.

    The tolerance is five standard errors of 4000 values. eps = 0.1 T makes the noise visible.
    """
    sde = ALL_SDES[name](25)
    data = torch.tensor([1.0, -2.0, 3.0, 0.5]).expand(2000, 4)
    x = inpainted(sde, data, HALF, denoise=False, eps=0.1 * sde.T)[:, HALF == 1].double()
    m, std = level(sde, torch.tensor([0.1 * sde.T]))
    z = (x - m * data[:, HALF == 1]) / std
    assert z.mean().abs() < 5 / math.sqrt(4000) and abs(z.var() - 1) < 5 * math.sqrt(2 / 4000)
    assert z.T.corrcoef()[0, 1].abs() < 5 / math.sqrt(2000)


@pytest.mark.parametrize('denoise', [False, True])
@pytest.mark.parametrize('name', SDES)
def test_unknown_values_of_the_data_have_no_influence(name, denoise):
    sde, data = SDES[name](25), torch.randn(3, 4)
    results = [
        inpainted(sde, torch.where(HALF == 1, data, other), HALF, denoise=denoise, resample=2)
        for other in (
            data,
            torch.zeros(()),
            torch.randn(3, 4),
            torch.tensor(math.nan),
            torch.tensor(math.inf),
        )
    ]
    assert all(torch.equal(x, results[0]) for x in results) and torch.isfinite(results[0]).all()
    assert not torch.equal(
        inpainted(sde, data + HALF, HALF, denoise=denoise, resample=2)[:, HALF == 0],
        results[0][:, HALF == 0],
    )


def test_masks_broadcast_to_the_data():
    sde, data = VPSDE(N=25), torch.randn(3, 4)
    results = [
        inpainted(sde, data, mask)
        for mask in (
            HALF,
            HALF[None],
            HALF.expand(3, 4),
            HALF.bool(),
            HALF.long(),
            HALF.numpy(),
            HALF.tolist(),
        )
    ]
    assert all(torch.equal(x, results[0]) for x in results)
    # no pixel of the second image is known
    each = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    x = inpainted(sde, data, each)
    assert torch.equal(x[each == 1], data[each == 1]) and (x[each == 0] != data[each == 0]).all()
    images = torch.randn(3, 3, 2, 2)
    for mask in (
        torch.tensor([[1.0, 0.0], [1.0, 1.0]]),
        torch.tensor([1.0, 0.0, 0.0])[:, None, None],
        torch.randn(3, 1, 2, 2) > 0,
    ):
        x, full = inpainted(sde, images, mask, shape=(3, 2, 2)), mask.expand(images.shape)
        assert (
            torch.equal(x[full == 1], images[full == 1])
            and (x[full == 0] != images[full == 0]).all()
        )


def test_masks_with_all_or_no_values_known():
    sde, data = VPSDE(N=25), torch.randn(3, 4)
    assert torch.equal(inpainted(sde, data, torch.ones(4)), data)
    network = ExactNetwork(sde, correlated((4,)))
    torch.manual_seed(SEED)
    free, _ = sample(
        Score(network, sde),
        (3, 4),
        Options(method='pc', predictor='reverse_diffusion', corrector='ald'),
        # draws the same random numbers as inpainting, without using them
        loop=Loop(project=lambda x, t: (torch.randn_like(x), x)[1]),
    )
    assert torch.equal(inpainted(sde, data, torch.zeros(4)), free)


def test_masks_with_values_other_than_0_and_1_raise_an_error():
    with pytest.raises(UserError, match='mask'):
        inpainted(VPSDE(N=25), torch.randn(3, 4), 0.5 * HALF)


def test_the_inverse_scaler_is_applied_at_the_end():
    """The inverse scaler is applied to known and unknown values at the end."""
    sde, data = VPSDE(N=25), torch.randn(3, 4)
    assert torch.equal(
        inpainted(sde, data, HALF, inverse_scaler=lambda x: (x + 1) / 2),
        (inpainted(sde, data, HALF) + 1) / 2,
    )


@pytest.mark.parametrize('of_network', [torch.float32, torch.float64])
@pytest.mark.parametrize('of_data', [torch.float32, torch.float64])
def test_samples_have_the_dtype_of_the_network(of_network, of_data):
    class Network(nn.Linear):
        def forward(self, x, labels):
            assert not torch.is_grad_enabled() and not self.training
            return super().forward(x)

    x = made(get_pc_inpainter, VPSDE(N=25))(
        Network(4, 4, dtype=of_network), torch.randn(2, 4, dtype=of_data), HALF
    )
    assert x.dtype == of_network and not x.requires_grad


class Recorder:
    """Makes predictor and corrector classes that record their input and then change the state."""

    def __init__(self):
        self.seen = []

        def update(kind):
            def update_fn(step, x, t):
                assert (t == t[0]).all()
                self.seen.append((kind, t[0].item(), x.clone()))
                return 3 * x + 100, 3 * x + 100

            return update_fn

        self.predictor = type('Recording', (Predictor,), dict(update_fn=update('predictor')))
        self.corrector = type('Recording', (Corrector,), dict(update_fn=update('corrector')))


@pytest.mark.parametrize('resample, jump', [(1, 1), (2, 1), (2, 8)])
@pytest.mark.parametrize('name', ALL_SDES)
def test_the_state_agrees_with_the_known_at_its_own_time(name, resample, jump):
    """At every time t the known part of the state is a sample of p_t given the data.

    This holds from the start and after each jump back, for any change of the state by predictor and
    corrector. The tolerance is five standard errors of 2000 samples at each of 25 times. The data
    are so large that their mean at T is one std away from the mean of the prior. Except for three
    times of the user's SDE, the test can distinguish p_t from p_t' at the next time: they differ by
    at least 0.11 std in the mean or 16 % in the variance, usually by far more.
    """
    n, sde, recorder = 2000, ALL_SDES[name](25), Recorder()
    m, std = level(sde, torch.tensor([float(sde.T)]))
    data = (std / m * torch.tensor([1.0, 0.0, -1.0, 0.0])).float().expand(n, 4)
    torch.manual_seed(SEED)
    inpainter = get_pc_inpainter(
        sde,
        recorder.predictor,
        recorder.corrector,
        identity,
        0.16,
        continuous=True,
        eps=0.02,
        resample=resample,
        jump=jump,
    )
    x = inpainter(ExactNetwork(sde, correlated((4,))), data, HALF)
    assert torch.equal(x[:, HALF == 1], data[:, HALF == 1])
    times = torch.linspace(sde.T, 0.02, 25).tolist()
    assert [(kind, t) for kind, t, _ in recorder.seen] == [
        (kind, t) for t in walked(times, resample, jump) for kind in ('corrector', 'predictor')
    ]
    for _, t, state in recorder.seen:
        m, std = level(sde, torch.tensor([t]))
        z = (state[:, HALF == 1].double() - m * data[:, HALF == 1]) / std
        assert z.mean(0).abs().max() < 5 / math.sqrt(n) and (
            z.var(0) - 1
        ).abs().max() < 5 * math.sqrt(2 / n)
        assert z.T.corrcoef()[0, 1].abs() < 5 / math.sqrt(n)
    # only predictor and corrector change the unknown part
    for (kind, _, before), (_, _, state) in zip(recorder.seen[:-1], recorder.seen[1:], strict=True):
        if kind == 'corrector':
            assert torch.equal(state[:, HALF == 0], 3 * before[:, HALF == 0] + 100)
    assert torch.equal(x[:, HALF == 0], 3 * state[:, HALF == 0] + 100)


@pytest.mark.parametrize('resample, jump', [(1, 1), (3, 1), (1, 4), (3, 4), (2, 12)])
def test_times_of_resampling(resample, jump):
    """Each `jump` steps are repeated, except the last step; the callback sees all visits."""
    sde, visits, seen = VPSDE(N=25), [], []

    class Walker(Predictor):
        def update_fn(self, x, t):
            visits.append(round(t[0].item(), 4))
            return x, x

    loop = Loop(lambda i, t, x: seen.append((i, round(t.item(), 4))), resample=resample, jump=jump)
    sample(
        Score(ExactNetwork(sde, planar_mixture()), sde),
        (2, 2),
        Options(method='pc', predictor=Walker, eps=0.04),
        loop=loop,
    )
    times = [round(1 - 0.04 * i, 4) for i in range(25)]
    assert visits == walked(times, resample, jump)
    assert seen == [(times.index(t), t) for t in visits]
