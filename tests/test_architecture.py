"""Numbers, tables and names in docs/architecture.md are correct."""

import importlib
import json
import pkgutil
import re
import sys

import pytest

from configs import families
from conftest import ROOT

TEXT = (ROOT / 'docs' / 'architecture.md').read_text()
REPORT = json.loads((ROOT / 'docs' / 'architecture.json').read_text())


@pytest.fixture(scope='module')
def architecture():
    """Return benchmarks/architecture.py as a module."""
    with pytest.MonkeyPatch.context() as patch:
        # after the library, because some modules of both have the same names
        patch.setattr(sys, 'path', [*sys.path, str(ROOT / 'benchmarks')])
        yield importlib.import_module('architecture')


def quoted() -> list[str]:
    """Return all text in backticks, except blocks of code."""
    return re.findall(r'`([^`\n]+)`', re.sub(r'```.*?```', '', TEXT, flags=re.DOTALL))


# Numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'name', ['vp.ddpm.cifar10_unconditional', 've.ffhq_ncsnpp_continuous', 've.ncsn.cifar10']
)
def test_sizes_of_configs(architecture, name):
    row = next(row for row in REPORT['configs'] if row['config'] == name)
    assert architecture.size(name) == dict(parameters=row['parameters'], flops=row['flops'])


@pytest.mark.parametrize(
    'option',
    [
        'baseline',
        'fir=False',
        'num_res_blocks=1',
        'progressive_input=input_skip, progressive_combine=cat',
    ],
)
def test_sizes_of_options(architecture, option):
    row = next(row for row in REPORT['rows'] if row['option'] == option)
    assert architecture.size(row['config'], row['changes']) == dict(
        parameters=row['parameters'], flops=row['flops']
    )


def test_resolutions_of_the_levels(architecture):
    """The resolutions in the file are up to date, and those of the stem equal values by hand.

    The stem has nf 3x3 filters over 3 channels and 32 x 32 pixels, with two operations per product.
    """
    rows = architecture.levels(architecture.BASELINE)
    assert rows == REPORT['levels']
    stem = next(row for row in rows if row['part'] == 'stem')
    assert stem['flops'] == 2 * 128 * 3 * 9 * 32 * 32
    assert stem['parameters'] == 128 * (3 * 9 + 1)


def test_every_config_and_every_option_is_measured(architecture):
    assert [row['config'] for row in REPORT['configs']] == architecture.all_configs()
    named = [architecture.label(changes) for changes in architecture.OPTIONS]
    assert [row['option'] for row in REPORT['rows']] == [
        'baseline',
        'baseline, once more',
        *named,
        *(f'configs.{name}' for name in architecture.WHOLE),
    ]


def test_ratios_are_of_the_rows(architecture):
    first = REPORT['rows'][0]
    for row in REPORT['rows']:
        for measure, key in architecture.MEASURES.items():
            unit = row[f'baseline {key}'] if key in ('forward', 'step') else first[key]
            assert row['relative'][measure] == pytest.approx(row[key] / unit, rel=1e-12), (
                row['option'],
                measure,
            )


def test_tables_are_those_of_the_file(architecture):
    assert architecture.with_tables(TEXT, REPORT) == TEXT


def test_the_baseline_is_that_of_the_config(architecture):
    model = architecture.load(architecture.BASELINE, {'model.nf': architecture.NF}).model.to_dict()
    assert {key: json.loads(json.dumps(model[key])) for key in REPORT['baseline']} == REPORT[
        'baseline'
    ]


# Names --------------------------------------------------------------------------------------------


def test_pictures_and_files_exist():
    pictures = re.findall(r'!\[[^\]]+\]\(([^)]+)\)', TEXT)
    assert len(pictures) >= 4 and all((ROOT / 'docs' / picture).is_file() for picture in pictures)
    files = [name for name in quoted() if re.fullmatch(r'[\w/]+\.(py|md|json)', name)]
    assert files and [name for name in files if not (ROOT / name).is_file()] == []


def resolves(name: str) -> bool:
    """Return whether a dotted name is a config key, or exists in a module of the library."""
    section, _, key = name.partition('.')
    config = families.small(families.ncsnpp(families.ve(families.cifar10(), True)))
    if section in config and key.partition('=')[0] in config[section]:
        return True
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def test_code_that_is_named_exists():
    names = {
        name
        for text in quoted()
        if re.fullmatch(r'[A-Za-z_]\w*(\.\w+)+(=.*)?', text)
        and not re.search(r'\.(py|md|json)$', text)
        for name in [text.partition('=')[0]]
    }
    assert len(names) > 50
    assert sorted(name for name in names if not resolves(name)) == []


def test_options_that_are_named_exist(architecture):
    model = architecture.load(architecture.BASELINE).model
    for changes in architecture.OPTIONS:
        for key in changes:
            assert resolves(key), key
    for row in REPORT['rows']:
        for part in re.findall(r'(\w+)=', row['option'].replace('training.', '')):
            assert part in model or part == 'continuous', row['option']


def test_every_config_of_the_2021_release_is_in_the_table():
    table = TEXT.partition('<!-- table: configs -->')[2].partition('<!-- end -->')[0]
    files = [
        file.relative_to(ROOT / 'configs').with_suffix('')
        for file in ROOT.glob('configs/*/**/*.py')
        if file.stem != '__init__'
    ]
    assert sorted(re.findall(r'`([\w]+/[\w/]+)`', table)) == sorted(map(str, files))
