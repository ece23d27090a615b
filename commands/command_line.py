"""The command line of the programs: parse flags, load the config, and set up the log.

    flags.DEFINE_string('config', None, 'The config file.')
    app.run(main, flags_parser=command_line.parse_flags)

In `main`, FLAGS.config is then the config, with the overrides of the command line.
"""

import ast
import contextlib
import difflib
import importlib
import importlib.util
import logging
import logging.handlers
import os
import pathlib
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict

from runtime.errors import UserError, reason_of

ROOT = pathlib.Path(__file__).parents[1]
# flags that name files or folders which must exist
INPUTS = ('checkpoint', 'input', 'classifier', 'reference')
PATHS = ('workdir', 'eval_folder', 'output', 'mask', *INPUTS)
PARSERS = {bool: flags.BooleanParser, int: flags.IntegerParser, float: flags.FloatParser}


class Console(logging.Handler):
    """Write log lines to stderr, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parse `argv` into absl's flags; exit with one line for each fault, or after `--help`.

    The value of `--config=FILE[:ARGUMENT]` becomes the config that `get_config(ARGUMENT)` of the
    file returns, locked, with the overrides `--config.section.key=value`.

    Returns:
        The name of the program and the arguments that are not flags.
    """
    from configs import rules

    known = flags.FLAGS
    given, overrides = _without_overrides(known.read_flags_from_files(argv, force_gnu=False))
    given, faults = _without_faults(given)
    rest, more = _parse(given + _stored_config(given), faults)
    faults += [*more, *_expand_paths()]
    config = None
    try:
        config = load_config(known['config'].value) if known['config'].value else None
        for key, text in overrides if config else ():
            faults += _override(config, key, text)
    except UserError as error:
        faults += str(error).splitlines()
    if faults:
        values = rules.faults(config, own=('',)).values() if config else ()
        exit_with('\n'.join(dict.fromkeys([*faults, *values])))
    if config:
        rules.expand_paths(config)
        if 'force_config' in known and known['force_config'].value:
            with config.unlocked():
                config.force_config = True
        known['config'].value = config.lock()
    return rest


# Flags --------------------------------------------------------------------------------------------


def _parse(given: list[str], faults: list[str]) -> tuple[list[str], list[str]]:
    """Let absl parse the arguments.

    Returns:
        The arguments that are not flags, and faults of flags that `faults` does not contain yet.
    """
    try:
        return flags.FLAGS(given), []
    except SystemExit:  # absl exits with 1 after --help
        sys.exit(0)
    except flags.Error as error:
        named = {fault.partition('=')[0] for fault in faults}
        workdir = _values(given).get('workdir')
        found = [_in_short(line, workdir) for line in str(error).splitlines()]
        return [], [fault for fault in found if fault.partition(' ')[0] not in named]


def _expand_paths() -> list[str]:
    """Expand `~` in flags that are paths; return a line for each input that does not exist."""
    from configs import rules

    faults, known = [], flags.FLAGS
    for name in PATHS:
        if name in known and known[name].value:
            known[name].value = rules.expanded(known[name].value)
            if name in INPUTS and not os.path.exists(known[name].value):
                faults.append(f'--{name}={known[name].value}: not found')
    return faults


def _without_overrides(argv) -> tuple[list[str], list[tuple[str, str | None]]]:
    """Separate overrides of the config, such as `--config.model.nf=64`, from other arguments.

    Returns:
        The other arguments, and pairs such as ('model.nf', '64'), with None for a missing value.
    """
    from configs import rules

    given, overrides, rest = [], [], list(argv)
    while rest:
        argument = rest.pop(0)
        name, equals, text = argument.partition('=')
        name = name.lstrip('-') if argument.startswith('-') else ''
        key = name.removeprefix('no').removeprefix('config.')
        if argument == '--':
            return [*given, argument, *rest], overrides
        if not name.removeprefix('no').startswith('config.'):
            given.append(argument)
        elif name.startswith('no'):
            overrides.append((key, 'False'))
        elif equals:
            overrides.append((key, text))
        elif rules.of(key) is rules.FLAG or not rest or rest[0].startswith('--'):
            overrides.append((key, None))
        else:
            overrides.append((key, rest.pop(0)))
    return given, overrides


def _values(argv) -> dict[str, str]:
    """Return the values of the flags among arguments of the form `--name=value`."""
    return dict(
        argument.lstrip('-').split('=', 1)
        for argument in argv
        if argument.startswith('-') and '=' in argument
    )


def _stored_config(argv) -> list[str]:
    """Return the flag `--config` for the config in the work directory, if there is one.

    The list is empty if the arguments (`--name=value`) already name a config.
    """
    from configs import rules

    values = _values(argv)
    path = pathlib.Path(rules.expanded(values.get('workdir', '')), 'config.json')
    found = 'workdir' in values and 'config' not in values and path.is_file()
    return [f'--config={ROOT / "configs" / "stored.py"}:{path}'] if found else []


def _without_faults(argv) -> tuple[list[str], list[str]]:
    """Separate unknown flags and flags with a wrong value from the arguments.

    Returns:
        The other arguments, and one sentence for each flag that was removed.
    """
    known, kept, faults, rest = flags.FLAGS, [], [], list(argv)
    while rest:
        argument = rest.pop(0)
        name, equals, text = argument.lstrip('-').partition('=')
        if argument == '--':
            return [*kept, argument, *rest], faults
        if (
            not argument.startswith('-')
            or name.removeprefix('no') in known
            and known[name.removeprefix('no')].boolean
            and not equals
        ):
            kept.append(argument)
        elif name not in known:
            faults.append(
                f'--{name} is not a known flag'
                + _suggestion(f'--{name}', [f'--{other}' for other in known])
            )
        elif not equals and not rest:
            faults.append(f'--{name}= needs a value')
        else:
            text, parser = text if equals else rest.pop(0), known[name].parser
            try:
                parser.parse(text)
                kept.append(f'--{name}={text}')
            except (ValueError, TypeError):
                expected = (
                    f'one of {", ".join(parser.enum_values)}'
                    if hasattr(parser, 'enum_values')
                    else parser.syntactic_help
                )
                faults.append(f'--{name}={text}: expected {expected or parser.flag_type()}')
    return kept, faults


def _in_short(message: str, workdir: str | None) -> str:
    """Shorten a line of an absl error; for a missing config, mention `workdir`."""
    about, _, reason = message.partition(': ')
    if 'value other than None' not in reason:
        return reason or message
    flag = about.removeprefix('flag ').partition('=')[0]
    why = f': {workdir} has no config.json' if flag == '--config' and workdir else ''
    return f'{flag} is missing{why}'


def _suggestion(name: str, known) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f': did you mean {near[0]}?' if near else ''


def _override(config, key: str, text: str | None) -> list[str]:
    """Set a key of the config to the value that `text` represents; return the faults of the key.

    A value that breaks the rule of its key is set too; preflight.py reports all such values
    together.
    """
    from configs import rules

    section, _, name = key.rpartition('.')
    place, rule = config, rules.of(key)
    for part in filter(None, section.split('.')):
        place = place.get(part) if hasattr(place, 'keys') else None
    old = place.get(name) if hasattr(place, 'keys') else None
    if not hasattr(place, 'keys') or rule is None and name not in place:
        names = [
            f'config.{part}.{name}' if name else f'config.{part}'
            for part in config
            for name in (config[part] if hasattr(config[part], 'keys') else [''])
        ]
        return [
            f'config.{key} is not a known key'
            + (_suggestion(f'config.{key}', names) or ': see configs/keys.py')
        ]
    if hasattr(old, 'keys'):
        return [
            f'config.{key} is a section: expected a key in it, such as '
            f'--config.{key}.{next(iter(old), "key")}=...'
        ]
    found = [*_readings(text, bool if rule is rules.FLAG else type(old))]
    if rule is None and not isinstance(found[0], type(old)) and old is not None:
        return [f'config.{key}={text}: expected a value like {old!r}']
    with config.unlocked(), config.ignore_type():
        place[name] = next((value for value in found if rule and rule.accepts(value)), found[0])
    return []


def _readings(text: str | None, kind: type):
    """Yield the values that a text may represent, first the value of the type `kind`."""
    if text is None:
        if kind is bool:
            yield True
        text = ''
    if kind is str:
        yield text
    if kind in PARSERS:
        with contextlib.suppress(ValueError):
            yield PARSERS[kind]().parse(text)
    with contextlib.suppress(ValueError, SyntaxError):
        literal = ast.literal_eval(text)
        if kind not in (tuple, list) or isinstance(literal, (tuple, list)):
            yield literal
        yield (literal,)
    yield text


# The config ---------------------------------------------------------------------------------------


def load_config(location: str) -> ConfigDict:
    """Execute a config file once and return the result of its function `get_config`.

    Values of configs made by `configs.defaults` may have any type: preflight.py reports all values
    of a wrong type. The file can import modules of its folder.

    Args:
        location: 'FILE' or 'FILE:ARGUMENT', where ARGUMENT is passed to `get_config`.

    Raises:
        UserError: if the file does not exist, has no `get_config`, or causes an error of
            ml_collections.
    """
    from configs import defaults, rules

    path, _, argument = location.partition(':')
    path = pathlib.Path(rules.expanded(path))
    arguments = [rules.expanded(argument)] if argument else []
    if not path.is_file():
        raise UserError(f'--config={path}: not found')
    try:
        with defaults.any_type():
            get_config = getattr(_module(path), 'get_config', None)
            if get_config is None:
                raise UserError('expected a function get_config in this file')
            config = get_config(*arguments)
    except (UserError, ModuleNotFoundError) as error:
        raise UserError(f'--config={location}: {error}') from error
    except SyntaxError as error:
        raise UserError(
            f'--config={location}: {error.filename}, line {error.lineno}: {error.msg}'
        ) from error
    except (AttributeError, KeyError, TypeError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        if 'ml_collections' not in frames[-1].filename and frames[-1].filename != __file__:
            raise  # an error in the file's own code
        lines = [
            f', line {frame.lineno}'
            for frame in frames
            if pathlib.Path(frame.filename) == path.resolve()
        ]
        inner = error.args[0] if error.args else None
        # ml_collections wraps its KeyErrors, and lists all keys after the first sentence
        reason = reason_of(inner if isinstance(inner, KeyError) else error)
        reason = reason.partition('. Other fields')[0]
        raise UserError(f'--config={location}{lines[-1] if lines else ""}: {reason}') from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f'--config={location}: get_config must return an '
            f'ml_collections.ConfigDict, got {type(config).__name__}'
        )
    return config


def _module(path: pathlib.Path):
    """Import a Python file; in a package of this repository, import it by its dotted name."""
    path = path.resolve()
    if path.is_relative_to(ROOT):
        parts = path.relative_to(ROOT).with_suffix('').parts
        folders = [ROOT.joinpath(*parts[:i]) for i in range(1, len(parts))]
        in_packages = all((folder / '__init__.py').is_file() for folder in folders)
        if in_packages and all(part.isidentifier() for part in parts):
            return importlib.import_module('.'.join(parts))
    other = importlib.util.find_spec(path.stem) if path.stem.isidentifier() else None
    is_free = path.stem.isidentifier() and (other is None or other.origin == str(path))
    name = path.stem if is_free else f'config of {path.stem}'
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last: the library's own modules come first
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The log ------------------------------------------------------------------------------------------


def log_to(path: str | os.PathLike | None, in_full: bool = True) -> None:
    """Log to the console and, if `path` is given, append to that file.

    Args:
        path: Log file, opened when the first line is logged, or None.
        in_full: Whether to log all lines, or only warnings.
    """
    handlers = [Console()]
    if path:
        handlers.append(
            logging.handlers.WatchedFileHandler(path, delay=True, errors='backslashreplace')
        )
    root = logging.getLogger()
    root.handlers.clear()
    for handler in handlers:
        handler.setFormatter(
            logging.Formatter('%(asctime)s %(levelname)s %(message)s', '%Y-%m-%d %H:%M:%S')
        )
        root.addHandler(handler)
    absl_logging.set_verbosity(absl_logging.INFO if in_full else absl_logging.WARNING)


def exit_with(error: Exception | str) -> NoReturn:
    """End the program and print each line of an error."""
    sys.exit('\n'.join(f'error: {line}' for line in str(error).splitlines()))
