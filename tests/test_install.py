"""Installed packages and modules, and a clear error for other packages with one of our names."""

import re
import subprocess
import sys

import pytest

from conftest import ROOT

if sys.version_info < (3, 11):
    pytest.skip(
        'reads pyproject.toml with tomllib, which Python 3.10 lacks', allow_module_level=True
    )
import tomllib

PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())


def test_requirements_are_all_dependencies():
    extras = PROJECT['project']['optional-dependencies']
    named = [
        *PROJECT['project']['dependencies'],
        *(name for names in extras.values() for name in names),
    ]
    assert sorted(named, key=str.lower) == (ROOT / 'requirements.txt').read_text().split()


def test_every_module_is_installed():
    settings = PROJECT['tool']['setuptools']
    assert settings['py-modules'] == sorted(path.stem for path in ROOT.glob('*.py'))
    packages = {path.parent.name for path in ROOT.glob('*/__init__.py')}
    assert {name.rstrip('*') for name in settings['packages']['find']['include']} == packages - {
        'tests'
    }


@pytest.mark.parametrize('name', ['datasets', 'models', 'configs'])
def test_another_package_with_a_name_of_the_library(name, tmp_path):
    """If Python finds such a package (like Hugging Face's `datasets`), our import reports it."""
    (tmp_path / f'{name}.py').write_text('')
    code = f'import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import score_model'
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 1 and re.search(
        rf'ImportError: expected the package {name} of this library, got '
        rf'{re.escape(str(tmp_path))}/{name}\.py: put \S+ first on sys\.path',
        result.stderr,
    ), result.stderr


def test_folders_with_names_of_the_library_in_a_users_project(tmp_path):
    for name in ('data', 'checkpoints', 'reports', 'metrics'):
        (tmp_path / name).mkdir()
    code = f'import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import score_model'
    subprocess.run([sys.executable, '-c', code], check=True, cwd=tmp_path)
