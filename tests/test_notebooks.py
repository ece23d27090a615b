"""Notebooks run from top to bottom and are stored with their outputs and pictures."""

import re

import nbformat
import pytest

from conftest import ROOT
from notebooks.execute import execute, notebooks, pictures


@pytest.fixture(scope='module')
def environment(tmp_path_factory):
    """Environment variables for all notebooks: a folder for checkpoints, and few training steps."""
    return dict(OMP_NUM_THREADS='1', RUNS=str(tmp_path_factory.mktemp('runs')), STEPS='300')


@pytest.mark.slow
@pytest.mark.parametrize('path', notebooks(), ids=lambda path: path.stem)
def test_notebook_runs(path, environment):
    """A notebook runs in time and without errors; every cell that names a picture draws one."""
    fresh = execute(path, environment, limit=600)
    assert {name: len(images) for name, images in pictures(fresh).items()} == dict.fromkeys(
        pictures(fresh), 1
    )
    for stored, cell in zip(nbformat.read(path, as_version=4).cells, fresh.cells, strict=True):
        assert stored.source == cell.source
        assert [kind(output) for output in stored.get('outputs', ())] == [
            kind(output) for output in cell.get('outputs', ())
        ], f'{path.name} was not saved as it runs: python notebooks/execute.py {path.stem}'


@pytest.mark.parametrize('path', notebooks(), ids=lambda path: path.stem)
def test_notebook_was_saved_as_it_ran(path):
    """All cells ran in order, pictures are those in assets, and no machine or time is stored."""
    stored = nbformat.read(path, as_version=4)
    nbformat.validate(stored)
    assert [cell.id for cell in stored.cells] == [
        f'{path.stem}-{number:02d}' for number in range(len(stored.cells))
    ]
    code = [cell for cell in stored.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), (
        f'run: python notebooks/execute.py {path.stem}'
    )
    assert (
        stored.metadata.keys() == {'kernelspec', 'language_info'}
        and stored.metadata.kernelspec.name == 'python3'
    )
    assert all(cell.metadata.keys() <= {'picture'} for cell in stored.cells)
    for name, images in pictures(stored).items():
        assert images == [(ROOT / 'assets' / f'{name}.png').read_bytes()], f'assets/{name}.png'


def test_pictures_of_the_documentation_exist():
    """Pictures of the documentation exist in assets, and notebooks draw some of them."""
    pages = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('**/*.md'))]
    shown = {
        name
        for page in pages
        for name in re.findall(r'\]\((?:\.\./)*assets/(\w+)\.png\)', page.read_text())
    }
    assert not [name for name in shown if not (ROOT / 'assets' / f'{name}.png').is_file()]
    drawn = {name for path in notebooks() for name in pictures(nbformat.read(path, as_version=4))}
    assert len(shown & drawn) > 2


def kind(output):
    """Return the kind of an output: text or a picture, printed or displayed."""
    return output.output_type, sorted(output.get('data', ()))
