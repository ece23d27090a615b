"""The adaptive solver, which has a separate step size for each image."""

import math

import pytest
import torch
from torch import nn

from models.score import Score
from oracles import FEW_STEP_SDES, ExactNetwork, distance_from, gaussian, planar_mixture
from runtime.errors import UserError
from runtime.randomness import per_image
from sampling import Options, sample
from sde_lib import VPSDE
from solvers import levels


@pytest.mark.parametrize('name', FEW_STEP_SDES)
def test_tighter_tolerances_take_more_steps(name):
    sde, target = FEW_STEP_SDES[name](), planar_mixture()
    model = Score(ExactNetwork(sde, target), sde)
    runs = [
        sample(model, (3000, 2), Options(method='adaptive', rtol=rtol, atol=rtol / 10, eps=1e-3))
        for rtol in (0.5, 0.01)
    ]
    assert runs[0][1] < runs[1][1] / 2 and distance_from(target, runs[1][0]) < 0.1


@pytest.mark.parametrize('name', ['ve', 'vp'])
@pytest.mark.parametrize('rtol', [0.05, 0.01])
def test_rejected_steps_do_not_change_the_variance(name, rtol):
    """Rejected steps do not change the variance of the samples.

    The test is in one dimension, where the step size depends most on the noise. If the noise were
    drawn again after a rejected step, the variance would be up to twice as large. With n = 4,000
    the standard error is 0.011.
    """
    sde, target = FEW_STEP_SDES[name](), gaussian([0.5], [0.09])
    options = Options(method='adaptive', rtol=rtol, atol=rtol / 10, noise_removal=False)
    (alpha,), (sigma,) = levels(sde, sde.sampling_eps)
    x, _ = sample(Score(ExactNetwork(sde, target), sde), (4000, 1), options)
    assert abs(x.double().std() / math.sqrt(0.09 * alpha**2 + sigma**2) - 1) < 0.05


def test_a_score_that_is_not_finite_raises_an_error():
    class Broken(nn.Module):
        def forward(self, x, labels):
            return x * torch.where(torch.arange(len(x)) == 1, math.nan, 1.0)[:, None]

    with pytest.raises(UserError, match='not finite'):
        sample(Score(Broken(), VPSDE()), (3, 2), Options(method='adaptive'))


def test_steps_of_an_image_do_not_depend_on_other_images():
    sde, target = VPSDE(), planar_mixture()

    def draw(seeds):
        with per_image(seeds):
            return sample(
                Score(ExactNetwork(sde, target), sde), (len(seeds), 2), Options(method='adaptive')
            )[0]

    assert torch.allclose(draw([3, 4, 5])[1:2], draw([4]), atol=1e-5)
