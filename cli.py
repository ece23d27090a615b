"""What the commands share: flags, of which one is a config, and the log."""
import difflib
import logging
import logging.handlers
import os
import runpy
import sys

from absl import app
from absl import logging as absl_logging

from errors import UserError


class Console(logging.Handler):
    """Log lines on stderr, above a progress bar where there is one."""

    def emit(self, record):
        from tqdm import tqdm
        tqdm.write(self.format(record), file=sys.stderr)


def parse_flags(argv):
    """Absl's parser; a config file or key that is not there becomes one line."""
    path, _, argument = next((b if a.endswith('config') else a.partition('=')[2] for a, b in zip(argv, [*argv[1:], ''])
                              if a.lstrip('-') == 'config' or a.lstrip('-').startswith('config=')), '').partition(':')
    if path and not os.path.isfile(path):
        sys.exit(f'error: --config={path}: there is no such file')
    try:
        config = runpy.run_path(path)['get_config'](*[argument] * bool(argument)) if path else None
    except UserError as error:
        sys.exit(f'error: --config={path}:{argument}: {error}')
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError) as error:
        unknown = next((key for key in _config_keys(argv) if not _has(config, key)), None)
        if unknown is None:
            raise
        known = [f'{section}.{name}' if name else section for section in config for name in
                 (config[section] if hasattr(config[section], 'keys') else [''])]
        near = difflib.get_close_matches(unknown, known, 1)
        raise SystemExit(f'error: the config has no key {unknown}: ' + (f'did you mean {near[0]}? ' if near else '') +
                         f'{path} and configs/defaults.py show those it has') from error


def _config_keys(argv):
    """The keys that arguments such as --config.model.nf=64 set: 'model.nf'."""
    return [arg.lstrip('-').removeprefix('config.').partition('=')[0] for arg in argv if arg.lstrip('-').startswith('config.')]


def _has(config, key: str) -> bool:
    for name in key.split('.'):
        if not hasattr(config, 'keys') or name not in config:
            return False
        config = config[name]
    return True


def log_to(path, in_full: bool = True):
    """Log lines (or only warnings) to the console and, behind those already there, to the file at `path`, if there is one."""
    root = logging.getLogger()
    root.handlers.clear()
    for handler in (Console(), *([logging.handlers.WatchedFileHandler(path, errors='backslashreplace')] if path else [])):
        handler.setFormatter(logging.Formatter('%(asctime)s %(levelname)s %(message)s', '%Y-%m-%d %H:%M:%S'))
        root.addHandler(handler)
    absl_logging.set_verbosity(absl_logging.INFO if in_full else absl_logging.WARNING)


def exit_with(error):
    """Ends the program with the error's sentences."""
    sys.exit('\n'.join(f'error: {line}' for line in str(error).splitlines()))
