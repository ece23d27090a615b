"""A pytest plugin that marks tests which are slow or need TensorFlow.

    make test-fast                       # pytest -m "not slow and not tensorflow" --limit 5
    make durations                       # measure all tests and write tests/tiers.txt
    python tests/tiers.py --above 2 tests/test_ops.py    # list the tests above two seconds

A test belongs to a tier if it has the marker `pytest.mark.slow` or `pytest.mark.tensorflow`, or a
line in tests/tiers.txt. With `--limit`, a test that takes longer fails unless it is marked `slow`.
With `-m "... not tensorflow"`, TensorFlow cannot be imported, so a test that needs it fails.

The time of a test is CPU time, including child processes, because other load on the machine changes
it little. The time of a shared fixture counts in full for each test that uses it, because each of
these tests would need that time if it ran alone.
"""

import argparse
import collections
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import pytest

FOLDER = pathlib.Path(__file__).resolve().parent
TIERS = FOLDER / 'tiers.txt'
START = pytest.StashKey[float]()  # start of the current test, from `clock`
SHARED = pytest.StashKey[dict]()  # seconds of the shared fixtures


def clock() -> float:
    """Return the CPU time of this process and of its finished children, in seconds."""
    return sum(os.times()[:4])


# Hooks --------------------------------------------------------------------------------------------


def pytest_addoption(parser):
    parser.addoption('--limit', type=float, help='fail tests that take more seconds than this')
    parser.addoption(
        '--record', metavar='PATH', help='write time and outcome of each test to this file'
    )


def pytest_configure(config):
    config.stash[SHARED] = collections.defaultdict(float)
    config.stash[START] = clock()
    if 'not tensorflow' in config.option.markexpr:
        sys.modules['tensorflow'] = None
    if config.option.record and not hasattr(config, 'workerinput'):
        config.pluginmanager.register(Recorder(pathlib.Path(config.option.record)))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Mark the tests of tests/tiers.txt; with `--limit`, a line without a test is an error."""
    tiers = read_tiers()
    for item in items:
        for name in (item.nodeid, function_of(item.nodeid)):
            for tier in tiers.get(name, ()):
                item.add_marker(tier)
    if config.option.limit and not any('::' in argument for argument in config.args):
        functions = {function_of(item.nodeid) for item in items}
        files = {file_of(name) for name in functions}
        gone = [
            name for name in tiers if file_of(name) in files and function_of(name) not in functions
        ]
        if gone:
            raise pytest.UsageError(
                f'{TIERS.name} contains tests that do not exist, run make durations: {gone}'
            )


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    """Time shared fixtures separately from the first test that uses them."""
    start, stash = clock(), request.config.stash
    try:
        return (yield)
    finally:
        if fixturedef.scope != 'function':
            stash[SHARED][fixturedef] = clock() - start
            stash[START] += clock() - start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Start the clock of a test."""
    item.config.stash[START] = clock()
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    """Add the time of a test to its report; fail the test if the time is over the limit."""
    report = yield
    if report.when == 'call':
        own = clock() - item.config.stash[START]
        seconds = own + sum(shared_costs(item))
        marked = item.get_closest_marker('slow') is not None
        report.user_properties += [('own', own), ('seconds', seconds), ('marked', marked)]
        limit = item.config.option.limit
        if limit and seconds > limit and report.passed and not marked:
            report.outcome = 'failed'
            report.longrepr = (
                f'took {seconds:.1f} s, limit {limit:g} s: make it faster, mark it with '
                'pytest.mark.slow, or run make durations'
            )
    return report


def shared_costs(item) -> list[float]:
    """Return the times of the shared fixtures that a test uses."""
    costs = item.config.stash[SHARED]
    used = item._fixtureinfo.name2fixturedefs.values()
    return [costs[fixturedef] for definitions in used for fixturedef in definitions]


class Recorder:
    """Writes a line of JSON for each test: id, seconds, whether it is marked slow, outcome.

    The seconds `own` do not include shared fixtures.
    """

    def __init__(self, path: pathlib.Path):
        self.file = path.open('w', buffering=1)  # line buffering, in case the run is stopped

    def pytest_runtest_logreport(self, report):
        if report.when == 'call' or report.outcome != 'passed':
            row = dict(id=report.nodeid, outcome=report.outcome)
            row |= dict(own=0.0, seconds=0.0, marked=False)
            row |= report.user_properties
            self.file.write(json.dumps(row) + '\n')

    def pytest_unconfigure(self):
        self.file.close()


# tests/tiers.txt ----------------------------------------------------------------------------------


def function_of(name: str) -> str:
    """Return the id of a test without its parameters."""
    return name.partition('[')[0]


def file_of(name: str) -> str:
    return name.partition('::')[0]


def read_tiers() -> dict[str, list[str]]:
    """Return the tiers of tests and test functions, by id.

    Each line of the file has a tier and an id, such as `slow tests/test_a.py::test_b`.
    """
    found = collections.defaultdict(list)
    for line in TIERS.read_text().splitlines() if TIERS.is_file() else ():
        tier, _, name = line.partition(' ')
        found[name].append(tier)
    return found


def shortened(names: set[str], known: set[str]) -> list[str]:
    """Sort the ids `names`; replace all `known` cases of a function by the function."""
    cases = collections.defaultdict(set)
    for name in known:
        cases[function_of(name)].add(name)
    return sorted(
        {function_of(name) if cases[function_of(name)] <= names else name for name in names}
    )


# Measuring ----------------------------------------------------------------------------------------


def measured(arguments: list[str]) -> dict[str, dict]:
    """Run pytest with `arguments`; return the row of each test (seconds, outcome) by its id."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, 'tests.jsonl')
        command = [sys.executable, '-m', 'pytest', f'--record={path}', *arguments]
        subprocess.run(command, cwd=FOLDER.parent)
        rows = map(json.loads, path.read_text().splitlines())
        return {row['id']: row for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--above', type=float, default=2.5, help='limit in seconds (default: %(default)s)'
    )
    parser.add_argument('--write', action='store_true', help='write tests/tiers.txt')
    args, rest = parser.parse_known_args()
    if args.write:
        TIERS.unlink(missing_ok=True)
    rows = measured(rest)
    slow = {name for name, row in rows.items() if row['seconds'] > args.above}
    for name in sorted(slow, key=lambda name: rows[name]['seconds']):
        print(f'{rows[name]["seconds"]:8.1f} s  {name}')
    total = sum(row['own'] for name, row in rows.items() if name not in slow)
    print(
        f'{len(slow)} of {len(rows)} tests take more than {args.above:g} s; '
        f'the others {total:.0f} s'
    )
    if not args.write:
        return
    unmarked = {name for name in slow if not rows[name]['marked']}
    TIERS.write_text(''.join(f'slow {name}\n' for name in shortened(unmarked, {*rows})))
    without = measured(['-m', 'not slow and not tensorflow', *rest])
    lost = {name for name, row in without.items() if row['outcome'] != rows[name]['outcome']}
    needing = shortened(lost, {*without})
    TIERS.write_text(TIERS.read_text() + ''.join(f'tensorflow {name}\n' for name in needing))
    print(f'{len(lost)} of the others need TensorFlow. Wrote {TIERS.relative_to(FOLDER.parent)}')


if __name__ == '__main__':
    main()
