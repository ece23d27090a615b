"""The cost of imports, measured in new processes."""

import importlib.util
import resource
import subprocess
import sys

import pytest

from conftest import ROOT


def in_fresh_process(code: str) -> str:
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


FORBIDDEN = (
    'tensorflow',
    'tensorflow_datasets',
    'tensorflow_gan',
    'jax',
    'torch.utils.cpp_extension',
)


@pytest.mark.skipif(importlib.util.find_spec('tensorflow') is None, reason='needs TensorFlow')
@pytest.mark.parametrize(
    'code',
    [
        'import torch; from runtime.tensorflow import tensorflow; tensorflow()',
        'import sampling, tensorflow',
    ],
)
def test_tensorflow_and_torch_compile_work_in_one_process(code):
    """TensorFlow may be imported before an optimizer is created.

    Creating the optimizer imports the compiler of PyTorch, which imports Triton.
    """
    code += (
        '; import torch; torch.optim.Adam([torch.zeros(1, requires_grad=True)])'
        '; import torch._dynamo; print("both")'
    )
    assert in_fresh_process(code) == 'both\n'


def test_imports_do_not_import_tensorflow_or_the_compiler():
    """Nothing imports TensorFlow until one of its data sets or metrics is used."""
    modules = [path.stem for path in ROOT.glob('*.py')] + [
        'models.ncsnpp',
        'models.ddpm',
        'models.ncsnv2',
        'op',
    ]
    found = in_fresh_process(
        f'import sys, {", ".join(modules)}; print([m for m in {FORBIDDEN} if m in sys.modules])'
    )
    assert found.strip() == '[]'


def test_imports_are_as_fast_as_torch():
    """After torch, imports take at most 0.3 s of CPU time and do not load PyTorch's compiler.

    The minimum of three measurements is tested, because the machine may be busy.
    """
    code = (
        'import sys, time, torch; start = time.process_time(); import sampling, likelihood, '
        'losses, controllable_generation; '
        'print(time.process_time() - start); assert "torch._dynamo" not in sys.modules'
    )
    assert min(float(in_fresh_process(code)) for _ in range(3)) <= 0.3


def test_a_wrong_key_is_reported_within_a_second_of_importing_torch(tmp_path):
    """The second is CPU time."""

    def seconds(*command, rc=0):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == rc, done.stderr
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, done.stderr

    wrong = (
        'main.py',
        '--config=configs/vp/digits_ddpmpp_continuous.py',
        f'--workdir={tmp_path}',
        '--mode=train',
        '--config.model.wrong=1',
    )
    taken, message = seconds(*wrong, rc=1)
    assert 'model.wrong' in message and taken < 1 + seconds('-c', 'import torch')[0]
