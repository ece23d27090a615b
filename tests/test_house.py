"""The structure of the code: which parts import which, and the sizes of files and functions."""

import ast
import graphlib
import re

import pytest

from conftest import ROOT

ROOMS = sorted(path.parent.name for path in ROOT.glob('*/__init__.py'))
TABLE = (
    (ROOT / 'docs' / 'architecture.md')
    .read_text()
    .partition('<!-- table: layers -->')[2]
    .partition('<!-- end -->')[0]
)
LAYERS = {
    name: int(layer)
    for layer, name in re.findall(r'^\| (\d+) \| `(\w+)/?` \|', TABLE, re.MULTILINE)
}


def imported_parts(path) -> set[str]:
    """Return the parts of this library, such as 'losses', that a file or its functions import."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.partition('.')[0])
    return {
        name
        for name in names
        if (ROOT / f'{name}.py').is_file() or (ROOT / name / '__init__.py').is_file()
    }


FILES = {path: path.stem for path in ROOT.glob('*.py')} | {
    path: part for part in ROOMS for path in ROOT.glob(f'{part}/**/*.py')
}


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downward(path):
    part = FILES[path]
    assert part in LAYERS, f'give {part} a layer in docs/architecture.md'
    for imported in imported_parts(path):
        assert imported in LAYERS, f'give {imported} a layer in docs/architecture.md'
        assert imported == part or LAYERS[imported] < LAYERS[part], (
            f'{part} (layer {LAYERS[part]}) imports {imported} (layer {LAYERS[imported]})'
        )
        assert not (part == 'models' and imported == 'sde_lib'), (
            'networks get their SDE as an object'
        )


def test_no_two_parts_import_each_other():
    graph = {}
    for path, part in FILES.items():
        graph.setdefault(part, set()).update(imported_parts(path) - {part})
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


# Sizes --------------------------------------------------------------------------------------------

SOURCES = [path for path in ROOT.rglob('*.py') if not {'.venv', 'runs'} & {*path.parts}]


def test_at_most_twelve_files_at_the_top():
    assert len([*ROOT.glob('*.py')]) <= 12


def test_files_have_at_most_400_lines():
    long = {path: len(path.read_text().splitlines()) for path in SOURCES}
    assert {str(path.relative_to(ROOT)): n for path, n in long.items() if n > 400} == {}


def test_functions_have_at_most_60_lines():
    """Ruff's rules C901 and PLR0913 limit their complexity and their number of parameters."""
    long = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60:
                long[f'{path.relative_to(ROOT)}:{node.lineno}'] = node.name
    assert not long
