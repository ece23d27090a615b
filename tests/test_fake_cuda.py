"""Networks, losses and samplers on a GPU of fake tensors: all operands are on one device.

Every walk checks that its result is on the device and has the right shape. Conditional samples,
likelihoods and `ScoreModel` are in test_fake_cuda_models.py.
"""

import copy
import functools
import sys

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException

import losses
import solvers
from commands.training_log import Skips
from conftest import load_config
from fake_devices import SHAPE, TWO_DEVICES, Pointwise, check
from models.ema import ExponentialMovingAverage
from models.score import Score
from models.utils import create_model
from op import upfirdn2d
from op.upfirdn2d import resample
from runtime.randomness import per_image
from sampling import Loop, Options, sample
from test_modes import CASES, SAMPLERS, SDES
from test_networks import CLASSIFIERS, NETWORKS, REFINENETS, TINY, tiny_config

# methods whose steps depend on values, which have walks of their own
BY_VALUES = ('RK45', 'dopri5', 'adaptive')
STEPS_OF_PC = dict(method='pc', predictor='reverse_diffusion', corrector='langevin')
STEPS = Options(**STEPS_OF_PC)


@functools.cache
def _on_cpu(kind, **model):
    if kind == 'classifier':
        config = tiny_config('wideresnet', module='configs.ve.cifar10_wideresnet', widen=1)
    else:
        config = tiny_config('ncsnpp' if kind == 've' else 'ddpmpp', **model)
    return create_model(config)


def network(kind='ve', **model):
    """A small network on the CPU: that of an SDE, or 'classifier'."""
    return copy.deepcopy(_on_cpu(kind, **model))


def score_on(device, kind='ve'):
    return Score(Pointwise().to(device), SDES[kind])


# Faults are found ---------------------------------------------------------------------------------


class Faulty(nn.Module):
    """Adds a tensor of the CPU to the output of a network."""

    def __init__(self, network, shape):
        super().__init__()
        self.network, self.shift = network, torch.zeros(shape)

    def forward(self, x, labels, **condition):
        return self.network(x, labels, **condition) + self.shift


@pytest.mark.parametrize('walk', ['loss', 'pc', *solvers.SOLVERS.names()])
def test_a_tensor_left_on_the_cpu_is_found(walk, fake_gpu):
    def run(shape):
        score = Score(Faulty(Pointwise(), shape).to('cuda'), SDES['ve'])
        if walk == 'loss':
            losses.get_loss_fn(score.sde, train=True)(
                score.network, torch.rand(SHAPE, device='cuda')
            )
        else:
            sample(score, SHAPE, STEPS if walk == 'pc' else Options(method=walk, steps=4))

    with fake_gpu():
        run(())  # numbers may be anywhere
        for shape in ((8,), (1, 1, 1, 1)):
            with pytest.raises(RuntimeError, match=TWO_DEVICES):
                run(shape)


def test_a_guidance_on_the_cpu_is_found(fake_gpu):
    def guide(score_fn):
        return lambda x, t: score_fn(x, t) + torch.ones(8)

    with fake_gpu(), pytest.raises(RuntimeError, match=TWO_DEVICES):
        sample(score_on('cuda').guided_by(guide), SHAPE, STEPS)


def test_gradients_with_a_tensor_on_the_cpu_are_found(fake_gpu):
    class Backward(torch.autograd.Function):
        forward = staticmethod(lambda ctx, x: x.clone())
        backward = staticmethod(lambda ctx, grad: grad * torch.ones(8))

    with fake_gpu():
        x = torch.rand(SHAPE, device='meta', requires_grad=True)
        with pytest.raises(RuntimeError, match=TWO_DEVICES):
            torch.autograd.grad(Backward.apply(x).sum(), x)


def test_filters_generators_and_branches_are_found(fake_gpu):
    with fake_gpu():
        x = torch.rand(SHAPE, device='cuda')
        with pytest.raises(RuntimeError, match=TWO_DEVICES):
            resample(x, torch.ones(4, 4), 2, 1, (2, 2), (16, 16), True)
        for generator, device in (('cpu', 'cuda'), ('cuda', 'cpu')):
            with pytest.raises(RuntimeError, match=TWO_DEVICES):
                torch.randn(3, generator=torch.Generator(generator), device=device)
        with pytest.raises(DataDependentOutputException):
            bool((x > 0).all())
        assert torch.ones(3).sum() == 3  # the CPU has values
    outside = torch.ones(SHAPE, device='meta')
    with fake_gpu(answers=[True]):
        check(outside + 1, device='meta')
        assert (torch.rand(SHAPE, device='cuda') > 2).all()


# Networks and losses ------------------------------------------------------------------------------

VARIANTS = {
    'kernels': {},
    'classes': dict(num_classes=3, label_dropout=0.5),
    'skips': dict(progressive='output_skip', progressive_input='input_skip'),
    'blocks of DDPM': dict(resblock_type='ddpm', fir=False, up_attention='block'),
}


@pytest.mark.parametrize(
    'name, variant',
    [*((name, '') for name in NETWORKS + CLASSIFIERS), *(('ncsnpp', name) for name in VARIANTS)],
)
def test_networks(name, variant, fake_gpu):
    """All registered networks, forward, and backward on 'meta'; upfirdn2d with and without kernels.

    tests/test_networks.py holds that the list is complete.
    """
    module = 'configs.ve.cifar10_wideresnet' if name in CLASSIFIERS else None
    config = tiny_config(name, module=module, **VARIANTS.get(variant, {}))
    config.training.recompute = variant == 'blocks of DDPM'
    size = config.data.image_size
    shape = (2, 10) if name in CLASSIFIERS else (2, 3, size, size)
    for device in ('cuda', 'meta'):
        model = create_model(config)
        with fake_gpu(kernels=variant == 'kernels'):
            model.to(device)
            labels = torch.arange(1, 3, device=device)
            labels = labels if name in REFINENETS else labels.float()
            x = torch.rand(2, 3, size, size, device=device, requires_grad=device == 'meta')
            known = {'classes': torch.arange(2, device=device)} if variant == 'classes' else {}
            output = model(x, labels, **known)
            check(output, shape, device)
            if device == 'meta':
                output.square().sum().backward()
                check(x.grad, x.shape, 'meta')
                for parameter in filter(lambda p: p.requires_grad, model.parameters()):
                    check(parameter.grad, parameter.shape, 'meta')


@pytest.mark.parametrize('kernels', [False, True])
def test_filters_from_the_cpu(kernels, fake_gpu):
    with fake_gpu(kernels):
        x = torch.rand(SHAPE, device='cuda')
        check(upfirdn2d(x, torch.ones(4, 4), up=2, pad=(2, 1)), (2, 3, 16, 16))


LOSSES = {
    'continuous': dict(continuous=True),
    'likelihood weighting': dict(continuous=True, likelihood_weighting=True),
    'discrete': dict(continuous=False),
}
TRAINED = [
    (kind, name) for kind in SDES for name in LOSSES if (kind, name) != ('subvp', 'discrete')
]


def positional(name):
    """The options of a network for the noise levels of a chain."""
    return dict(embedding_type='positional', num_scales=4) if name == 'discrete' else {}


@pytest.mark.parametrize('kind, name', TRAINED)
def test_losses(kind, name, fake_gpu):
    """Also DDPM's and SMLD's, which are the discrete ones of VP and VE."""
    model = network(kind, **positional(name))
    with fake_gpu():
        model.to('cuda')
        batch = torch.rand(SHAPE, device='cuda')
        for train in (False, True):
            check(losses.get_loss_fn(SDES[kind], train, **LOSSES[name])(model, batch), ())


def test_loss_of_a_classifier(fake_gpu):
    model = network('classifier')
    with fake_gpu():
        batch, classes = torch.rand(SHAPE, device='cuda'), torch.arange(2, device='cuda')
        loss = losses.NoisyCrossEntropy(SDES['ve'], train=True)
        check(loss(model.to('cuda'), batch, classes=classes), ())


def training_state(kind, device, **model):
    config = load_config('configs.ve.cifar10_ncsnpp_continuous', **TINY)
    model = network(kind, **model).to(device)
    return config, dict(
        model=model,
        optimizer=losses.get_optimizer(config, model.parameters()),
        step=0,
        ema=ExponentialMovingAverage(model.parameters(), decay=0.9),
    )


@pytest.mark.parametrize('kind, name', [*TRAINED, ('classifier', 'classifier')])
def test_training_steps(kind, name, fake_gpu, monkeypatch):
    """A step of training on 'meta', which has gradients, then one of evaluation."""
    optimizers = sys.modules['torch.optim.optimizer']
    monkeypatch.setattr(optimizers, '_get_fused_kernels_supported_devices', lambda: ['meta'])
    known = {}
    with fake_gpu():
        config, state = training_state(kind, 'meta', **positional(name))
        skips = Skips('meta')
        manager, metrics = losses.optimization_manager(config), {}
        if kind == 'classifier':
            make, known = losses.get_classifier_step_fn, {'classes': torch.arange(2, device='meta')}
            make = functools.partial(make, SDES['ve'])
        else:
            make = functools.partial(losses.get_step_fn, SDES[kind], **LOSSES[name])
        batch = torch.rand(SHAPE, device='meta')
        check(make(True, manager, accumulation=2)(state, batch, metrics, **known), (), 'meta')
        skips.count(metrics['grad_norm'])
        check(skips.longest, (), 'meta')
        check(make(False)(state, batch, **known), (), 'meta')
        for parameter in state['model'].parameters():
            check(parameter, parameter.shape, 'meta')


# Samplers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind, name', [case for case in CASES if case[1] not in BY_VALUES])
def test_samplers(kind, name, fake_gpu):
    """Every predictor, corrector and few-step solver that is registered."""
    with fake_gpu():
        check(sample(score_on('cuda', kind), SHAPE, SAMPLERS[name])[0])


@pytest.mark.parametrize('kind, name', TRAINED)
def test_samplers_with_networks_of_the_library(kind, name, fake_gpu):
    """Their labels in continuous time, and those of noise levels."""
    model = network(kind, **positional(name))
    with fake_gpu():
        score = Score(model.to('cuda'), SDES[kind], LOSSES[name]['continuous'])
        check(sample(score, SHAPE, SAMPLERS['euler_maruyama'])[0])


@pytest.mark.parametrize('name', [name for name in SAMPLERS if name not in BY_VALUES])
def test_streams_per_image(name, fake_gpu):
    with fake_gpu(), per_image(range(2)):
        check(sample(score_on('cuda'), SHAPE, SAMPLERS[name])[0])


@pytest.mark.parametrize(
    'settings',
    [
        dict(method='dpmpp_2m', thresholding=True),
        dict(STEPS_OF_PC, prior_mean=torch.ones(3, 1, 1)),
        dict(STEPS_OF_PC, order='predictor_corrector'),
        dict(STEPS_OF_PC, probability_flow=True),
        *(dict(method='dpm_solver', dpm_solver_order=n, steps=6) for n in (1, 2, 3)),
        *(dict(method='unipc', dpm_solver_order=n, steps=16) for n in (1, 3)),
        *(dict(method='ddim', skip_type=name, steps=3) for name in solvers.SKIP_TYPES),
    ],
    ids=str,
)
def test_options(settings, fake_gpu):
    with fake_gpu():
        check(sample(score_on('cuda'), SHAPE, Options(**settings), loop=Loop(resample=2))[0])


@pytest.mark.parametrize('kind', SDES)
@pytest.mark.parametrize('method', ['RK45', 'dopri5'])
def test_ode_solvers(kind, method, fake_gpu):
    """One step of each solver, see `fake_devices.euler_step`."""
    with fake_gpu():
        check(sample(score_on('cuda', kind), SHAPE, SAMPLERS[method])[0])


# what the adaptive solver asks in a step: are there times to go, is a step too small, is the stack
# of Brownian increments full; then nothing is left to go
ADAPTIVE = [True, False, True, True, False, False, False]


@pytest.mark.parametrize('kind', SDES)
def test_adaptive_steps(kind, fake_gpu):
    with fake_gpu(answers=ADAPTIVE):
        check(sample(score_on('cuda', kind), SHAPE, SAMPLERS['adaptive'])[0])
