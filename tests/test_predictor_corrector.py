"""Steps of predictors and correctors: order, number of evaluations, callbacks and errors."""

import math
from unittest import mock

import numpy as np
import pytest
import torch

import sampling
from conftest import digits_config
from models.score import Score
from models.utils import get_score_fn
from oracles import (
    FEW_STEP_SDES,
    SDES,
    ExactNetwork,
    GaussianMixture,
    distance_from,
    identity,
    level,
    pc_sampler,
    planar_mixture,
)
from runtime.errors import UserError
from sampling import Loop, Options, Predictor, get_corrector, get_predictor, get_sampling_fn, sample
from sde_lib import VESDE, VPSDE, get_sde
from solvers import predictor_corrector

SEED = 0


@pytest.mark.parametrize(
    'predictor, corrector, n_steps, per_step',
    [
        ('euler_maruyama', 'none', 1, 1),
        ('reverse_diffusion', None, 2, 1),
        ('reverse_diffusion', 'langevin', 1, 2),
        ('ancestral_sampling', 'ald', 2, 3),
        (None, 'ald', 2, 2),
    ],
)
def test_pc_counts_every_evaluation(predictor, corrector, n_steps, per_step, target):
    sde = VPSDE(N=30)
    network = ExactNetwork(sde, target)
    sampler = pc_sampler(sde, predictor, corrector, shape=(2, 2), n_steps=n_steps)
    for run in (1, 2):  # every call counts its own evaluations, from 0
        _, nfe = sampler(network)
        assert nfe == 30 * per_step and network.calls == run * nfe


@pytest.mark.parametrize('predictor', ['euler_maruyama', 'reverse_diffusion', 'ancestral_sampling'])
@pytest.mark.parametrize('name', ['ve', 'vp'])
def test_denoise_omits_the_noise_of_the_last_step(name, predictor, target):
    """For one seed the outputs differ by std z, the last draw z times the std of a step at eps."""
    sde, draws, outputs = SDES[name](50), [], []

    def recorded(x):
        draws.append(torch.randn(x.shape, dtype=x.dtype))
        return draws[-1]

    for denoise in (False, True):
        torch.manual_seed(SEED)
        with mock.patch('torch.randn_like', recorded):
            outputs.append(
                pc_sampler(sde, predictor, 'langevin', shape=(4, 2), denoise=denoise)(
                    ExactNetwork(sde, target)
                )[0]
            )
    x, t = torch.zeros(1, 2), torch.tensor([sde.sampling_eps])
    std = dict(
        euler_maruyama=lambda: sde.sde(x, t)[1] / math.sqrt(50),
        reverse_diffusion=lambda: sde.discretize(x, t)[1],
        ancestral_sampling=lambda: sde.ancestral_step(x, t, x)[1],
    )[predictor]()
    # tolerance of a float32 difference of numbers near 1
    torch.testing.assert_close(outputs[0] - outputs[1], std * draws[-1], rtol=1e-4, atol=1e-6)
    # the last ancestral step of VE adds no noise, because it ends at sigma = 0
    if (name, predictor) != ('ve', 'ancestral_sampling'):
        assert (outputs[0] - outputs[1]).abs().max() > 1e-3


@pytest.mark.parametrize('predictor, corrector', [('reverse_diffusion', None), (None, 'ald')])
def test_none_equals_the_name_none(predictor, corrector, target):
    sde, outputs = VPSDE(N=30), []
    for names in ((predictor, corrector), (predictor or 'none', corrector or 'none')):
        torch.manual_seed(SEED)
        outputs.append(pc_sampler(sde, *names, shape=(4, 2))(ExactNetwork(sde, target))[0])
    assert torch.equal(*outputs)


def test_neither_predictor_nor_corrector_raises_an_error():
    with pytest.raises(ValueError, match="^predictor='none' and corrector='none' would"):
        pc_sampler(VPSDE(), None, None)


def test_only_predictors_of_the_chain_need_a_valid_number_of_steps(target):
    """A VP chain of 10 steps is undefined (beta_max > N); predictors without the chain work."""

    class Still(sampling.Predictor):
        def update_fn(self, x, t):
            return x, x

    model = Score(ExactNetwork(VPSDE(), target), VPSDE())
    for predictor in ('euler_maruyama', Still):
        x, nfe = sample(model, (4, 2), Options(method='pc', predictor=predictor, steps=10))
        assert x.isfinite().all() and nfe == 10 * (predictor != Still)
    for settings in (
        dict(predictor='reverse_diffusion'),
        dict(predictor='ancestral_sampling'),
        dict(predictor=Still, corrector='langevin'),
    ):
        with pytest.raises(ValueError, match='^a VP chain of N=10 steps .* N must be at least 21'):
            sample(model, (4, 2), Options(method='pc', steps=10, **settings))


def test_zero_corrector_steps_raise_an_error():
    with pytest.raises(ValueError, match='n_steps_each'):
        pc_sampler(VPSDE(), 'reverse_diffusion', 'langevin', n_steps=0)


def test_the_callback_is_called_after_every_step(target):
    sde, seen = VPSDE(N=30), []
    torch.manual_seed(SEED)
    options = Options(
        method='pc', predictor='euler_maruyama', corrector='langevin', noise_removal=False
    )
    x, _ = sample(
        Score(ExactNetwork(sde, target), sde),
        (4, 2),
        options,
        loop=Loop(lambda i, t, x: seen.append((i, float(t), x.clone()))),
    )
    assert [i for i, _, _ in seen] == list(range(30))
    # the times are float32
    np.testing.assert_allclose([t for _, t, _ in seen], np.linspace(1, 1e-3, 30), rtol=1e-5)
    assert torch.equal(seen[-1][2], x)  # without noise removal the last state is the sample


def test_one_step_functions_equal_the_steps_of_the_classes(target):
    """`shared_*_update_fn` takes the step of a class; with None it takes no step."""
    sde, x, t = VPSDE(N=100), torch.tensor([[0.3, -1.0]]), torch.tensor([0.5])
    network = ExactNetwork(sde, target)
    score_fn = get_score_fn(sde, network, continuous=True)
    predictor, corrector = get_predictor('reverse_diffusion'), get_corrector('ald')
    for step, args, twin in [
        (sampling.shared_predictor_update_fn, (predictor, False, True), predictor(sde, score_fn)),
        (
            sampling.shared_corrector_update_fn,
            (corrector, True, 0.15, 2),
            corrector(sde, score_fn, 0.15, 2),
        ),
    ]:
        torch.manual_seed(SEED)
        got = step(x, t, sde, network, *args)
        torch.manual_seed(SEED)
        assert all(torch.equal(g, e) for g, e in zip(got, twin.update_fn(x, t)))
        assert all(torch.equal(v, x) for v in step(x, t, sde, network, None, *args[1:]))


@pytest.mark.parametrize('name', SDES)
def test_correctors_follow_their_formulas(name, target):
    """x + e s + sqrt(2 e) z with e = 2 alpha (snr |z| / |s|)^2, or e = 2 alpha (snr std)^2 for ALD.

    The norms |z| and |s| are averaged over the batch.
    """
    sde = SDES[name](100)
    x = torch.tensor([[0.3, -1.0], [1.0, 0.5]], dtype=torch.float64)
    t = torch.full((2,), 0.4).double()
    snr = 0.2
    score_fn = get_score_fn(sde, ExactNetwork(sde, target), continuous=True)
    s, alpha = score_fn(x, t), sde.langevin_alpha(t)[0]
    z = torch.tensor([[1.0, -0.5], [0.2, 2.0]], dtype=torch.float64)
    ratio = (z[0].norm() + z[1].norm()) / (s[0].norm() + s[1].norm())
    for corrector, e in [
        ('langevin', 2 * alpha * (snr * ratio) ** 2),
        ('ald', 2 * alpha * (snr * level(sde, t)[1][0]) ** 2),
    ]:
        with mock.patch('torch.randn_like', lambda x: z):
            got, mean = get_corrector(corrector)(sde, score_fn, snr, 1).update_fn(x, t)
        torch.testing.assert_close(mean, x + e * s, rtol=1e-12, atol=0)  # rounding only
        torch.testing.assert_close(got, x + e * s + (2 * e).sqrt() * z, rtol=1e-12, atol=0)


class Published(Predictor):
    """A predictor written for the 2021 release, which has only the method `update_fn`."""

    def update_fn(self, x, t):
        return get_predictor('reverse_diffusion')(self.sde, self.score_fn).update_fn(x, t)


def test_a_custom_predictor_uses_the_times_of_the_sde():
    """A predictor needs `step` for another grid; a corrector does not."""
    sde = VPSDE()
    model, drawn = Score(ExactNetwork(sde, planar_mixture()), sde), []
    for predictor in (Published, 'reverse_diffusion'):
        torch.manual_seed(1)
        drawn.append(sample(model, (9, 2), Options(method='pc', predictor=predictor, steps=40)))
    assert torch.equal(drawn[0][0], drawn[1][0]) and drawn[0][1] == drawn[1][1] == 40
    with pytest.raises(
        UserError, match="predictor Published has no method `step`, which skip_type='karras' needs"
    ):
        sample(
            model, (9, 2), Options(method='pc', predictor=Published, skip_type='karras', steps=40)
        )

    class Still(sampling.Corrector):
        def update_fn(self, x, t):
            assert t.shape == (9,) and (t == t[0]).all()
            seen.append(t[0].item())
            return x, x

    seen = []
    options = Options(
        method='pc',
        predictor='reverse_diffusion',
        corrector=Still,
        skip_type='karras',
        steps=40,
    )
    sample(model, (9, 2), options)
    assert seen == pytest.approx(sampling.times_of(sde, options)[:-1].tolist(), rel=1e-6)


@pytest.mark.parametrize('name', FEW_STEP_SDES)
def test_the_order_of_algorithm_1(name):
    config = digits_config(name, 'pc', predictor='reverse_diffusion', corrector='langevin')
    target = planar_mixture()
    config.sampling.order = 'predictor_corrector'
    sde = get_sde(config)
    network = ExactNetwork(sde, target)
    x, nfe = get_sampling_fn(config, sde, (3000, 2), identity, sde.sampling_eps)(network)
    assert nfe == 399 and distance_from(target, x) < 0.2
    torch.manual_seed(1)
    published = get_sampling_fn(
        digits_config(name, 'pc', predictor='reverse_diffusion', corrector='langevin'),
        sde,
        (9, 2),
        identity,
        sde.sampling_eps,
    )(network)[0]
    torch.manual_seed(1)
    assert not torch.equal(
        get_sampling_fn(config, sde, (9, 2), identity, sde.sampling_eps)(network)[0], published
    )


@pytest.mark.parametrize('predictor', ['reverse_diffusion', 'ancestral_sampling'])
@pytest.mark.parametrize('order', predictor_corrector.ORDERS)
def test_the_last_step_leaves_no_noise(predictor, order):
    """The last step leads to one of two points at distance 1."""
    sde = VESDE(0.01, 10, N=200)
    target = GaussianMixture([0.5, 0.5], [[0.5], [-0.5]], [[[1e-8]], [[1e-8]]])
    options = Options(method='pc', predictor=predictor, corrector='langevin', eps=1e-5, order=order)
    x, _ = sample(Score(ExactNetwork(sde, target), sde), (500, 1), options)
    assert (x.abs() - 0.5).abs().max() < 1e-3


def test_without_a_corrector_both_orders_are_equal():
    sde = VPSDE(N=40)
    model, drawn = Score(ExactNetwork(sde, planar_mixture()), sde), []
    for order in predictor_corrector.ORDERS:
        torch.manual_seed(1)
        drawn.append(
            sample(model, (9, 2), Options(method='pc', predictor='euler_maruyama', order=order))[0]
        )
    assert torch.equal(*drawn)
    with pytest.raises(
        UserError, match="order must be one of corrector_predictor, predictor_corrector, got 'x'"
    ):
        sample(model, (9, 2), Options(method='pc', predictor='euler_maruyama', order='x'))
