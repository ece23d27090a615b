"""Guidance to classes with exact networks, classifiers and class-conditional networks."""

import math

import pytest
import torch
from torch import nn

from control import classifier_free_guidance, classifier_guidance
from controllable_generation import get_pc_conditional_sampler, get_pc_inpainter
from models.utils import Undivided, get_score_fn
from oracles import ExactClassifier, ExactConditionalNetwork, ExactNetwork, level, planar_mixture
from published_samplers import SDES, SEED, identity, made
from runtime.errors import UserError
from sampling import get_ode_sampler, get_pc_sampler
from sde_lib import VPSDE

CLASSES, EACH = 3, 1500
LABELS = torch.arange(CLASSES * EACH) % CLASSES


def assert_classes(x, target):
    """Check mean and covariance of the 1500 samples of each class.

    Tolerances are four standard errors (std / sqrt(n) for a mean, at most sqrt(2/n) of the variance
    for a covariance), plus 2 % of a std and 6 % of a variance for the errors of 200 steps and of a
    corrector with snr^2 = 2 %. The distance of the classes is four std, and their covariances
    differ by at least 40 %.
    """
    assert torch.isfinite(x).all()
    for k in range(CLASSES):
        own, exact = x[k == LABELS].double(), target.component(k)
        variance = exact.covariance.diag().max().item()
        assert (own.mean(0) - exact.mean).abs().max() < (4 / math.sqrt(EACH) + 0.02) * math.sqrt(
            variance
        )
        assert (own.T.cov() - exact.covariance).abs().max() < (
            4 * math.sqrt(2 / EACH) + 0.06
        ) * variance


@pytest.fixture(scope='module')
def target():
    return planar_mixture()


@pytest.mark.parametrize('name', SDES)
def test_a_classifier_gives_samples_of_its_classes(name, target):
    """Classifier guidance gives samples of each class, for any weights of the mixture."""
    sde = SDES[name](200)
    network = ExactNetwork(sde, target)
    torch.manual_seed(SEED)
    sampler = made(
        get_pc_conditional_sampler, sde, classifier=ExactClassifier(sde, target), snr=0.14
    )
    x, nfe = sampler(network, LABELS)  # the shape is that of the classifier
    assert nfe == network.calls == 400
    assert_classes(x, target)


GUIDES = dict(
    classifier=lambda sde, target, labels: classifier_guidance(
        sde, ExactClassifier(sde, target), labels
    ),
    classes=lambda sde, target, labels: classifier_free_guidance(labels),
)


@pytest.mark.parametrize('guide', GUIDES)
@pytest.mark.parametrize('name', SDES)
def test_the_ode_sampler_is_guided_too(name, guide, target):
    sde = SDES[name](1000)
    torch.manual_seed(SEED)
    network = ExactConditionalNetwork(sde, target)
    sampler = get_ode_sampler(
        sde,
        (len(LABELS), 2),
        identity,
        eps=sde.sampling_eps,
        rtol=1e-4,
        atol=1e-4,
        denoise=True,
        guidance=GUIDES[guide](sde, target, LABELS),
    )
    x, nfe = sampler(network)
    assert nfe == network.calls
    assert_classes(x, target)


@pytest.mark.parametrize('name', ['vp', 've'])
def test_a_class_conditional_network_gives_samples_of_its_classes(name, target):
    sde = SDES[name](200)
    network = ExactConditionalNetwork(sde, target)
    torch.manual_seed(SEED)
    x, nfe = made(
        get_pc_sampler,
        sde,
        snr=0.14,
        shape=(len(LABELS), 2),
        guidance=classifier_free_guidance(LABELS),
    )(network)
    assert nfe == network.calls == 400
    assert_classes(x, target)


@pytest.mark.parametrize('name', SDES)
def test_the_gradient_of_a_classifier_is_a_difference_of_scores(name, target):
    """grad log p(k | x) = grad log p(x | k) - grad log p(x), times the weight.

    It is computed in float64 at small and large times. The tolerance is 1e-5 because the oracle
    recovers the noise level from the label with an error. Images and labels are of different
    classes, because for the same class the difference of the scores may be zero.
    """
    sde, labels = SDES[name](1000), torch.tensor([1, 2, 0, 2, 0, 1])
    t = torch.tensor([0.01, 0.1, 0.3, 0.5, 0.8, 1.0], dtype=torch.float64)
    x = sde.perturb(target.means[[0, 1, 2, 0, 1, 2]], t)
    m, std = level(sde, t)
    whole = target.score(x, m, std)
    part = torch.stack([target.component(k).score(x, m, std) for k in range(CLASSES)])[
        labels, torch.arange(6)
    ]
    scale = torch.maximum(whole.abs().amax(1), part.abs().amax(1))[:, None]
    assert ((part - whole).abs().amax(1, keepdim=True) > 1e-3 * scale).all()
    unguided = get_score_fn(sde, ExactNetwork(sde, target), continuous=True)
    for weight in (-1.0, 0.0, 0.5, 1.0, 3.0):
        guided = classifier_guidance(sde, ExactClassifier(sde, target), labels, weight)(unguided)
        with torch.no_grad():  # as in samplers
            error = (guided(x, t) - whole - weight * (part - whole)) / scale
        assert error.abs().max() < 1e-5


def test_a_classifier_does_not_change(target):
    """It runs in evaluation mode, and neither its parameters nor x get gradients.

    Its logits need not be normalized.
    """

    class Classifier(nn.Linear):
        def forward(self, x, labels):
            assert not self.training
            return super().forward(x) + 7

    classifier, sde = Classifier(2, 3).train(), VPSDE(N=30)
    x, labels = torch.randn(4, 2), torch.tensor([0, 1, 2, 0])
    guided = classifier_guidance(sde, classifier, labels)(lambda x, t: torch.zeros_like(x))
    with torch.no_grad():
        gradient = guided(x, torch.full((4,), 0.5))
        p = (x @ classifier.weight.T + classifier.bias).softmax(1)
        # the gradient of a linear softmax classifier
        torch.testing.assert_close(gradient, classifier.weight[labels] - p @ classifier.weight)
    assert not gradient.requires_grad and not x.requires_grad and classifier.weight.grad is None


@pytest.mark.parametrize('name', SDES)
def test_guidance_with_weight_0_changes_nothing(name, target):
    """Guidance with weight 0 changes nothing, bit by bit; other weights are passed on."""
    sde = SDES[name](25)
    classifier, network, labels = (
        ExactClassifier(sde, target),
        ExactNetwork(sde, target),
        torch.tensor([0, 1, 2, 0]),
    )

    def sampled(make, *args, **settings):
        torch.manual_seed(SEED)
        return made(make, sde, **settings)(network, *args)[0]

    free = sampled(get_pc_sampler, shape=(4, 2))
    assert torch.equal(
        sampled(get_pc_conditional_sampler, labels, classifier=classifier, weight=0), free
    )
    assert torch.equal(
        sampled(get_pc_sampler, shape=(4, 2), guidance=classifier_free_guidance(labels, 0)), free
    )
    by_weight = {
        w: sampled(get_pc_conditional_sampler, labels, classifier=classifier, weight=w)
        for w in (1.0, 2.5)
    }
    for weight, x in by_weight.items():
        assert torch.equal(
            x,
            sampled(
                get_pc_sampler,
                shape=(4, 2),
                guidance=classifier_guidance(sde, classifier, labels, weight),
            ),
        )
    # the default weight is 1
    assert torch.equal(
        by_weight[1.0], sampled(get_pc_conditional_sampler, labels, classifier=classifier)
    )
    assert not torch.allclose(by_weight[1.0], free) and not torch.allclose(
        by_weight[1.0], by_weight[2.5]
    )


@pytest.mark.parametrize('name', SDES)
def test_both_kinds_of_guidance_give_the_exact_samples_of_the_class(name, target):
    """Both kinds of guidance give the samples of the exact class scores, also when inpainting.

    The tolerance is that of float32: 1e-3 after 25 steps, each of which rounds a score of up to
    1 / std with a relative error of 1e-7.
    """
    sde, labels, data = SDES[name](25), torch.tensor([0, 1, 2, 0]), torch.randn(4, 2)

    class Labelled(ExactConditionalNetwork):
        def forward(self, x, times, classes=None):
            return super().forward(x, times, labels)

    results = {}
    for kind, network, guidance in [
        ('exact', Labelled, None),
        ('free', ExactConditionalNetwork, None),
        *[
            (kind, ExactConditionalNetwork, guide(sde, target, labels))
            for kind, guide in GUIDES.items()
        ],
    ]:
        torch.manual_seed(SEED)
        free = made(get_pc_sampler, sde, shape=(4, 2), guidance=guidance)(network(sde, target))[0]
        torch.manual_seed(SEED)
        inpainter = made(get_pc_inpainter, sde, resample=2, guidance=guidance)
        results[kind] = free, inpainter(network(sde, target), data, torch.tensor([1.0, 0.0]))
        assert torch.equal(results[kind][1][:, 0], data[:, 0])
    for kind in GUIDES:
        torch.testing.assert_close(results[kind], results['exact'], rtol=0, atol=1e-3)
    assert all(
        (a - b).abs().max() > 0.1 for a, b in zip(results['free'], results['exact'], strict=True)
    )


@pytest.mark.parametrize('name', SDES)
def test_classifier_free_guidance_is_linear_in_two_scores(name, target):
    """Weights 0 and 1 give one of the scores, bit by bit, with one evaluation; others need two."""
    sde, labels, t = (
        SDES[name](1000),
        torch.tensor([0, 1, 2, 2]),
        torch.tensor([0.05, 0.2, 0.5, 0.9], dtype=torch.float64),
    )
    x, network = sde.perturb(target.sample(4), t), ExactConditionalNetwork(sde, target)
    score_fn = get_score_fn(sde, network, continuous=True)
    free, given, (m, std) = score_fn(x, t), score_fn(x, t, classes=labels), level(sde, t)
    for k in range(3):  # check of the oracle: it recovers the noise level from the label, to 1e-9
        torch.testing.assert_close(
            given[labels == k],
            target.component(k).score(x, m, std)[labels == k],
            rtol=1e-6,
            atol=1e-9,
        )
    assert not torch.allclose(free, given)
    for weight, evaluations in [(0, 1), (0.0, 1), (1, 1), (1.0, 1), (0.3, 2), (2.5, 2), (-1.0, 2)]:
        network.calls = 0
        guided = classifier_free_guidance(labels, weight)(score_fn)(x, t)
        assert network.calls == evaluations
        if evaluations == 1:
            assert torch.equal(guided, given if weight else free)
        # float64 rounding
        torch.testing.assert_close(guided, free + weight * (given - free), rtol=1e-10, atol=1e-10)
    assert torch.equal(
        classifier_free_guidance(labels)(score_fn)(x, t), given
    )  # the default weight


def test_labels_of_another_shape_raise_an_error(target):
    sde = VPSDE(N=30)
    sampler = made(get_pc_conditional_sampler, sde, classifier=ExactClassifier(sde, target))
    network = ExactNetwork(sde, target)
    for labels in (torch.tensor(1), torch.zeros(2, 3, dtype=torch.long)):
        with pytest.raises(UserError, match='labels') as error:
            sampler(network, labels)
        assert str(tuple(labels.shape)) in str(error.value)
    assert network.calls == 0


def test_the_default_shape_is_that_of_the_classifier(target):
    sde = VPSDE(N=30)
    classifier, network = ExactClassifier(sde, target), ExactNetwork(sde, target)
    assert made(get_pc_conditional_sampler, sde, classifier=classifier)(network, [0, 1])[
        0
    ].shape == (2, 2)
    # the wrapper of networks that are created from configs
    assert made(get_pc_conditional_sampler, sde, classifier=Undivided(classifier))(network, [0, 1])[
        0
    ].shape == (2, 2)
    classifier.shape = (2, 1, 1)
    assert made(get_pc_conditional_sampler, sde, classifier=classifier)(network, [0, 1])[
        0
    ].shape == (2, 2, 1, 1)
    assert made(get_pc_conditional_sampler, sde, classifier=classifier, shape=(1, 2))(network, [0])[
        0
    ].shape == (1, 1, 2)
