"""The loss of classifiers of noisy images."""

import math

import pytest
import torch
from torch import nn

from conftest import load_config
from losses import (
    NoisyCrossEntropy,
    get_classifier_step_fn,
    get_optimizer,
    optimization_manager,
)
from models import utils as mutils
from models.ema import ExponentialMovingAverage
from oracles import ExactClassifier, level, planar_mixture
from sde_lib import VESDE, VPSDE, subVPSDE

SDES = dict(ve=lambda: VESDE(0.01, 20), vp=VPSDE, subvp=subVPSDE)
# The smallest time here, because likelihood weights grow like 1/t, and the scatter of a Monte Carlo
# mean grows with them.
EPS = 1e-2


@pytest.fixture(params=SDES)
def sde(request):
    return SDES[request.param]()


def test_the_loss_of_a_classifier_is_the_cross_entropy(sde):
    """The loss is the mean of -log p(right class).

    Times are uniform in [1e-5, 1] and are drawn before the noise.
    """

    def classify(x, labels):
        return torch.stack([x[:, 0] * labels.log(), x[:, 1] - x[:, 0], x.square().sum(1)], 1).tanh()

    x, classes, n = planar_mixture().sample(64), torch.arange(64) % 3, 64
    torch.manual_seed(0)
    loss = NoisyCrossEntropy(sde, train=False)(classify, x, classes)
    torch.manual_seed(0)
    t, z = (
        torch.rand(n, dtype=torch.float64) * (1 - 1e-5) + 1e-5,
        torch.randn(n, 2, dtype=torch.float64),
    )
    m, std = level(sde, t)
    labels = std if isinstance(sde, VESDE) else 999 * t
    odds = classify(m[:, None] * x + std[:, None] * z, labels).exp()
    torch.testing.assert_close(
        loss, -(odds[range(n), classes] / odds.sum(1)).log().mean(), rtol=1e-9, atol=0
    )


def test_the_exact_classifier_has_the_smallest_loss(sde):
    """The exact classifier has a smaller loss than too confident, too uncertain or biased ones.

    The difference of the losses for the same random numbers exceeds four standard errors.
    """
    target = planar_mixture()
    exact = ExactClassifier(sde, target)
    others = [
        lambda x, labels: 1.3 * exact(x, labels),
        lambda x, labels: 0.75 * exact(x, labels),
        lambda x, labels: exact(x, labels) + torch.tensor([0.3, 0.0, 0.0]),
    ]
    loss_fn, excess = NoisyCrossEntropy(sde, train=False, eps=EPS), [[] for _ in others]
    for i in range(40):
        k = torch.multinomial(
            target.weights,
            2000,
            replacement=True,
            generator=torch.Generator().manual_seed(1000 + i),
        )
        x = torch.stack([target.component(c).sample(2000, seed=i) for c in range(3)])[
            k, torch.arange(2000)
        ]

        def loss(network, x=x, k=k, i=i):
            torch.manual_seed(i)
            return loss_fn(network, x, k)

        smallest = loss(exact)
        for found, network in zip(excess, others):
            found.append(loss(network) - smallest)
    for found in map(torch.stack, excess):
        assert found.mean() > 4 * found.std() / math.sqrt(len(found))


def test_times_of_a_classifier_reach_down_to_eps(sde):
    """Times are uniform from eps to 1; the classifier is in training mode only for training."""
    seen, n = [], 20000

    class Recording(nn.Module):
        def forward(self, x, labels):
            seen.append((labels, self.training))
            return x

    for train, settings in ((True, {}), (False, dict(eps=0.5))):
        NoisyCrossEntropy(sde, train, **settings)(
            Recording(), torch.zeros(n, 2, dtype=torch.float64), torch.zeros(n).long()
        )
        labels, training = seen.pop()
        t = (
            torch.log(labels / sde.sigma_min) / math.log(sde.sigma_max / sde.sigma_min)
            if isinstance(sde, VESDE)
            else labels / 999
        )
        low = settings.get('eps', 1e-5)
        assert (
            training is train
            and t.min() >= low * (1 - 1e-9)
            and t.min() < low + 10 / n
            and 1 - 10 / n < t.max() <= 1
        )


def test_a_classifier_learns():
    """A small wide residual network comes within 2 % of the best possible accuracy.

    The data are images from two Gaussians, whose means are horizontal and vertical stripes. The
    distance of the means is 3 standard deviations s. At time t the best possible accuracy is
    Phi(1.5 m s / sqrt(m^2 s^2 + std^2)). The accuracy is measured on 10000 images, to 0.5 %.
    """
    settings = load_config(
        'configs.vp.digits_wideresnet',
        dict(image_size=4),
        num_classes=2,
        nf=16,
        widen=1,
        ch_mult=(1,),
        dropout=0.0,
    )
    settings.optim.update(lr=5e-3, warmup=0)
    stripes = torch.tensor([-1.0, -1.0, 1.0, 1.0]).expand(1, 4, 4)
    means, n, sde = 1.5 * torch.stack([stripes, stripes.mT]) / math.sqrt(8), 10000, VPSDE()  # s = 1
    model = mutils.create_model(settings)
    state = dict(
        model=model,
        optimizer=get_optimizer(settings, model.parameters()),
        step=0,
        ema=ExponentialMovingAverage(model.parameters(), decay=0.98),
    )
    step_fn = get_classifier_step_fn(sde, train=True, optimize_fn=optimization_manager(settings))

    def draw(n):
        classes = torch.arange(n) % 2
        return means[classes] + torch.randn(n, 1, 4, 4), classes

    for _ in range(400):
        x, classes = draw(128)
        step_fn(state, x, classes=classes)
    assert state['step'] == 400
    state['ema'].copy_to(model.parameters())
    classify = mutils.get_model_fn(model)
    for time in (1e-3, 0.2, 0.4):
        x, classes = draw(n)
        with torch.no_grad():
            t = torch.full((n,), time)
            logits = classify(sde.perturb(x, t), sde.network_label(t))
        m, std = level(sde, torch.tensor([time]))
        best = torch.distributions.Normal(0.0, 1.0).cdf(1.5 * m / (m**2 + std**2).sqrt()).item()
        right = (logits.argmax(1) == classes).float().mean().item()
        assert abs(right - best) < 0.02
