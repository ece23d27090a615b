"""Benchmarks run, and scripts, notebooks and documentation use names that exist."""

import ast
import functools
import importlib
import importlib.util
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from conftest import ROOT
from docs import drawing

FOLDER = ROOT / 'benchmarks'
SCRIPTS = sorted(
    path.stem
    for path in FOLDER.glob('*.py')
    if re.search(r'^def main\(', path.read_text(), re.MULTILINE)
)
ARGUMENTS = {
    'all': ['--only', 'likelihood'],  # the others are tested separately
    'faults': ['--work', 'evaluation'],
}  # test_faults_training.py tests the other kinds
OURS = {
    'docs',
    *(path.stem for path in (*ROOT.glob('*.py'), *FOLDER.glob('*.py'))),
    *(path.parent.name for path in ROOT.glob('*/__init__.py')),
    'oracles',
}


# Running ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted({*SCRIPTS} - {'gpu'}))
def test_quick_run(name, tmp_path):
    """A benchmark exits with status 0 and marks its tables and files as those of a quick run."""
    takes_json = '--json' in flags(name) and name != 'all'
    files = ['--json', tmp_path / 'rows.json'] if takes_json else []
    done = started(f'{name}.py', '--quick', *ARGUMENTS.get(name, ()), *files, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    tables = [part for part in re.split(r'\n\s*\n', done.stdout) if '\n(quick run: ' in part]
    assert tables, done.stdout
    for table in tables:
        head, *rows, note = table.strip().split('\n')
        assert len(re.split(r'\s{2,}', head)) > 1 and rows and 'do not quote' in note, table
    reports = [json.loads(path.read_text()) for path in tmp_path.rglob('*.json')]
    assert all(report['quick'] for report in reports) and len(reports) == (
        '--json' in flags(name) or name == 'all'
    )


def started(script: str, *arguments, folder):
    """Run a benchmark in a folder, on one core and without a GPU."""
    environment = os.environ | {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    command = [sys.executable, FOLDER / script, *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=600, env=environment
    )


@pytest.mark.slow
def test_gpu_dry_run(tmp_path):
    """gpu.py runs all its sections on a CPU, stops training with SIGTERM and resumes it."""
    done = started('gpu.py', '--dry-run', '--folder', tmp_path, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / 'gpu.json').read_text())
    names = 'kernels', 'agreement', 'networks', 'samplers', 'resampling', 'training'
    assert report['dry_run'] and [*report['sections']] == [*names]
    for section in report['sections'].values():
        assert section['tables'] and not section['error']
    (training,) = report['sections']['training']['tables'][0]['rows']
    assert training['status'] == 143 and training['resumed'] > training['steps']
    assert (tmp_path / 'grid.png').is_file()
    assert (tmp_path / 'gpu.md').read_text().startswith('# Dry run: ignore the measured numbers')


def test_all_runs_benchmarks_that_exist():
    names = re.search(r'^BENCHMARKS = (.*)$', (FOLDER / 'all.py').read_text(), re.MULTILINE)[1]
    assert set(ast.literal_eval(names)) < set(SCRIPTS)


@pytest.mark.slow
def test_figures_of_the_documentation(tmp_path, monkeypatch):
    """docs/architecture.py draws the same figures as those in docs/figures.

    Small differences are allowed, because other versions of Matplotlib may round differently.
    """
    kept = drawing.FIGURES
    monkeypatch.setattr(drawing, 'FIGURES', tmp_path)
    script('docs/architecture.py').main([])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        path.name for path in kept.iterdir()
    )
    for path in tmp_path.iterdir():
        drawn, stored = (
            np.asarray(Image.open(file).convert('RGB'), float) for file in (path, kept / path.name)
        )
        assert drawn.shape == stored.shape and abs(drawn - stored).mean() < 4, (
            f'run: python docs/architecture.py {path.stem}'
        )


@functools.cache
def script(path: str):
    """Return the file as a module."""
    spec = importlib.util.spec_from_file_location(
        path.removesuffix('.py').replace('/', '_'), ROOT / path
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Names --------------------------------------------------------------------------------------------


def sources() -> dict[str, str]:
    """Return the Python code of scripts, notebooks and documentation, by file."""
    found = {}
    folders = ('benchmarks', 'docs', 'assets', 'notebooks', 'validation')
    for path in sorted(path for folder in folders for path in (ROOT / folder).iterdir()):
        if path.suffix == '.py':
            found[path.relative_to(ROOT).as_posix()] = path.read_text()
        elif path.suffix == '.ipynb':
            cells = [
                cell['source']
                for cell in json.loads(path.read_text())['cells']
                if cell['cell_type'] == 'code'
            ]
            found[path.relative_to(ROOT).as_posix()] = '\n'.join(''.join(cell) for cell in cells)
    for path in documents():
        code = re.findall(r'```python\n(.*?)```', path.read_text(), re.DOTALL)
        if code:
            found[path.relative_to(ROOT).as_posix()] = '\n'.join(code)
    return found


def documents():
    return [
        ROOT / 'README.md',
        *sorted(ROOT.glob('docs/*.md')),
        *sorted(ROOT.glob('benchmarks/*.md')),
    ]


def faults_of(source: str, package: str = '') -> list[str]:
    """List names, attributes and arguments in `source` that our modules do not have, with lines."""
    nodes, faults = [*ast.walk(ast.parse(source))], Faults(package)
    for node in nodes:
        if isinstance(node, ast.Import):
            faults.check_import(node)
        elif isinstance(node, ast.ImportFrom):
            faults.check_import_from(node)
    for node in nodes:
        faults.forget_variable(node)
    for node in nodes:
        if isinstance(node, ast.Attribute):
            faults.check_attribute(node)
        elif isinstance(node, ast.Call):
            faults.check_call(node)
    return faults.found


class Faults:
    """The faults of a source in `package`, and the objects that its names refer to."""

    def __init__(self, package: str):
        self.package, self.known, self.found = package, {}, []

    def add(self, node, text: str):
        self.found.append(f'line {node.lineno}: {text}')

    def value(self, node):
        """Return the object of our modules that an expression refers to, or None."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id)
        parent = self.value(node.value) if isinstance(node, ast.Attribute) else None
        return None if parent is None else getattr(parent, node.attr, None)

    def imported(self, node, name: str):
        try:
            return pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            self.add(node, f'no {name}')
            return None

    def check_import(self, node: ast.Import):
        for alias in node.names:
            top = alias.name.partition('.')[0]
            if top in OURS:
                module = self.imported(node, alias.name)
                self.known[alias.asname or top] = module if alias.asname else sys.modules.get(top)

    def check_import_from(self, node: ast.ImportFrom):
        parent = '.'.join(filter(None, (self.package if node.level else '', node.module)))
        if parent.partition('.')[0] in OURS:
            for alias in node.names:
                value = self.imported(node, f'{parent}.{alias.name}')
                self.known[alias.asname or alias.name] = value

    def forget_variable(self, node):
        """Forget a name if a variable or an argument has the same name."""
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            self.known.pop(node.id, None)
        elif isinstance(node, ast.arg):
            self.known.pop(node.arg, None)

    def check_attribute(self, node: ast.Attribute):
        parent = self.value(node.value)
        if parent is not None and not hasattr(parent, node.attr):
            self.add(node, f'no {ast.unparse(node)}')

    def check_call(self, node: ast.Call):
        function = self.value(node.func)
        if callable(function):
            try:
                bind(function, node)
            except TypeError as error:
                self.add(node, f'{ast.unparse(node.func)}: {error}')


def bind(function, call: ast.Call):
    """Raise TypeError if arguments do not match the function; values of * and ** are unknown."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # some builtins have no signature
        return
    named = {keyword.arg: None for keyword in call.keywords if keyword.arg}
    if any(isinstance(argument, ast.Starred) for argument in call.args):
        signature.bind_partial(**named)
    elif len(named) < len(call.keywords):
        signature.bind_partial(*call.args, **named)
    else:
        signature.bind(*call.args, **named)


@pytest.mark.parametrize('where, source', sources().items(), ids=sources())
def test_names_exist(where, source, monkeypatch):
    monkeypatch.setattr(sys, 'path', [*sys.path, str(FOLDER)])
    assert faults_of(source, where.partition('/')[0]) == []


def test_names_that_do_not_exist_are_found():
    assert faults_of(
        'import run_lib, sampling as s\nrun_lib.get_sampling_sde(1)\ns.get_predictor("a")'
    ) == ['line 2: no run_lib.get_sampling_sde']
    assert faults_of(
        'from models.utils import create_modell\nimport models.utils\nmodels.utils.create_modell'
    ) == ['line 1: no models.utils.create_modell', 'line 3: no models.utils.create_modell']
    assert faults_of('from metrics import statistics\nstatistics(x, y, z, n=4)')[0].startswith(
        'line 2: statistics: '
    )
    assert (
        faults_of('import sampling\ndef f(sampling):\n    sampling.nothing')
        == faults_of('import numpy\nnumpy.nothing')
        == []
    )


def test_the_picture_of_the_library_contains_only_existing_names():
    texts = [
        node.value
        for node in ast.walk(ast.parse((ROOT / 'docs' / 'architecture.py').read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    names = [
        name
        for text in texts
        for name in text.replace('\n.', '.').split('\n')
        if re.fullmatch(rf'(SDE|{"|".join(OURS)})(\.(?!json)\w+)+', name)
    ]
    assert (
        len(names) > 10
        and [name for name in names if not exists(name.replace('SDE.', 'sde_lib.SDE.'))] == []
    )


def exists(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


# Commands -----------------------------------------------------------------------------------------


def flags(name: str) -> set[str]:
    """Return the options of a benchmark, including those from timing.py."""
    source = (FOLDER / f'{name}.py').read_text()
    if 'from timing import' in source:
        shared = {
            node.name: ast.unparse(node)
            for node in ast.walk(ast.parse((FOLDER / 'timing.py').read_text()))
            if isinstance(node, ast.FunctionDef)
        }
        source += ''.join(
            shared[function]
            for function in ('arguments', 'parse_args')
            if re.search(rf'\b{function}\(', source)
        )
    return {'--help', *re.findall(r"add_argument\(\s*'(-[\w-]+)'", source)}


@pytest.mark.parametrize(
    'path',
    [*documents(), *(FOLDER / f'{name}.py' for name in SCRIPTS)],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_quoted_commands_have_their_options(path):
    """Every quoted command `benchmarks/name.py --option` has an existing script and option."""
    text = (
        path.read_text() if path.suffix == '.md' else ast.get_docstring(ast.parse(path.read_text()))
    )
    commands = re.findall(
        r'(?:benchmarks/|`)(\w+)\.py((?:[ \n]+(?:--?[a-z][\w-]*|[\w./=,~-]+))*)', text
    )
    commands = [
        (name, options)
        for name, options in commands
        if (FOLDER / f'{name}.py').is_file() or f'benchmarks/{name}.py' in text
    ]
    for name, options in commands:
        wrong = set(re.findall(r'(?<!\S)(--?[a-z][\w-]*)', options)) - flags(name)
        assert name in SCRIPTS and not wrong, f'{name}.py has no {wrong}'
    assert commands or path not in (ROOT / 'README.md', FOLDER / 'README.md', FOLDER / 'all.py')
