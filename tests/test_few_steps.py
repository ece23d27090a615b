"""Few-step solvers: marginals, network evaluations, settings, and registered solvers."""

import pytest
import torch

import solvers
from commands import preflight
from conftest import digits_config
from models.score import Score
from oracles import FEW_STEP_SDES, ExactNetwork, gaussian, identity, planar_mixture
from runtime.errors import UserError
from sampling import Options, get_sampling_fn, sample
from sde_lib import VPSDE, get_sde
from solvers import SOLVERS, get_solver, levels


@pytest.mark.parametrize('name', FEW_STEP_SDES)
@pytest.mark.parametrize(
    'solver, settings',
    [('ddim', dict(eta=1.0)), ('heun', dict(churn=40.0)), ('dpmpp_2m_sde', {})],
    ids=str,
)
def test_solvers_with_noise_keep_the_marginals(name, solver, settings):
    """Final mean and covariance for a Gaussian target are those of the SDE.

    With n = 20,000, four standard errors are about 0.03 of a variance.
    """
    sde, target = FEW_STEP_SDES[name](), gaussian([1.0, -0.5], [0.3, 0.05])
    options = Options(method=solver, steps=400, noise_removal=False, eps=0.01, **settings)
    x = sample(Score(ExactNetwork(sde, target), sde), (20000, 2), options)[0].double()
    (alpha,), (sigma,) = levels(sde, 0.01)
    variances = alpha**2 * torch.tensor([0.3, 0.05]) + sigma**2
    assert torch.allclose(x.mean(0), alpha * target.mean, atol=0.03)
    assert torch.allclose(x.var(0), variances.double(), rtol=0.06)


@pytest.mark.parametrize(
    'steps, order, expected',
    [
        (20, 3, [3] * 6 + [2]),
        (19, 3, [3] * 6 + [1]),
        (21, 3, [3] * 6 + [2, 1]),
        (9, 2, [2] * 4 + [1]),
        (8, 2, [2] * 4),
        (3, 1, [1] * 3),
        (3, 3, [2, 1]),
    ],
)
def test_dpm_solver_makes_the_given_number_of_evaluations(steps, order, expected):
    assert get_solver('dpm_solver').orders(steps, order) == expected
    sde, target = VPSDE(), planar_mixture()
    options = Options(method='dpm_solver', steps=steps, noise_removal=False, dpm_solver_order=order)
    assert sample(Score(ExactNetwork(sde, target), sde), (10, 2), options)[1] == steps


@pytest.mark.parametrize('name, method', [('mine', 'mine'), ('Mine', 'Mine'), (None, 'mine')])
def test_a_custom_solver(monkeypatch, tmp_path, name, method):
    monkeypatch.setattr(SOLVERS, '_classes', dict(SOLVERS._classes))

    @solvers.register_solver(name=name)
    class Mine(solvers.Solver):
        def step(self, x, i):
            return x

    config = digits_config('vp', method)
    preflight.check(config, tmp_path, 'train')
    x, nfe = get_sampling_fn(config, VPSDE(), (4, 2), identity, 1e-3)(
        ExactNetwork(VPSDE(), planar_mixture())
    )
    assert nfe == 1 and x.shape == (4, 2)
    with pytest.raises(ValueError, match="'MINE' is taken"):
        solvers.register_solver(name='MINE')(solvers.DDIM)


@pytest.mark.parametrize(
    'method, settings, message',
    [
        ('heun', dict(steps=1), "steps=1 is too few for method='heun'"),
        (
            'dpm_solver',
            dict(dpm_solver_order=4),
            'dpm_solver_order must be 1, 2 or 3 for dpm_solver, got 4',
        ),
    ],
)
def test_invalid_settings_raise_an_error(method, settings, message):
    config = digits_config('vp', method)
    config.sampling.update(settings)
    with pytest.raises(UserError, match=message):
        get_sampling_fn(config, VPSDE(), (4, 2), identity, 1e-3)


def test_networks_with_few_noise_levels_raise_an_error():
    config = digits_config('ve', 'heun')
    config.training.continuous, config.model.num_scales = False, 10
    with pytest.raises(
        UserError,
        match=r"method='heun' needs a network trained in continuous time "
        r".*num_scales=10: use method='pc'",
    ):
        get_sampling_fn(config, get_sde(config), (4, 2), identity, 1e-5)
