"""Few-step solvers equal those of diffusers with the same network, noise and time grid."""

import pytest
import torch

from oracles import planar_mixture, walked
from sde_lib import SDE
from solvers import get_solver, levels, time_grid


class Table(SDE):
    """An SDE whose noise levels are given by the step number, as in diffusers."""

    def __init__(self, alpha, sigma):
        super().__init__(len(alpha))
        self.alpha, self.std = alpha.double(), sigma.double()

    T = property(lambda self: self.N - 1)

    def marginal_prob(self, x, t):
        i = t.round().long()
        return self.alpha.to(x)[i].reshape(-1, *[1] * (x.ndim - 1)) * x, self.std.to(x)[i]

    def sde(self, x, t):
        raise NotImplementedError

    prior_sampling = prior_logp = sde


def chain(scheduler):
    """Return the SDE of a scheduler, an exact score, the noise predictor for it, and a start."""
    sde = Table(scheduler.alphas_cumprod.sqrt(), (1 - scheduler.alphas_cumprod).sqrt())
    target = planar_mixture()

    def score_fn(x, t):
        alpha, sigma = levels(sde, t[:1])
        return target.score(x, alpha, sigma).to(x)

    def network(x, t):
        return -levels(sde, t)[1].to(x) * score_fn(x, t.double().expand(len(x)))

    return sde, score_fn, network, torch.randn(50, 2)


def stepped(scheduler, network, x):
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x, return_dict=False)[0]
    return x


MULTISTEP = [
    ('dpmpp_2m', {}, 'DPMSolverMultistepScheduler', {}),
    ('dpmpp_2m_sde', {}, 'DPMSolverMultistepScheduler', dict(algorithm_type='sde-dpmsolver++')),
    *(
        ('unipc', dict(dpm_solver_order=order), 'UniPCMultistepScheduler', dict(solver_order=order))
        for order in (1, 2, 3)
    ),
]


@pytest.mark.parametrize('steps', [8, 20])
@pytest.mark.parametrize('solver, settings, theirs, their_settings', MULTISTEP, ids=str)
def test_multistep_solvers_equal_those_of_diffusers(
    solver, settings, theirs, their_settings, steps
):
    diffusers = pytest.importorskip('diffusers')
    scheduler = getattr(diffusers, theirs)(
        final_sigmas_type='sigma_min', lower_order_final=steps < 15, **their_settings
    )
    scheduler.set_timesteps(steps)
    sde, score_fn, network, x = chain(scheduler)
    times = torch.cat([scheduler.timesteps.double(), torch.zeros(1)])
    torch.manual_seed(1)
    reference = stepped(scheduler, network, x)
    torch.manual_seed(1)
    assert (walked(solver, sde, score_fn, x, times, **settings) - reference).abs().max() < 1e-4


@pytest.mark.parametrize('eta', [0.0, 0.7, 1.0])
def test_ddim_equals_that_of_diffusers(eta):
    diffusers = pytest.importorskip('diffusers')
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(20)
    sde, score_fn, network, x = chain(scheduler)
    torch.manual_seed(1)
    reference = x
    for t in scheduler.timesteps[:-1]:
        reference = scheduler.step(network(reference, t), t, reference, eta=eta, return_dict=False)[
            0
        ]
    torch.manual_seed(1)
    x = walked('ddim', sde, score_fn, x, scheduler.timesteps.double(), eta=eta)
    assert (x - reference).abs().max() < 1e-4


class Sigma(Table):
    """alpha = 1 and sigma = t, as in Karras et al. 2022."""

    def __init__(self):
        SDE.__init__(self, 1000)

    T = property(lambda self: 80.0)

    def marginal_prob(self, x, t):
        return x, t


@pytest.mark.parametrize(
    'solver, theirs',
    [('ddim', 'EDMEulerScheduler'), ('dpmpp_2m', 'EDMDPMSolverMultistepScheduler')],
)
def test_edm_schedulers_of_diffusers(solver, theirs):
    """Solvers equal the EDM schedulers, which use the grid 'karras' and preconditioned networks.

    References:
        Karras et al. 2022, Table 1.
    """
    diffusers = pytest.importorskip('diffusers')
    scheduler, sde, target = getattr(diffusers, theirs)(), Sigma(), planar_mixture()
    scheduler.set_timesteps(12)
    sigmas = scheduler.sigmas.double()
    assert torch.allclose(time_grid(sde, 11, 0.002, 'karras', 7.0), sigmas[:-1], rtol=1e-5)

    def score_fn(x, t):
        return target.score(x, 1.0, t)

    start = 80 * torch.randn(50, 2, dtype=torch.float64)
    x = start
    for sigma, t in zip(sigmas, scheduler.timesteps):
        image, s = x + sigma**2 * score_fn(x, sigma), scheduler.config.sigma_data
        output = (image - s**2 / (sigma**2 + s**2) * x) / (sigma * s / (sigma**2 + s**2).sqrt())
        scheduler.scale_model_input(x, t)
        x = scheduler.step(output, t, x, return_dict=False)[0]
    mine = get_solver(solver)(sde, score_fn, sigmas[:-1])
    y = start
    for i in range(11):
        y = mine.step(y, i)
    if solver == 'ddim':
        assert (mine.denoised(y) - x).abs().max() < 1e-4
    else:  # our last step has a lower order; in theirs, the step to sigma = 0 has it
        long = get_solver(solver)(sde, score_fn, torch.cat([sigmas[:-1], torch.tensor([1e-9])]))
        y = start
        for i in range(12):
            y = long.step(y, i)
        assert (y - x).abs().max() < 1e-4


def test_heun_equals_that_of_diffusers():
    diffusers = pytest.importorskip('diffusers')
    scheduler, target = diffusers.HeunDiscreteScheduler(use_karras_sigmas=True), planar_mixture()
    scheduler.set_timesteps(10)
    sigmas, sde = scheduler.sigmas.double()[[0, *range(1, 20, 2)]], Sigma()

    def score_fn(x, t):
        return target.score(x, 1.0, t)

    start = x = sigmas[0] * torch.randn(50, 2, dtype=torch.float64)
    for i, t in enumerate(scheduler.timesteps):
        sigma = (
            scheduler.sigmas[i].double()
            if scheduler.step_index is None
            else scheduler.sigmas[scheduler.step_index].double()
        )
        sigma = sigmas[(i + 1) // 2]
        x = scheduler.step(-sigma * score_fn(x, sigma), t, x, return_dict=False)[0]
    heun = get_solver('heun')(sde, score_fn, sigmas[:10])
    y = start
    for i in range(9):
        y = heun.step(y, i)
    assert (heun.denoised(y) - x).abs().max() < 1e-4
