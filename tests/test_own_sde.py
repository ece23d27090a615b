"""A user's SDE that defines only the abstract methods, in every sampler, likelihood and loss."""

import math

import pytest
import torch

import likelihood
import losses
import sampling
from conftest import load_config
from models import utils as mutils
from models.ema import ExponentialMovingAverage
from oracles import MEAN, STD, ExactNoise, OrnsteinUhlenbeck, identity, marginal
from sde_lib import SDE

# 8000 independent values: the standard error of their mean is 0.006, of their std 0.004
SHAPE = (500, 1, 4, 4)


def own_sampler(predictor, corrector, **settings):
    sde = OrnsteinUhlenbeck(N=400)
    predictor, corrector = sampling.get_predictor(predictor), sampling.get_corrector(corrector)
    sampler = sampling.get_pc_sampler(
        sde, SHAPE, predictor, corrector, identity, 0.1, continuous=True, device='cpu', **settings
    )
    return sampler(ExactNoise(sde))


@pytest.mark.parametrize('corrector', ['langevin', 'ald', 'none'])
@pytest.mark.parametrize('predictor', ['euler_maruyama', 'reverse_diffusion', 'none'])
def test_own_sde_with_predictor_corrector(predictor, corrector):
    if predictor == corrector == 'none':
        with pytest.raises(ValueError, match="^predictor='none' and corrector='none' would"):
            own_sampler(predictor, corrector)
        return
    samples, nfe = own_sampler(predictor, corrector)
    assert samples.shape == SHAPE
    assert nfe == 400 * ((predictor != 'none') + (corrector != 'none'))
    if predictor == 'none':
        # Langevin dynamics without a predictor follows the noise levels only roughly
        assert samples.isfinite().all()
        assert (samples - MEAN).square().mean() < 1.05 + MEAN**2
    else:
        # the tolerance covers statistical errors and the error of steps of 1/200
        assert samples.mean().item() == pytest.approx(MEAN, abs=0.02)
        assert samples.std().item() == pytest.approx(STD, abs=0.02)


@pytest.mark.parametrize('predictor', ['euler_maruyama', 'reverse_diffusion'])
def test_own_sde_along_the_probability_flow(predictor):
    """The flow keeps the error of the prior: N(0, 1) is not exactly the marginal at T."""
    samples, _ = own_sampler(predictor, 'none', probability_flow=True)
    end, end_std = marginal(OrnsteinUhlenbeck(N=400), 2)
    assert samples.mean().item() == pytest.approx(MEAN - end / end_std * STD, abs=0.02)
    assert samples.std().item() == pytest.approx(STD / end_std, abs=0.02)


def test_own_sde_has_no_ancestral_sampling():
    with pytest.raises(
        NotImplementedError, match='ancestral sampling is not defined for OrnsteinUhlenbeck'
    ):
        own_sampler('ancestral_sampling', 'none')


@pytest.mark.parametrize('eps', [1e-3, 0.5])
def test_own_sde_with_the_ode_sampler(eps):
    """For Gaussian data, the flow keeps (x - mean) / std of every value x."""
    sde = OrnsteinUhlenbeck(N=100)
    z = torch.randn(*SHAPE)
    x, nfe = sampling.get_ode_sampler(sde, SHAPE, identity, eps=eps, device='cpu')(
        ExactNoise(sde), z
    )
    (start, start_std), (end, end_std) = marginal(sde, sde.T), marginal(sde, eps)
    torch.testing.assert_close(x, end + end_std * (z - start) / start_std, atol=1e-4, rtol=0)
    assert nfe > 0
    drawn, _ = sampling.get_ode_sampler(sde, SHAPE, identity, eps=eps, device='cpu')(
        ExactNoise(sde)
    )
    assert drawn.shape == SHAPE and drawn.std().item() == pytest.approx(
        end_std / start_std, abs=0.02
    )


@pytest.mark.parametrize('probe', ['Rademacher', 'Gaussian'])
def test_own_sde_with_likelihood(probe):
    """For Gaussian data, the flow is affine with the same slope for all values.

    Rademacher probes are exact; Gaussian probes are correct on average.
    """
    sde = OrnsteinUhlenbeck(N=100)
    data = MEAN + STD * torch.randn(200, 1, 4, 4)
    bpd, z, _ = likelihood.get_likelihood_fn(sde, identity, probe, eps=1e-5)(ExactNoise(sde), data)
    (start, start_std), (end, end_std) = marginal(sde, 1e-5), marginal(sde, sde.T)
    code, slope = end + end_std * (data - start) / start_std, end_std / start_std
    torch.testing.assert_close(z, code, atol=1e-3, rtol=0)
    expected = 8 - (sde.prior_logp(code) / 16 + math.log(slope)) / math.log(2)
    if probe == 'Rademacher':
        torch.testing.assert_close(bpd, expected, atol=1e-3, rtol=0)
    else:
        assert bpd.mean().item() == pytest.approx(
            expected.mean().item(), abs=4 * (bpd - expected).std().item() / 200**0.5
        )
        assert (bpd - expected).abs().max() > 0.01


@pytest.mark.parametrize('likelihood_weighting', [False, True])
@pytest.mark.parametrize('reduce_mean', [False, True])
def test_own_sde_with_the_loss(likelihood_weighting, reduce_mean):
    """At the exact score the loss is the weighted variance of the noise z given x_t.

    This variance is 1 - std^2 / var(x_t).
    """
    sde, eps = OrnsteinUhlenbeck(N=100), 1e-2
    data = MEAN + STD * torch.randn(4000, 1, 4, 4)
    loss = losses.get_sde_loss_fn(
        sde,
        train=False,
        reduce_mean=reduce_mean,
        likelihood_weighting=likelihood_weighting,
        eps=eps,
    )(ExactNoise(sde), data)
    t = torch.linspace(eps, sde.T, 20001, dtype=torch.float64)
    m, std = sde.marginal_prob(torch.ones_like(t), t)
    left = 1 - std**2 / ((m * STD) ** 2 + std**2)
    expected = (
        (left * sde.sde(t, t)[1] ** 2 / std**2 if likelihood_weighting else left).mean().item()
    )
    assert loss.item() == pytest.approx(
        expected if reduce_mean else expected * 16 / 2, rel=0.1 if likelihood_weighting else 0.03
    )


@pytest.mark.parametrize('likelihood_weighting', [False, True])
def test_own_sde_trains(likelihood_weighting):
    """One training step moves a network with a constant error towards the exact network."""
    sde = OrnsteinUhlenbeck(N=100)
    model = ExactNoise(sde)
    with torch.no_grad():
        model.offset.fill_(0.5)
    config = load_config('configs.vp.digits_ddpmpp_continuous')
    config.optim.update(lr=0.1, warmup=0)
    state = dict(
        model=model,
        optimizer=losses.get_optimizer(config, model.parameters()),
        ema=ExponentialMovingAverage(model.parameters(), decay=0.9),
        step=0,
    )
    step_fn = losses.get_step_fn(
        sde,
        train=True,
        optimize_fn=losses.optimization_manager(config),
        reduce_mean=True,
        continuous=True,
        likelihood_weighting=likelihood_weighting,
    )
    step_fn(state, MEAN + STD * torch.randn(100, 1, 4, 4))
    assert state['step'] == 1 and model.offset.item() == pytest.approx(0.4, abs=1e-3)


def test_own_sde_has_no_discrete_training():
    with pytest.raises(
        NotImplementedError, match='OrnsteinUhlenbeck has no discrete-time training'
    ):
        losses.get_step_fn(OrnsteinUhlenbeck(N=100), train=True, continuous=False)


def test_shared_updates():
    """Samplers of the 2021 release call these two functions in their loops; None means no step."""
    sde = OrnsteinUhlenbeck(N=100)
    model, x, t = ExactNoise(sde), torch.randn(3, 1, 4, 4), torch.full((3,), 1.0)
    score_fn = mutils.get_score_fn(sde, model, continuous=True)
    for predictor in (sampling.ReverseDiffusionPredictor, None):
        torch.manual_seed(1)
        shared = sampling.shared_predictor_update_fn(x, t, sde, model, predictor, False, True)
        torch.manual_seed(1)
        expected = predictor(sde, score_fn, False).update_fn(x, t) if predictor else (x, x)
        assert all(map(torch.equal, shared, expected))
    for corrector in (sampling.LangevinCorrector, None):
        torch.manual_seed(1)
        shared = sampling.shared_corrector_update_fn(x, t, sde, model, corrector, True, 0.16, 2)
        torch.manual_seed(1)
        expected = corrector(sde, score_fn, 0.16, 2).update_fn(x, t) if corrector else (x, x)
        assert all(map(torch.equal, shared, expected))


def test_sde_without_an_abstract_method():
    class Incomplete(SDE):
        T = 1.0

    with pytest.raises(TypeError, match='abstract'):
        Incomplete(N=10)


def test_divergence():
    """For a linear map with matrix A, the estimate of the divergence is e^T A e."""
    A, e = torch.randn(6, 6), torch.randn(4, 6)
    div_fn = likelihood.get_div_fn(lambda x, t: x @ A.T * t[:, None])
    t = torch.rand(4)
    torch.testing.assert_close(
        div_fn(torch.randn(4, 6), t, e), t * torch.einsum('bi,ij,bj->b', e, A, e)
    )
