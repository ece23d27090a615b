"""Files of the 2021 PyTorch release and of NCSN: outputs and training agree with the originals."""

import pytest
import torch

import checkpoints
import convert
import losses
import run_lib
import sde_lib
from checkpoints import formats
from checkpoints.formats import torch_zip
from checkpoints.trained import load_averaged_model
from conftest import DATA, parity, reference_config, relative_error
from example_states import JAX, OFFICIAL, outputs, small_ve
from models import utils as mutils
from models.ema import ExponentialMovingAverage


@pytest.mark.parametrize('file, reference', [OFFICIAL, JAX])
def test_outputs_of_the_releases(file, reference):
    reference = parity(reference)
    state = checkpoints.restore(DATA / file, run_lib.create_state(small_ve()))
    x, labels = torch.tensor(reference['x']), torch.tensor(reference['labels'])
    assert state['step'] == reference['step']
    assert relative_error(outputs(state['model'], x, labels), reference['raw_out']) < 1e-5
    with state['ema'].applied_to(state['model'].parameters()):
        assert relative_error(outputs(state['model'], x, labels), reference['ema_out']) < 1e-5
    # restore returns the stored weights
    assert relative_error(outputs(state['model'], x, labels), reference['raw_out']) < 1e-5
    model = load_averaged_model(small_ve(), DATA / file)
    assert relative_error(outputs(model, x, labels), reference['ema_out']) < 1e-5


@pytest.mark.parametrize('file, reference', [OFFICIAL, JAX])
def test_conversions_through_other_formats_lose_nothing(file, reference, tmp_path):
    """Conversion to safetensors, to a training state and further loses no information.

    This holds for raw and for EMA weights.
    """
    reference, config = parity(reference), small_ve()
    x, labels = torch.tensor(reference['x']), torch.tensor(reference['labels'])
    convert.convert(DATA / file, tmp_path / 'a.pth', config)
    state = checkpoints.restore(tmp_path / 'a.pth', run_lib.create_state(config))
    assert state['step'] == reference['step'] and len(state['optimizer'].state) == len(
        state['ema'].shadow_params
    )
    for kind in ('raw', 'ema'):
        convert.convert(tmp_path / 'a.pth', tmp_path / f'{kind}.safetensors', config, kind)
        convert.convert(tmp_path / f'{kind}.safetensors', tmp_path / kind / 'b.pth')
        model = load_averaged_model(
            formats.config_of(tmp_path / f'{kind}.safetensors'), tmp_path / kind / 'b.pth'
        )
        assert relative_error(outputs(model, x, labels), reference[f'{kind}_out']) < 1e-5


@pytest.mark.parametrize('through', ['', 'converted.pth'])
def test_training_resumes_from_a_state_of_the_release(through, tmp_path):
    """The loss of the next step equals the loss that the release computed."""
    reference, config = parity(OFFICIAL[1]), small_ve()
    path = DATA / OFFICIAL[0]
    if through:
        convert.convert(path, tmp_path / through, config)
        path = tmp_path / through
    config.optim.warmup = 5000
    state = checkpoints.restore(path, run_lib.create_state(config))
    step_fn = losses.get_step_fn(
        sde_lib.get_sde(config),
        True,
        losses.optimization_manager(config),
        reduce_mean=config.training.reduce_mean,
        continuous=True,
        likelihood_weighting=False,
    )
    torch.manual_seed(99)
    assert (
        relative_error(
            step_fn(state, torch.tensor(reference['next_batch'])), reference['next_loss']
        )
        < 1e-5
    )


def test_a_training_state_can_be_read_by_the_2021_release(tmp_path):
    """It has the keys, names with 'module.' and the Adam state of the 2021 release.

    A plain unpickler, as in that release, can read it.
    """
    convert.convert(DATA / JAX[0], tmp_path / 'a.pth', small_ve())
    content, published = (
        torch.load(path, weights_only=False) for path in (tmp_path / 'a.pth', DATA / OFFICIAL[0])
    )
    assert (
        content.keys() == published.keys()
        and content['ema'].keys() - {'untrained'} == published['ema'].keys()
    )
    assert list(content['model']) == list(published['model'])
    assert [tuple(p.shape) for p in content['ema']['shadow_params']] == [
        tuple(p.shape) for p in published['ema']['shadow_params']
    ]
    network = mutils.create_model(small_ve())
    optimizer = torch.optim.Adam(network.parameters(), lr=1.0)
    optimizer.load_state_dict(content['optimizer'])
    assert {len(values) for values in optimizer.state.values()} == {3} and optimizer.param_groups[
        0
    ]['betas'] == (0.9, 0.999)


def steps_of_adam(network, optimizer, losses_of, numbers):
    for i in numbers:
        torch.manual_seed(i)
        optimizer.zero_grad()
        losses_of(network, torch.rand(4, 3, 16, 16, dtype=torch.float64)).backward()
        optimizer.step()


@pytest.mark.parametrize('writer', ['save', 'Saver', 'convert'])
def test_converted_weights_train_in_plain_pytorch(writer, tmp_path):
    """20 steps of PyTorch's Adam on the converted weights equal those of our training.

    They are computed in float64, so that rounding cannot hide a difference.
    """
    config, losses_of = small_ve(), losses.get_sde_loss_fn(sde_lib.VESDE(), train=False)
    model = mutils.create_model(config).double()
    state = dict(
        model=model,
        optimizer=losses.get_optimizer(config, model.parameters()),
        step=3,
        ema=ExponentialMovingAverage(model.parameters(), decay=0.999),
    )
    steps_of_adam(model, state['optimizer'], losses_of, range(3))
    # this memory layout must not be written to the file
    assert any(not value['exp_avg'].is_contiguous() for value in state['optimizer'].state.values())
    path = tmp_path / 'a.pth'
    if writer == 'Saver':
        with checkpoints.Saver() as saver:
            saver.save(path, state)
    else:
        checkpoints.save(path, state)
    if writer == 'convert':  # converted weights are float32
        convert.convert(path, tmp_path / 'b.pth', config)
        path = tmp_path / 'b.pth'
    content = torch.load(path, weights_only=True)
    tensors = [
        *content['model'].values(),
        *content['ema']['shadow_params'],
        *[value for values in content['optimizer']['state'].values() for value in values.values()],
    ]
    assert (
        all(value.is_contiguous() for value in tensors)
        and 'fused' not in content['optimizer']['param_groups'][0]
    )

    network = mutils.get_model(config.model.name)(config).double()
    optimizer = torch.optim.Adam(network.parameters(), lr=1.0)
    network.load_state_dict(torch_zip.bare(content['model']))
    optimizer.load_state_dict(content['optimizer'])
    assert all(
        value.is_contiguous() for value in network.parameters()
    ) and not optimizer.param_groups[0].get('fused')
    if writer == 'convert':
        checkpoints.restore(path, state)
    start = [value.clone() for value in network.parameters()]
    steps_of_adam(model, state['optimizer'], losses_of, range(3, 23))
    steps_of_adam(network, optimizer, losses_of, range(3, 23))
    torch.testing.assert_close(
        list(network.parameters()), list(model.parameters()), rtol=0, atol=1e-6
    )
    # the weights have changed
    assert max((own - before).abs().max() for own, before in zip(model.parameters(), start)) > 1e-3


def test_buffers_keep_their_dtype(tmp_path):
    """Noise levels are float64 in files of the 2021 release, and in files converted from them."""
    convert.convert(DATA / OFFICIAL[0], tmp_path / 'a.pth', small_ve())
    ours, published = (
        torch_zip.load(path)['model']['module.sigmas']
        for path in (tmp_path / 'a.pth', DATA / OFFICIAL[0])
    )
    assert ours.dtype == torch.float64 and torch.equal(ours, published)


@pytest.mark.parametrize(
    'name, averaged', [('net_ncsn_cifar', False), ('net_ncsnv2_64', False), ('net_ncsnv2_64', True)]
)
def test_files_of_ncsn(name, averaged, tmp_path):
    """Files of NCSN ([model, optimizer]) and NCSNv2 ([model, optimizer, epoch, step, average])."""
    reference, config = parity(name), reference_config(name)
    named = {
        key.removeprefix('sd/'): torch.tensor(value)
        for key, value in reference.items()
        if key.startswith('sd/')
    }
    x, labels = torch.tensor(reference['x']), torch.tensor(reference['labels'])
    trained = {key: value for key, value in named.items() if key != 'sigmas'}
    other = {key: torch.randn_like(value) for key, value in trained.items()} | {
        key: named[key] for key in named.keys() - trained.keys()
    }
    in_model = {f'module.{key}': value for key, value in (other if averaged else named).items()}
    states = [in_model, dict(state={}, param_groups=[])] + (
        [3, 4567, trained] if averaged else [3, 4567] if 'v2' in name else []
    )
    torch.save(states, tmp_path / 'checkpoint.pth')
    state = checkpoints.restore(
        tmp_path / 'checkpoint.pth', run_lib.create_state(config), optional=('optimizer',)
    )
    assert state['step'] == (4567 if 'v2' in name else 0)
    assert (relative_error(outputs(state['model'], x, labels), reference['out']) < 1e-5) != averaged
    assert (
        relative_error(
            outputs(load_averaged_model(config, tmp_path / 'checkpoint.pth'), x, labels),
            reference['out'],
        )
        < 1e-5
    )
