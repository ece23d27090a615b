"""The command line: values and types, config files, and one line for each error."""

import importlib
import pathlib
import types

import pytest
from absl import flags
from absl.testing import flagsaver

from commands import command_line, preflight
from configs import defaults, families, rules
from runtime import memory
from runtime.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
DIGITS = f'--config={ROOT / "configs/vp/digits_ddpmpp_continuous.py"}'


def parsed(*arguments):
    """Return the flags of the main program for these arguments."""
    importlib.import_module('main')
    with flagsaver.flagsaver():
        command_line.parse_flags(['main.py', *arguments])
        return {
            name: flags.FLAGS[name].value
            for name in (*command_line.PATHS, 'config', 'mode', 'measured')
            if name in flags.FLAGS
        }


def faults_of(*arguments) -> list[str]:
    with pytest.raises(SystemExit) as exit:
        parsed(*arguments)
    return [line.removeprefix('error: ') for line in str(exit.value).splitlines()]


@pytest.mark.parametrize(
    'argument, value',
    [
        ('--config.model.ch_mult=(1,2,2)', (1, 2, 2)),
        ('--config.model.ch_mult=3', (3,)),
        ('--config.model.sigma_max=7', 7.0),
        ('--config.optim.lr=1e-4', 1e-4),
        ('--config.model.nf=0x10', 16),
        ('--config.eval.enable_loss=0', False),
        ('--noconfig.eval.enable_bpd', False),
        ('--config.sampling.round', True),
        ('--config.data.category=3', '3'),
        ('--config.optim.grad_clip -1', -1.0),
        ('-config.model.fir_kernel=(1,2,1)', [1, 2, 1]),
        ('--config.seed 5', 5),
    ],
)
def test_values_of_the_command_line_have_the_type_of_their_key(argument, value):
    config = parsed(DIGITS, *argument.split(), '--mode=data')['config']
    section, _, name = argument.split()[0].partition('config.')[2].partition('=')[0].rpartition('.')
    found = config[section][name] if section else config[name]
    assert found == value and type(found) is type(value) and config.is_locked


def test_overrides_of_a_2021_config_add_keys_and_change_int_to_float(tmp_path):
    (tmp_path / 'old.py').write_text(
        'import ml_collections\ndef get_config():\n    return '
        'ml_collections.ConfigDict(dict('
        'model=dict(sigma_max=90), sampling=dict()))\n'
    )
    config = parsed(
        f'--config={tmp_path}/old.py',
        '--config.model.sigma_max=7.5',
        '--config.sampling.steps=20',
        '--mode=data',
    )['config']
    assert config.model.sigma_max == 7.5 and config.sampling.steps == 20


def test_all_faults_of_a_command_line_are_reported_at_once():
    wrong_mode, *others = faults_of(
        DIGITS,
        '--mode=tain',
        '--num_samples=0',
        '--ouput=x',
        '--config.model.foo=1',
        '--config.training.batch_sise=3',
        '--config.model.nf=abc',
        '--config.model=3',
        '--checkpoint=/nowhere/x',
        '--input=/nowhere/y',
    )
    assert wrong_mode.startswith('--mode=tain: expected one of train, eval, sample, ')
    assert others == [
        '--num_samples=0: expected a positive integer',
        '--ouput is not a known flag: did you mean --output?',
        '--checkpoint=/nowhere/x: not found',
        '--input=/nowhere/y: not found',
        'config.model.foo is not a known key: did you mean config.model.nf?',
        'config.training.batch_sise is not a known key: did you mean config.training.batch_size?',
        'config.model is a section: expected a key in it, such as '
        '--config.model.attention_type=...',
        "config.model.nf must be an integer from 1 to 16384, got 'abc'",
    ]
    assert faults_of() == ['--config is missing', '--mode is missing']
    assert faults_of('--config=/nowhere.py', '--mode=data') == ['--config=/nowhere.py: not found']


def test_wrong_types_in_a_config_file_are_reported_at_once(tmp_path):
    (tmp_path / 'mine.py').write_text("""
from configs.vp import digits_ddpmpp_continuous

def get_config():
    config = digits_ddpmpp_continuous.get_config()
    config.device = 'cpu'
    config.model.ch_mult = "1,2"
    config.training.batch_size = "32"
    config.model.nf = 32.0
    config.optim.lr = 1
    return config
""")
    config = parsed(f'--config={tmp_path}/mine.py', '--mode=train', f'--workdir={tmp_path}')[
        'config'
    ]
    with pytest.raises(UserError) as caught:
        preflight.check(config, tmp_path, 'train')
    assert str(caught.value).splitlines() == [
        "config.training.batch_size must be an integer >= 1, got '32'",
        'config.model.ch_mult must be a non-empty tuple, each value an integer from 1 to 1024, got '
        "'1,2'",
        'config.model.nf must be an integer from 1 to 16384, got 32.0',
    ]
    with pytest.raises(TypeError), config.unlocked():  # checked again after the file is read
        config.model.nf = '32'


@pytest.mark.parametrize(
    'content, sentence',
    [
        ('def get_config(:', ', line 1: '),
        ('import nowhere', "No module named 'nowhere'"),
        ('x = 1', 'expected a function get_config in this file'),
        (
            'def get_config():\n    return {}',
            'get_config must return an ml_collections.ConfigDict, got dict',
        ),
        (
            'def get_config(which):\n    return which',
            "get_config() missing 1 required positional argument: 'which'",
        ),
        (
            'from configs.families import digits\ndef get_config():\n    config = digits()\n    '
            'config.modle.nf = 3\n    return config',
            'mine.py, line 4: ',
        ),
    ],
)
def test_a_failing_config_file_raises_a_one_line_error(tmp_path, content, sentence):
    (tmp_path / 'mine.py').write_text(content)
    (fault,) = faults_of(f'--config={tmp_path}/mine.py', '--mode=data')
    assert fault.startswith(f'--config={tmp_path}/mine.py') and sentence in fault


def test_the_home_folder_is_expanded_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'mine.py').write_text(
        'from configs.families import digits\ndef get_config():\n    config = digits()\n    '
        'config.data.path = "~/p"\n    return config'
    )
    for name in ('f', 'g'):
        (tmp_path / name).touch()
    keys = [
        f'{section}.{name}'
        for section, known in rules.RULES.items()
        for name, rule in known.items()
        if rule is rules.PATH
    ]
    assert {
        'data.path',
        'data.tfds_dir',
        'data.tfrecords_path',
        'eval.inception_path',
        'eval.stats_dir',
    } <= {*keys}
    keys.remove('data.path')
    given = parsed(
        '--config=~/mine.py',
        '--workdir=~/w',
        '--mode=sample',
        '--checkpoint=$HOME/f',
        '--input=${HOME}/g',
        '--output=~/o',
        '--mask=~/m',
        '--classifier=~/f',
        '--eval_folder=$HOME/e',
        *(f'--config.{key}=~/k' for key in keys),
    )
    expected = dict(
        workdir='w',
        checkpoint='f',
        input='g',
        output='o',
        mask='m',
        classifier='f',
        eval_folder='e',
    )
    assert {name: given[name] for name in expected} == {
        name: f'{tmp_path}/{file}' for name, file in expected.items()
    }
    assert given['config'].data.path == f'{tmp_path}/p'
    assert {
        given['config'][section][name] for key in keys for section, name in [key.split('.')]
    } == {f'{tmp_path}/k'}


def test_wrong_types_are_accepted_only_while_a_file_is_read():
    with defaults.any_type():
        config = families.digits()
        config.model.nf, config.seed = 'wide', 1.5
    assert config.model.nf == 'wide' and config.seed == 1.5
    for known in (config, families.digits()):
        with pytest.raises(TypeError):
            known.training.batch_size = 'large'


def test_a_wrong_type_in_a_config_without_defaults_is_a_one_line_error(tmp_path):
    (tmp_path / 'old.py').write_text(
        'import ml_collections\ndef get_config():\n    config = ml_collections.ConfigDict(dict('
        'model=dict(nf=8)))\n    config.model.nf = "8"\n    return config\n'
    )
    (fault,) = faults_of(f'--config={tmp_path}/old.py', '--mode=data')
    assert fault.startswith(f'--config={tmp_path}/old.py, line 4: ') and 'nf' in fault


@pytest.mark.parametrize(
    'mode, device, kept',
    [('train', 'cpu', True), ('train', 'cuda:0', False), ('data', 'cpu', False)],
)
def test_the_main_program_configures_the_memory_allocator_for_the_cpu(
    monkeypatch, mode, device, kept
):
    """The main program configures the memory allocator, and only for computations on a CPU.

    This affects the whole process, so the library itself must not do it.
    """
    calls = []

    class Allocator:
        def mallopt(self, parameter, value):
            calls.append((parameter, value))

    main = importlib.import_module('main')
    monkeypatch.setattr(memory.sys, 'platform', 'linux')
    monkeypatch.setattr(memory.ctypes, 'CDLL', lambda name: Allocator())
    monkeypatch.setattr(main, 'log_to', lambda path, in_full: None)
    config = families.digits()
    config.device = device
    given = types.SimpleNamespace(config=config, workdir='', mode=mode)
    monkeypatch.setattr(main, 'FLAGS', given)
    main._run(main.MODES[mode]._replace(run=lambda config, workdir: None), 1.0)
    assert bool(calls) == kept
