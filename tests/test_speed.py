"""Layout, precision, compilation, accumulation and recomputation do not change the numbers."""

import copy
import shutil

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import losses
import run_lib
import sde_lib
from commands import preflight
from configs import families
from configs.ve import (
    cifar10_ncsnpp_continuous,
    digits_ncsnpp_continuous,
    ffhq_256_ncsnpp_continuous,
)
from configs.vp import (
    cifar10_ddpmpp_continuous,
    digits_ddpmpp_classes,
    digits_ddpmpp_continuous,
    digits_wideresnet,
)
from models import utils as mutils
from runtime.errors import UserError


def tiny(config, **model):
    """Return the network of a config for images of 8x8 pixels."""
    config.device, config.data.image_size = 'cpu', 8
    small = dict(nf=16, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), num_scales=30)
    with config.unlocked():
        config.model.update(small | model)
    return config


def ncsn(name):
    config = families.cifar10()
    (families.ncsn if name == 'ncsn' else families.ncsnv2)(config)
    config.device, config.data.image_size = 'cpu', 16
    config.model.update(name=name, nf=8)
    return config


NETWORKS = {
    'ncsnpp': lambda: tiny(cifar10_ncsnpp_continuous.get_config()),
    'ncsnpp, pyramids with skips': lambda: tiny(ffhq_256_ncsnpp_continuous.get_config()),
    'ncsnpp, residual output': lambda: tiny(
        cifar10_ncsnpp_continuous.get_config(), progressive='residual', resblock_type='ddpm'
    ),
    'ddpmpp': lambda: tiny(cifar10_ddpmpp_continuous.get_config(), name='ddpmpp'),
    'ddpmpp, classes': lambda: tiny(digits_ddpmpp_classes.get_config()),
    'ddpm': lambda: tiny(families.ddpm(families.vp(families.cifar10(), continuous=False)), nf=32),
    'wideresnet': lambda: tiny(digits_wideresnet.get_config(), widen=1),
    **{
        name: lambda name=name: ncsn(name)
        for name in ('ncsn', 'ncsnv2', 'ncsnv2_64', 'ncsnv2_128', 'ncsnv2_256')
    },
}


def build(name, **training):
    """Return (config, network, inputs), without dropout and with last layers that are not tiny."""
    config = NETWORKS[name]()
    config.training.update(training)
    with config.unlocked():
        config.model.update(dropout=0.0, init_scale=1.0)
    torch.manual_seed(0)
    model = mutils.create_model(config)
    size = config.data.image_size
    x = torch.rand(2, config.data.num_channels, size, size)
    labels = torch.tensor([0.7, 3.0]) if config.training.continuous else torch.tensor([2, 9])
    classes = (torch.tensor([1, 3]),) if 'classes' in name else ()
    return config, model, (x, labels, *classes)


def error(value, exact):
    return ((value - exact).abs().max() / exact.abs().max()).item()


def gradients(model, output):
    model.zero_grad()
    output.square().mean().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_every_registered_network_is_tested():
    assert {NETWORKS[name]().model.name for name in NETWORKS} == set(mutils.MODELS.names())


def compiled_twin(model):
    torch._dynamo.reset()
    twin = copy.deepcopy(model)
    twin.module.compile(fullgraph=True, backend='aot_eager')
    assert list(twin.state_dict()) == list(model.state_dict())
    return twin


# 'ncsnv2' is one of the other networks
@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in NETWORKS if name != 'ncsnv2'])
def test_networks_train_as_one_graph(name):
    """Forward and backward pass, compiled as one graph, give the numbers of the plain network."""
    _, model, inputs = build(name)
    twin = compiled_twin(model)
    torch.manual_seed(1)
    expected = model(*inputs)
    torch.manual_seed(1)
    value = twin(*inputs)
    assert error(value, expected) < 1e-5
    assert error(gradients(twin, value), gradients(model, expected)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in NETWORKS if 'ncsnpp' in name or 'ddpm' in name])
def test_u_nets_evaluate_as_one_graph(name):
    _, model, inputs = build(name)
    twin = compiled_twin(model.eval())
    with torch.no_grad():
        assert error(twin(*inputs), model(*inputs)) < 1e-5


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which('g++') is None and shutil.which('clang++') is None,
    reason='compiling for a CPU needs a C++ compiler',
)
def test_the_setting_compiles():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    _, model, inputs = build('ncsnpp')
    _, compiled, _ = build('ncsnpp', compile=True)
    with torch.no_grad():
        assert error(compiled.eval()(*inputs), model.eval()(*inputs)) < 1e-4
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] == 1


@pytest.mark.parametrize('name', NETWORKS)
def test_the_layout_changes_rounding_only(name):
    _, first, inputs = build(name, channels_last=False)
    _, last, _ = build(name, channels_last=True)
    convolutions = [p for p in last.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
    assert convolutions and all(
        p.is_contiguous(memory_format=torch.channels_last) for p in convolutions
    )
    expected, value = first.eval()(*inputs), last.eval()(*inputs)
    assert error(value, expected) < 1e-5 and value.is_contiguous()
    assert error(gradients(last, value), gradients(first, expected)) < 1e-4
    for key, parameter in first.state_dict().items():
        assert torch.equal(parameter, last.state_dict()[key])


@pytest.mark.parametrize('name', NETWORKS)
def test_bfloat16_is_near_float32(name):
    """Results differ by a few roundings to 8 bits; parameters, outputs and gradients are float32.

    NCSNv2 for 256 pixels, the deepest network, has the largest error: a cosine of 0.966 between the
    gradients.
    """
    _, model, inputs = build(name)
    _, low, _ = build(name, precision='bfloat16')
    seen = []
    convolution = next(m for m in low.modules() if isinstance(m, torch.nn.Conv2d))
    convolution.register_forward_hook(lambda module, x, y: seen.append(y.dtype))
    expected, value = model.eval()(*inputs), low.eval()(*inputs)
    assert seen == [torch.bfloat16] and value.dtype == torch.float32 and value.is_contiguous()
    assert 1e-5 < error(value, expected) < 0.06
    grad = gradients(low, value)
    assert (
        grad.dtype == torch.float32
        and torch.nn.functional.cosine_similarity(grad, gradients(model, expected), dim=0) > 0.95
    )


@pytest.mark.parametrize(
    'key, value, message',
    [
        (
            'precision',
            'float8',
            "^config.training.precision must be one of 'float32', 'bfloat16', got 'float8'$",
        ),
        ('accumulation', 0, '^config.training.accumulation must be an integer >= 1, got 0$'),
        (
            'accumulation',
            7,
            '^config.training.batch_size must be a multiple of '
            'config.training.accumulation=7, got 64$',
        ),
    ],
)
def test_invalid_settings_raise_an_error(key, value, message, tmp_path):
    config = digits_ddpmpp_continuous.get_config()
    config.device, config.training[key] = 'cpu', value
    with pytest.raises(UserError, match=message):
        preflight.check(config, tmp_path, 'train')


def test_recomputation_is_for_u_nets(tmp_path):
    config = ncsn('ncsnv2_64')
    config.training.recompute = True
    with pytest.raises(
        UserError,
        match='config.training.recompute=True is for U-Nets only, got '
        "config.model.name='ncsnv2_64'",
    ):
        preflight.check(config, tmp_path, 'train')


# Steps --------------------------------------------------------------------------------------------


def steps(config, count=3, **settings):
    """Return the losses of some training steps and the training state after them."""
    torch.manual_seed(0)
    state = run_lib.create_state(config)
    step = losses.get_step_fn(
        sde_lib.get_sde(config), True, losses.optimization_manager(config), **settings
    )
    found = []
    for i in range(count):
        torch.manual_seed(10 + i)
        found.append(
            step(state, torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(i)))
        )
    return torch.stack(found), state


@pytest.mark.parametrize('accumulation', [2, 3, 12])
@pytest.mark.parametrize('continuous', [True, False])
def test_accumulated_gradients_equal_those_of_the_batch(continuous, accumulation):
    """Times and noise are the same, so losses and, up to rounding, steps are the same."""
    config = digits_ddpmpp_continuous.get_config()
    config.device, config.optim.warmup = 'cpu', 0
    whole, one = steps(config, continuous=continuous)
    parts, many = steps(config, continuous=continuous, accumulation=accumulation)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=0)
    moments = [
        torch.cat([s['exp_avg'].flatten() for s in state['optimizer'].state.values()])
        for state in (one, many)
    ]
    assert error(moments[1], moments[0]) < 1e-4


def test_parts_must_be_equal():
    with pytest.raises(
        UserError, match='the batch size must be a multiple of accumulation=5, got 12'
    ):
        config = digits_ddpmpp_continuous.get_config()
        config.device = 'cpu'
        steps(config, accumulation=5)


@pytest.mark.parametrize(
    'config', [digits_ddpmpp_continuous, digits_ncsnpp_continuous], ids=['ddpmpp', 'ncsnpp']
)
def test_recomputation_saves_memory_and_changes_no_results(config):
    """The results are bit-identical, with dropout."""
    results = []
    for recompute in (False, True):
        settings = config.get_config()
        settings.device = 'cpu'
        settings.training.recompute = recompute
        settings.model.dropout = 0.2
        settings.optim.warmup = 0
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x
        ):
            found, state = steps(settings)
        results.append(
            (sum(kept), found, torch.cat([p.flatten() for p in state['model'].parameters()]))
        )
    (plain, *expected), (less, *values) = results
    assert less < 0.5 * plain
    assert all(map(torch.equal, values, expected))


class Waiting(TorchDispatchMode):
    """Record the operations whose result the host reads, for which it would wait on a GPU."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.is_nonzero.default,
            torch.ops.aten.equal.default,
            torch.ops.aten.nonzero.default,
        ):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    'config', [digits_ddpmpp_continuous, digits_ncsnpp_continuous], ids=['ddpmpp', 'ncsnpp']
)
def test_the_host_does_not_wait_within_a_step(config):
    """The host reads nothing in loss, backward pass, clipping, skipping, optimizer and average."""
    settings = config.get_config()
    settings.device = 'cpu'
    state = run_lib.create_state(settings)
    step = losses.get_step_fn(
        sde_lib.get_sde(settings), True, losses.optimization_manager(settings)
    )
    x = torch.rand(4, 1, 8, 8)
    step(state, x)
    with Waiting() as waiting:
        step(state, x)
        assert not waiting.found
        state['step'] += int(torch.ones(()))  # reading a result is recorded
    assert waiting.found == ['aten._local_scalar_dense.default']


def test_modules_are_not_traversed_in_every_evaluation():
    """Setting the mode visits every module, so it is set only if it changes."""

    class Counting(torch.nn.Module):
        switched = 0

        def train(self, mode=True):
            self.switched += 1
            return super().train(mode)

        def forward(self, x, labels):
            return x

    model = Counting()
    for train in (False, False, True, True, False):
        mutils.get_model_fn(model, train)(torch.zeros(1), None)
        assert model.training == train
    assert model.switched == 3


def test_times_are_expanded():
    x = torch.zeros(3, 2, dtype=torch.float64)
    for t in (0.5, torch.tensor(0.5), torch.full((3,), 0.5)):
        assert torch.equal(mutils.times_like(x, t), torch.full((3,), 0.5, dtype=torch.float64))
