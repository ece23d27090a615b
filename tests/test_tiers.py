"""Tiers of tests: unmarked slow tests, tests that need TensorFlow and stale lines are found."""

import os
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT

pytestmark = pytest.mark.slow

TESTS = """
import time
import pytest

def work(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

@pytest.fixture(scope='module')
def shared():
    work(0.3)

@pytest.fixture
def own():
    work(0.3)

def test_first(shared): pass
def test_second(shared): pass
def test_own(own): pass
def test_quick(): pass
@pytest.mark.parametrize('n', [0, 1])
def test_cases(n): work(0.3 * n)
@pytest.mark.slow
def test_marked(): work(0.3)
def test_import(): import tensorflow
"""


@pytest.fixture
def run(tmp_path):
    """Return a function that runs Python in a separate project and returns status and output."""
    folder = tmp_path / 'tests'
    folder.mkdir()
    shutil.copy(ROOT / 'tests' / 'tiers.py', folder)
    (folder / 'conftest.py').write_text("pytest_plugins = ['tiers']")
    (folder / 'test_a.py').write_text(TESTS)
    (folder / 'tensorflow.py').write_text('')
    (tmp_path / 'pytest.ini').write_text('[pytest]\nmarkers =\n    slow\n    tensorflow\n')

    def call(*arguments):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=os.environ | {'PYTHONPATH': str(folder)},
        )
        return done.returncode, done.stdout + done.stderr

    return call


def test_the_fast_tier_finds_unmarked_tests(run, tmp_path):
    """One run reports both users of the slow fixture, the slow case, and the import."""
    fast = '-m', 'pytest', '-q', '-rf', '-m', 'not slow and not tensorflow', '--limit=0.2'
    status, said = run(*fast)
    failed = {line.split(' ')[1] for line in said.splitlines() if line.startswith('FAILED')}
    names = 'test_first', 'test_second', 'test_own', 'test_cases[1]', 'test_import'
    assert status == 1 and failed == {f'tests/test_a.py::{name}' for name in names}, said
    assert 'limit 0.2 s: make it faster' in said

    lines = [f'slow tests/test_a.py::{name}\n' for name in names[:-1]]
    lines.append('tensorflow tests/test_a.py::test_import\n')
    (tmp_path / 'tests' / 'tiers.txt').write_text(''.join(lines))
    status, said = run(*fast)
    assert status == 0 and '2 passed, 6 deselected' in said, said


def test_durations_writes_the_tiers(run, tmp_path):
    status, said = run('tests/tiers.py', '--write', '--above=0.2', '-q')
    assert status == 0 and '5 of 8 tests take more than 0.2 s' in said, said
    assert (tmp_path / 'tests' / 'tiers.txt').read_text().split('\n') == [
        'slow tests/test_a.py::test_cases[1]',
        'slow tests/test_a.py::test_first',
        'slow tests/test_a.py::test_own',
        'slow tests/test_a.py::test_second',
        'tensorflow tests/test_a.py::test_import',
        '',
    ]


def test_a_line_without_a_test_is_an_error(run, tmp_path):
    (tmp_path / 'tests' / 'tiers.txt').write_text('slow tests/test_a.py::test_gone\n')
    status, said = run('-m', 'pytest', '-q', '--limit=9')
    assert (
        status == 4
        and "contains tests that do not exist, run make durations: ['tests/test_a.py::test_gone']"
        in said
    )
