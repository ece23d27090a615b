"""Checkpoints are loaded as they were saved, or raise an error without side effects."""

import numpy as np
import pytest
import torch

import checkpoints
import losses
import run_lib
import sde_lib
import utils
from configs.vp import digits_ddpmpp_continuous
from runtime.errors import CheckpointError


def tiny(nf=8, **model):
    config = digits_ddpmpp_continuous.get_config()
    config.device = 'cpu'
    config.model.update(nf=nf, num_res_blocks=1, num_scales=30, **model)
    return config


@pytest.fixture
def state():
    """Return a state after some steps, in which every tensor differs from that of a new state."""
    torch.manual_seed(0)
    state = run_lib.create_state(tiny())
    for parameter in state['model'].parameters():
        parameter.grad = torch.randn_like(parameter)
    state['optimizer'].step()
    state['ema'].update(state['model'].parameters())
    return state | dict(step=7)


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def contents(state):
    return {
        key: value.state_dict() if hasattr(value, 'state_dict') else value
        for key, value in state.items()
    }


def test_round_trip(state, tmp_path):
    utils.save_checkpoint(tmp_path / 'deep' / 'a.pth', state)
    fresh = run_lib.create_state(tiny())
    assert not equal(contents(state), contents(fresh))
    restored = utils.restore_checkpoint(tmp_path / 'deep' / 'a.pth', fresh, 'cpu')
    assert restored is fresh and equal(contents(state), contents(fresh))
    # no partial file remains
    assert [path.name for path in (tmp_path / 'deep').iterdir()] == ['a.pth']


def test_prefix_of_a_data_parallel_is_optional(state, tmp_path):
    bare = {
        key.removeprefix('module.'): value for key, value in state['model'].state_dict().items()
    }
    torch.save(contents(state) | dict(model=bare), tmp_path / 'bare.pth')
    fresh = run_lib.create_state(tiny())
    checkpoints.restore(tmp_path / 'bare.pth', fresh)
    assert equal(contents(state), contents(fresh))


def test_numpy_scalars_of_files_of_the_2021_release_are_read(state, tmp_path):
    for group in state['optimizer'].param_groups:
        group['lr'] = np.float64(2e-4)
    torch.save(contents(state), tmp_path / 'published.pth')
    assert (
        checkpoints.load(tmp_path / 'published.pth')['optimizer']['param_groups'][0]['lr'] == 2e-4
    )


def test_code_in_a_file_is_not_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / 'sprung'), 'w')

    torch.save({'model': Trap()}, tmp_path / 'trap.pth')
    with pytest.raises(CheckpointError):
        checkpoints.load(tmp_path / 'trap.pth')
    assert not (tmp_path / 'sprung').exists()


@pytest.mark.parametrize('part', [0, 1, 8, 15])
def test_a_truncated_file_raises_an_error_and_changes_nothing(state, tmp_path, part):
    checkpoints.save(tmp_path / 'a.pth', state)
    content = (tmp_path / 'a.pth').read_bytes()
    (tmp_path / 'a.pth').write_bytes(content[: len(content) * part // 16])
    fresh = run_lib.create_state(tiny())
    before = {key: value.clone() for key, value in fresh['model'].state_dict().items()}
    with pytest.raises(CheckpointError, match='a.pth') as caught:
        checkpoints.restore(tmp_path / 'a.pth', fresh)
    assert '\n' not in str(caught.value) and equal(before, fresh['model'].state_dict())


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match='checkpoint .*none.pth does not exist'):
        checkpoints.load(tmp_path / 'none.pth')
    with pytest.raises(CheckpointError, match='train first'):
        checkpoints.latest(tmp_path)


@pytest.mark.parametrize(
    'change, message',
    [
        (
            lambda content: content['model'].pop('module.all_modules.0.weight'),
            'lacks module.all_modules.0.weight',
        ),
        (
            lambda content: content['model'].update(extra=torch.zeros(1)),
            'unexpected keys module.extra',
        ),
        (
            lambda content: content['model'].update({'module.sigmas': torch.zeros(3)}),
            r'module.sigmas: '
            r'\(3,\) in the '
            r'file, \(30,\)',
        ),
        (lambda content: content.pop('ema'), 'lacks ema'),
        (lambda content: content['ema']['shadow_params'].pop(), 'moving average'),
        (lambda content: content['optimizer']['param_groups'][0]['params'].pop(), 'optimizer'),
    ],
)
def test_mismatches_are_named_and_nothing_changes(state, tmp_path, change, message):
    content = contents(state)
    content['model'] = dict(content['model'])
    content['ema']['shadow_params'] = list(content['ema']['shadow_params'])
    change(content)
    torch.save(content, tmp_path / 'a.pth')
    fresh = run_lib.create_state(tiny())
    before = {key: value.clone() for key, value in fresh['model'].state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        checkpoints.restore(tmp_path / 'a.pth', fresh)
    assert equal(before, fresh['model'].state_dict())


def test_a_failed_write_does_not_change_the_old_file(state, tmp_path, monkeypatch):
    checkpoints.save(tmp_path / 'a.pth', state)
    before = (tmp_path / 'a.pth').read_bytes()

    def broken(content, file):
        file.write(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(torch, 'save', broken)
    with pytest.raises(
        CheckpointError,
        match='a.pth cannot be written: disk full. Earlier checkpoints are unchanged',
    ):
        checkpoints.save(tmp_path / 'a.pth', state)
    assert (tmp_path / 'a.pth').read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize('layouts', [(False, True), (True, False)])
def test_the_layout_of_a_file_does_not_matter(tmp_path, layouts):
    """Optimizer and EMA get the memory layout of the network, for any layout of the file.

    The next steps equal those of an uninterrupted training.
    """

    def fresh(channels_last):
        config = tiny()
        config.training.channels_last = channels_last
        config.optim.warmup = 0
        state = run_lib.create_state(config)
        return state, losses.get_step_fn(
            sde_lib.get_sde(config), True, losses.optimization_manager(config)
        )

    def steps(state, step_fn, numbers):
        for i in numbers:
            torch.manual_seed(i)
            step_fn(state, torch.rand(4, 1, 8, 8))

    torch.manual_seed(0)
    state, step_fn = fresh(layouts[0])
    steps(state, step_fn, range(3))
    checkpoints.save(tmp_path / 'a.pth', state)
    steps(state, step_fn, range(3, 6))
    other, step_fn = fresh(layouts[1])
    checkpoints.restore(tmp_path / 'a.pth', other)
    for parameter, average in zip(
        [p for p in other['model'].parameters() if p.requires_grad], other['ema'].shadow_params
    ):
        moments = other['optimizer'].state[parameter]
        assert (
            parameter.stride()
            == moments['exp_avg'].stride()
            == moments['exp_avg_sq'].stride()
            == average.stride()
        )
    steps(other, step_fn, range(3, 6))
    for a, b in zip(state['ema'].shadow_params, other['ema'].shadow_params):
        # rounding, amplified by Adam, which divides by small numbers
        torch.testing.assert_close(b, a, rtol=1e-3, atol=2e-5)


def test_latest_is_the_largest_number(tmp_path):
    for k in (2, 10, 9):
        checkpoints.save(checkpoints.snapshot_path(tmp_path, k), {'model': {}})
    assert checkpoints.latest(tmp_path).name == 'checkpoint_10.pth'
