"""TensorFlow together with PyTorch: temporary stub modules are removed again."""

import importlib.util
import subprocess
import sys
import types

import pytest

from conftest import ROOT
from runtime.tensorflow import stub

STAND_INS = ('tensorboard.compat.notf', 'tensorflow_gan.python.estimator', 'pkg_resources')


def test_a_stub_is_removed_after_its_block():
    with pytest.raises(ZeroDivisionError), stub('no_such_module', answer=42):
        import no_such_module

        assert no_such_module.answer == 42
        _ = 1 / 0
    assert 'no_such_module' not in sys.modules


def test_a_module_imported_before_is_kept(monkeypatch):
    before = types.ModuleType('present')
    monkeypatch.setitem(sys.modules, 'present', before)
    with stub('present', answer=42):
        assert sys.modules['present'] is before and not hasattr(before, 'answer')
    assert sys.modules['present'] is before


def test_a_module_that_replaces_a_stub_is_kept(monkeypatch):
    monkeypatch.setitem(sys.modules, 'replaced', None)
    monkeypatch.delitem(sys.modules, 'replaced')
    after = types.ModuleType('replaced')
    with stub('replaced'):
        sys.modules['replaced'] = after
    assert sys.modules['replaced'] is after


@pytest.mark.parametrize(
    'code, package',
    [
        (
            'from commands.training_log import tensorboard\n'
            'with tensorboard(workdir, 0) as writer:\n'
            '    assert found() == before\n'
            '    writer.add_scalar("training_loss", 1.0, 0)\n'
            'from reports import plots\n'
            'assert len(plots.curves(workdir)) == 1',
            'tensorboard',
        ),
        ('import evaluation\nevaluation._tfgan_module()', 'tensorflow_gan'),
    ],
)
def test_imports_leave_no_stubs(tmp_path, code, package):
    """Importing TensorBoard or TF-GAN leaves no stubs, in a process that has imported neither."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f'needs {package}')
    code = f"""
import importlib.util, pathlib, sys
def found():
    return [(name, sys.modules.get(name)) for name in {STAND_INS}]
workdir, before = pathlib.Path(sys.argv[1]), found()
{code}
assert {package!r} in sys.modules and found() == before, found()
if 'tensorflow' in sys.modules:
    assert not hasattr(sys.modules['tensorflow'], 'estimator')
"""
    done = subprocess.run(
        [sys.executable, '-c', code, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
