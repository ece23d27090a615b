"""README and docs: Python code runs, commands can be parsed, links have targets."""

import importlib
import re
import shlex
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from commands import command_line
from conftest import ROOT

PAGES = [
    ROOT / 'README.md',
    *sorted((ROOT / 'docs').glob('*.md')),
    *sorted((ROOT / 'docs').glob('models/*.md')),
]
IDS = [path.relative_to(ROOT).as_posix() for path in PAGES]
RUN_ELSEWHERE = {'docs/extending.md'}  # tests/test_extending.py


def blocks(path, language: str) -> list[str]:
    return re.findall(rf'```{language}\n(.*?)```', path.read_text(), re.DOTALL)


@pytest.mark.parametrize(
    'path',
    [
        path
        for path, name in zip(PAGES, IDS)
        if blocks(path, 'python') and name not in RUN_ELSEWHERE
    ],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_python_runs(path, tmp_path, monkeypatch):
    """The code of a page runs from top to bottom in an empty folder."""
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks(path, 'python'):
        exec(compile(block, path.name, 'exec'), names)


def commands(path) -> list[list[str]]:
    """Return the words of every command `python main.py ...` of a page."""
    lines = '\n'.join(blocks(path, 'sh')).replace('\\\n', ' ').splitlines()
    found = [shlex.split(line, comments=True) for line in lines if 'main.py' in line]
    return [words[words.index('main.py') :] for words in found]


@pytest.mark.parametrize(
    'path',
    [path for path in PAGES if commands(path)],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_commands_are_understood(path, tmp_path):
    """The parser accepts every command; files of the user are replaced by existing ones."""
    importlib.import_module('main')
    digits = f'--config={ROOT / "configs/vp/digits_ddpmpp_continuous.py"}'
    for words in commands(path):
        for i, word in enumerate(words):
            if word.startswith('--') and word[2:] in command_line.INPUTS:
                words[i + 1] = str(tmp_path)
            if word == 'mine.py':
                words[i] = str(ROOT / 'examples' / 'own_process.py')
            if word.startswith('configs/stored.py:'):
                words[i] = f'configs/stored.py:{ROOT}/assets/pretrained/mnist-vp.json'
        if '--config' not in words:
            words.insert(1, digits)
        words = [f'{ROOT}/{word}' if word.startswith('configs/') else word for word in words]
        with flagsaver.flagsaver():
            assert command_line.parse_flags(words) == ['main.py'], words
            assert flags.FLAGS.mode and flags.FLAGS.config


@pytest.mark.parametrize('path', PAGES, ids=IDS)
def test_links_lead_somewhere(path):
    for link in re.findall(r'\]\(([^)#]+)', path.read_text()):
        assert link.startswith('http') or (path.parent / link).exists(), link


def test_every_page_is_listed():
    listed = set(re.findall(r'\]\(([\w/.-]+\.md)\)', (ROOT / 'docs' / 'README.md').read_text()))
    assert {path.relative_to(ROOT / 'docs').as_posix() for path in PAGES[1:]} - {
        'README.md'
    } <= listed


def test_the_readme_is_short():
    assert (ROOT / 'README.md').stat().st_size <= 8000


# Phrases that are hard to understand; the second line is forbidden in documentation only.
PHRASES = (
    'is told|tells|anew|goes on|so many|behind the|such as do not|is refused|damaged|known are'
)
IN_PAGES = f'{PHRASES}|of its own|whatever'


@pytest.mark.parametrize(
    'path',
    PAGES,
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_plain_words_in_documentation(path):
    assert not re.findall(rf'\b(?:{IN_PAGES})\b', path.read_text())


def test_plain_words_in_code():
    folders = [path.parent for path in ROOT.glob('*/__init__.py')]
    files = [*ROOT.glob('*.py'), *(path for folder in folders for path in folder.rglob('*.py'))]
    found = {
        path.relative_to(ROOT).as_posix(): words
        for path in files
        if (words := re.findall(rf'\b(?:{PHRASES})\b', path.read_text()))
    }
    assert found == {}


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    """Every link has a target, and every docstring of the API reference can be parsed."""
    pytest.importorskip('mkdocs')
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'excluded from the built site' not in done.stderr  # not a warning in MkDocs
    assert (tmp_path / 'api' / 'sampling' / 'index.html').is_file()
