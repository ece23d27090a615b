"""Separate random streams: for a block of code, and for every image of a sampler."""

import pytest
import torch

import sampling
from commands import drawing
from conftest import load_config
from oracles import ExactNetwork, planar_mixture
from runtime.randomness import (
    batch_mean,
    is_per_image,
    normal_like,
    own_randomness,
    per_image,
    prior_sampling,
    seed_of,
)
from sde_lib import VESDE, VPSDE, subVPSDE

SDES = {'ve': VESDE(0.01, 10, N=25), 'vp': VPSDE(N=25), 'subvp': subVPSDE(N=25)}


def test_a_block_has_a_separate_stream():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with own_randomness(1, 'place', 2):
        inside = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    for place, same in ((('place', 2), True), (('place', 3), False), (('other', 2), False)):
        with own_randomness(1, *place):
            assert torch.equal(torch.rand(2), inside) == same
    with own_randomness(2, 'place', 2):
        assert not torch.equal(torch.rand(2), inside)


def test_seeds():
    assert seed_of(7) == 7
    seeds = {
        seed_of(seed, *place) for seed in range(3) for place in (('a',), ('b',), ('a', 1), ('a', 2))
    }
    assert len(seeds) == 12 and all(0 <= seed < 2**56 for seed in seeds)


def test_streams_of_images():
    """A row depends only on its seed and on the number of earlier draws.

    The stream outside the block is unchanged.
    """
    x = torch.zeros(3, 2, 4, dtype=torch.float64)
    state = torch.get_rng_state()
    with per_image([10, 11, 12]):
        assert is_per_image()
        first, second = normal_like(x), normal_like(x)
        prior = prior_sampling(SDES['ve'], (3, 2, 4))
        with pytest.raises(ValueError, match='a batch of 3 images, one for each seed, got 2'):
            normal_like(x[:2])
    assert not is_per_image() and torch.equal(torch.get_rng_state(), state)
    assert first.dtype == torch.float64 and first.shape == x.shape
    with per_image([11]):
        assert torch.equal(prior_sampling(SDES['ve'], (1, 2, 4)), prior[1:2])
        assert torch.equal(normal_like(x[:1]), first[1:2]) and torch.equal(
            normal_like(x[:1]), second[1:2]
        )
    drawn = torch.cat([first.flatten(1), second.flatten(1), prior.flatten(1) / 10]).flatten()
    assert len(drawn.unique()) == len(drawn)  # prior and noise have no numbers in common
    with per_image(range(4000)):
        many = torch.cat([normal_like(torch.zeros(4000, 3)), prior_sampling(SDES['vp'], (4000, 3))])
    assert abs(many.mean()) < 4 / len(many.flatten()) ** 0.5 and abs(many.std() - 1) < 0.03
    assert len(many.unique(dim=0)) == 8000


def test_means_over_a_batch():
    values = torch.tensor([1.0, 3.0])
    assert batch_mean(values) == 2
    with per_image([0, 1]):
        assert torch.equal(batch_mean(values), values)


@pytest.mark.parametrize('corrector', ['langevin', 'ald', 'none'])
@pytest.mark.parametrize(
    'predictor', ['euler_maruyama', 'reverse_diffusion', 'ancestral_sampling', 'none']
)
@pytest.mark.parametrize('sde', SDES)
def test_an_image_does_not_depend_on_other_images(sde, predictor, corrector):
    sde = SDES[sde]
    if (
        predictor == corrector == 'none'
        or predictor == 'ancestral_sampling'
        and isinstance(sde, subVPSDE)
    ):
        pytest.skip('undefined: no sampler')
    network = ExactNetwork(sde, planar_mixture())

    def draw(seeds):
        sampler = sampling.get_pc_sampler(
            sde,
            (len(seeds), 2),
            sampling.get_predictor(predictor),
            sampling.get_corrector(corrector),
            lambda x: x,
            snr=0.16,
            continuous=True,
            eps=sde.sampling_eps,
        )
        with per_image(seeds):
            return sampler(network)[0]

    together = draw(range(5))
    apart = torch.cat([draw([0, 1]), draw([2]), draw([3, 4])])
    torch.testing.assert_close(apart, together, rtol=1e-5, atol=1e-5)
    assert len(together.unique(dim=0)) == 5


def test_without_streams_langevin_steps_are_shared():
    """As in the 2021 release, the step size depends on the mean norms of the batch.

    An image therefore depends on the other images.
    """
    sde = SDES['vp']
    corrector = sampling.LangevinCorrector(sde, lambda x, t: -x, 0.16, 1)
    x, t = torch.tensor([[1.0, 1.0], [30.0, 40.0]]), torch.full((2,), 0.5)
    torch.manual_seed(0)
    both = corrector.update_fn(x, t)[1] - x
    torch.testing.assert_close(both[0] / -x[0], both[1] / -x[1])
    with per_image([0, 1]):
        own = corrector.update_fn(x, t)[1] - x
    ratio = (own[0] / -x[0])[0] / (own[1] / -x[1])[0]
    assert ratio > 50


def test_the_ode_agrees_to_its_tolerance():
    """Samples agree up to the tolerance, because the solver's steps depend on the whole batch."""
    sde = SDES['vp']
    network = ExactNetwork(sde, planar_mixture())

    def draw(seeds):
        with per_image(seeds):
            return sampling.get_ode_sampler(
                sde, (len(seeds), 2), lambda x: x, rtol=1e-6, atol=1e-6, method='dopri5'
            )(network)[0]

    torch.testing.assert_close(
        torch.cat([draw([0]), draw([1, 2])]), draw(range(3)), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    'module', ['configs.vp.digits_ddpmpp_classes', 'configs.ve.digits_ncsnpp_continuous']
)
def test_samples_of_a_config_do_not_depend_on_the_batch(module):
    """Labels are the same, and images up to one grey level of rounding."""
    from score_model import ScoreModel

    config = load_config(module)
    config.sampling.update(steps=25, seed_per_image=True)
    model = ScoreModel.from_config(config)
    whole = drawing.draw(model, ('x',), 0, 5)
    parts = [drawing.draw(model, ('x',), *batch) for batch in ((0, 2), (2, 3))]
    for key in whole.keys() - {'nfe', 'seconds'}:
        a, b = (
            whole[key].astype(int),
            torch.cat([torch.from_numpy(part[key]) for part in parts]).numpy().astype(int),
        )
        assert abs(a - b).max() <= (15 if key == 'samples' else 0) and (a != b).mean() < 0.01
