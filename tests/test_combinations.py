"""Inpainting, colorization and conditional sampling with every predictor and corrector."""

import itertools

import pytest
import torch

from controllable_generation import get_pc_colorizer, get_pc_conditional_sampler, get_pc_inpainter
from models.score import Score
from oracles import ExactClassifier, ExactNetwork, planar_mixture
from published_samplers import HALF, SDES, SEED, inpainted, made, measured_sampler
from sampling import CORRECTORS, PREDICTORS, Loop, Options, get_corrector, get_predictor, sample
from sde_lib import VPSDE


def is_undefined(sde, predictor, corrector, probability_flow):
    """Return whether a combination is undefined.

    It is undefined if it has neither predictor nor corrector, or if it is ancestral sampling with
    an ODE or an SDE without a Markov chain.
    """
    return (predictor == corrector == 'none') or (
        predictor == 'ancestral_sampling' and (sde == 'subvp' or probability_flow)
    )


COMBINATIONS = list(itertools.product(SDES, PREDICTORS.names(), CORRECTORS.names(), [False, True]))


@pytest.mark.parametrize(
    'name, predictor, corrector, probability_flow',
    [c for c in COMBINATIONS if not is_undefined(*c)],
)
def test_every_combination_runs(name, predictor, corrector, probability_flow):
    """Results are finite and keep the known values, also with a classifier.

    The number of steps is 30 because the VP chain needs more than 20. For the ODE, the gradient of
    the consistency loss is added.
    """
    sde, data, target = SDES[name](30), torch.randn(3, 4), planar_mixture()
    x = inpainted(
        sde,
        data,
        HALF,
        predictor=predictor,
        corrector=corrector,
        probability_flow=probability_flow,
        resample=1 if predictor == 'none' else 2,
        consistency=0.5 if probability_flow else 0.0,
    )
    assert (
        x.shape == (3, 4)
        and torch.isfinite(x).all()
        and torch.equal(x[:, HALF == 1], data[:, HALF == 1])
    )
    x, nfe = made(
        get_pc_conditional_sampler,
        sde,
        predictor,
        corrector,
        probability_flow=probability_flow,
        shape=(2,),
        classifier=ExactClassifier(sde, target),
    )(ExactNetwork(sde, target), [0, 2, 1])
    assert (
        x.shape == (3, 2)
        and torch.isfinite(x).all()
        and nfe == 30 * ((predictor != 'none') + (corrector != 'none'))
    )


@pytest.mark.parametrize(
    'name, predictor, corrector, probability_flow',
    [
        ('ve', 'none', 'none', False),
        ('vp', 'none', 'none', True),
        ('subvp', 'ancestral_sampling', 'langevin', False),
        ('vp', 'ancestral_sampling', 'none', True),
    ],
)
def test_undefined_combinations_raise_an_error(name, predictor, corrector, probability_flow):
    """Undefined combinations raise an error when the sampler is made, before it gets a network.

    The plain sampler is tested with all combinations.
    """
    sde = SDES[name](60)
    classifier = ExactClassifier(sde, planar_mixture())
    for make, settings in (
        (get_pc_inpainter, {}),
        (get_pc_colorizer, {}),
        (measured_sampler, {}),
        (get_pc_conditional_sampler, dict(classifier=classifier)),
    ):
        with pytest.raises((NotImplementedError, ValueError)) as error:
            made(make, sde, predictor, corrector, probability_flow=probability_flow, **settings)
        message = str(error.value)
        assert 20 < len(message) < 250 and '\n' not in message
        assert (
            ('ancestral' in message) if predictor == 'ancestral_sampling' else ("'none'" in message)
        )
    assert classifier.calls == 0


@pytest.mark.parametrize(
    'predictor, loop, message',
    [
        ('none', dict(resample=2), "resample=2 needs a predictor: with predictor='none'"),
        (None, dict(resample=3), 'resample=3 needs a predictor'),
        ('reverse_diffusion', dict(resample=0), 'resample must be at least 1, got 0'),
        ('none', dict(resample=0), 'resample .* got 0'),
        ('reverse_diffusion', dict(resample=-1), 'resample .* got -1'),
        ('reverse_diffusion', dict(jump=0), 'jump must be at least 1, got 0'),
    ],
)
@pytest.mark.parametrize('make', [get_pc_inpainter, get_pc_colorizer, measured_sampler])
def test_resampling_without_a_step_raises_an_error(make, predictor, loop, message):
    with pytest.raises(ValueError, match=message) as error:
        made(make, VPSDE(N=60), predictor, 'langevin', **loop)
    assert '\n' not in str(error.value) and len(str(error.value)) < 250


@pytest.mark.parametrize(
    'name, predictor, corrector, probability_flow',
    [c for c in COMBINATIONS if not is_undefined(*c)],
)
def test_without_known_values_the_loop_is_that_of_plain_sampling(
    name, predictor, corrector, probability_flow
):
    """Without known values, each step equals the corrector and predictor step, bit by bit."""
    sde = SDES[name](25)
    model, start, states, seen = (
        Score(ExactNetwork(sde, planar_mixture()), sde),
        sde.prior_sampling((5, 2)),
        [],
        [],
    )
    predict = get_predictor(predictor)(sde, model.score, probability_flow).update_fn
    correct = get_corrector(corrector)(sde, model.score, 0.16, 1).update_fn
    torch.manual_seed(SEED)
    state = start
    for t in torch.linspace(1, 0.01, 25):
        state, _ = correct(state, t.expand(5))
        state, mean = predict(state, t.expand(5))
        states.append(state)
    for noise_removal, last in ((False, state), (True, mean)):
        options = Options(
            method='pc',
            predictor=predictor,
            corrector=corrector,
            probability_flow=probability_flow,
            eps=0.01,
            noise_removal=noise_removal,
        )
        torch.manual_seed(SEED)
        x, _ = sample(model, (5, 2), options, z=start, loop=Loop(lambda i, t, x: seen.append(x)))
        assert torch.equal(x, last)
    assert all(torch.equal(a, b) for a, b in zip(seen, 2 * states, strict=True))
