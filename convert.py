"""Convert checkpoints between formats: the 2021 releases, NCSN, diffusers and safetensors.

    python convert.py checkpoint_24.pth cifar10.safetensors \\
        --config configs/ve/cifar10_ncsnpp_continuous.py
    python convert.py checkpoint_48 celebahq/checkpoints/checkpoint_48.pth \\
        --config configs/ve/celebahq_256_ncsnpp_continuous.py      # from the JAX release
    python convert.py checkpoint_48.pth celebahq-256 \\
        --config configs/ve/celebahq_256_ncsnpp_continuous.py      # a folder for diffusers
    python convert.py ddpm-cifar10-32 ddpm.safetensors             # from diffusers, with its config

The format of SOURCE is detected from its content. The name of DESTINATION chooses its format:
NAME.pth (a training state that the 2021 PyTorch release can load), NAME.safetensors, or a folder (a
diffusers pipeline). The config is --config, or else the one stored with SOURCE. Safetensors and
diffusers contain one set of weights: the EMA weights, or the raw weights with --weights=raw. The
result is read back and compared with the weights in memory before it is moved to DESTINATION.
"""

import contextlib
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence

import torch
from absl import app, flags, logging
from ml_collections import ConfigDict

import checkpoints
import run_lib
from checkpoints import formats
from checkpoints.formats.torch_zip import bare
from commands.command_line import exit_with, log_to, parse_flags
from configs import rules
from runtime.errors import CheckpointError, UserError

FLAGS = flags.FLAGS
FORMAT_OF_SUFFIX = {
    '.pth': 'pytorch',
    '.pt': 'pytorch',
    '.safetensors': 'safetensors',
    '': 'diffusers',
}


def convert(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    config: ConfigDict | None = None,
    weights: str = 'ema',
    overwrite: bool = False,
) -> str:
    """Convert the checkpoint `source` to the format that the name of `destination` chooses.

    Args:
        source: file or folder in any of the `checkpoints.formats`.
        destination: NAME.pth, NAME.safetensors, or a folder for diffusers.
        config: the config of the network. None: the one stored with `source`.
        weights: 'ema' or 'raw', for formats that contain one set of weights.
        overwrite: replace existing files at `destination`.

    Returns:
        The format of `destination`.

    Raises:
        UserError: if the checkpoint does not fit the config, if the format cannot express it, or if
            `destination` exists. In these cases nothing is written.
    """
    destination = pathlib.Path(destination)
    kind = _format_of_name(destination)
    found = formats.guess(source)
    with_config = kind == 'safetensors' or kind == 'pytorch' and config is None
    config = _config_for(source, found, config)
    _check_free(destination, kind, with_config, overwrite)
    state = run_lib.create_state(config)
    content = formats.read(source, state['model'].module)
    checkpoints.restore(source, state, optional=('rng', 'optimizer'), content=content)
    notes = dict(step=state['step'], weights='averaged' if weights == 'ema' else 'raw')
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=destination.parent, prefix='.convert-') as folder:
            partial = pathlib.Path(folder, destination.name)
            if kind == 'pytorch':
                written = _write_state(partial, state, content['model'])
                if with_config:  # no config file of the repository describes this network
                    text = config.to_json_best_effort(indent=1) + '\n'
                    partial.with_suffix('.json').write_text(text)
            else:
                network, written = state['model'].module, _weights(state, weights)
                formats.FORMATS[kind].write(partial, network, written, config, notes)
            _check_readable(destination, partial, state, written)
            _move(folder, destination.parent)
    except OSError as error:
        raise UserError(f'{destination} cannot be written: {error.strerror or error}') from error
    _log(source, found, destination, kind, notes, state)
    if kind == 'pytorch' and 'optimizer' not in content:
        _warn_of_losses(source, found, destination, state)
    return kind


def _format_of_name(destination: pathlib.Path) -> str:
    kind = FORMAT_OF_SUFFIX.get(destination.suffix)
    if kind is None:
        raise UserError(
            f'{destination}: the name must end in .pth or .safetensors, or have no '
            'ending (for a diffusers folder)'
        )
    return kind


def _config_for(source, found: str, config: ConfigDict | None) -> ConfigDict:
    """Return a copy of `config`, or else of the config of `source`, with the CPU as its device."""
    config = config or checkpoints.config_of(source)
    if config is None:
        raise UserError(f'{source} ({found}) contains no config: pass --config')
    config = config.copy_and_resolve_references()
    config.device = 'cpu'
    return config


def _check_free(destination: pathlib.Path, kind: str, with_config: bool, overwrite: bool):
    """Raise UserError if `destination` or its config file exists and must not be replaced."""
    places = [destination, destination.with_suffix('.json')] if with_config else [destination]
    for path in places:
        if path.exists() and not overwrite:
            raise UserError(f'{path} already exists: pass --overwrite to replace it')
    replaceable = formats.FORMATS[kind].matches if kind == 'diffusers' else pathlib.Path.is_file
    if destination.exists() and not replaceable(destination):
        raise UserError(f'{destination} exists and is not a {kind} checkpoint: choose another name')


# Writing ------------------------------------------------------------------------------------------


def _weights(state: dict, which: str) -> dict[str, torch.Tensor]:
    """Return a copy of the averaged ('ema') or trained ('raw') weights."""
    network = state['model'].module
    averaged = state['ema'].applied_to(network.parameters())
    with averaged if which == 'ema' else contextlib.nullcontext():
        return {name: value.clone() for name, value in network.state_dict().items()}


def _write_state(path: pathlib.Path, state: dict, loaded: dict) -> dict[str, torch.Tensor]:
    """Write a training state and return its weights.

    Buffers are written as they were loaded: the 2021 release keeps its noise levels, `sigmas`, in
    float64.
    """
    network, loaded = state['model'].module, bare(loaded)
    buffers = dict(network.named_buffers())
    weights = {
        name: loaded[name] if name in buffers else value
        for name, value in network.state_dict().items()
    }
    named = {f'module.{name}': value for name, value in weights.items()}
    checkpoints.save(path, state | dict(model=named))
    return weights


def _check_readable(destination, path: pathlib.Path, state: dict, written: dict):
    """Raise CheckpointError if the tensors read from `path` differ from those written."""
    found = formats.read(path, state['model'].module)
    again = bare(found['model'])
    if again.keys() != written.keys():
        raise _differs(destination)
    _check_same(destination, [again[name] for name in written], list(written.values()))
    if 'shadow_params' in found['ema']:
        _check_same(destination, found['ema']['shadow_params'], state['ema'].shadow_params)


def _check_same(destination, again: list[torch.Tensor], written: list[torch.Tensor]):
    """Raise CheckpointError if tensors are not equal; NaN counts as equal to NaN."""
    same = len(again) == len(written) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
        for a, b in zip(again, written)
    )
    if not same:
        raise _differs(destination)


def _differs(destination) -> CheckpointError:
    return CheckpointError(
        f'{destination} was not written: the data read back differ from the data written. The disk '
        'may be failing'
    )


def _move(folder, to: pathlib.Path):
    """Move all files in `folder` to the same relative paths in `to`; other files there remain."""
    for path in pathlib.Path(folder).rglob('*'):
        if path.is_file():
            place = to / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)


# Log ----------------------------------------------------------------------------------------------


def _log(source, found: str, destination, kind: str, notes: dict, state: dict):
    count = sum(value.numel() for value in state['model'].parameters())
    logging.info(
        'Converted %s (%s, step %d, %.1f million parameters) to %s (%s%s).',
        source,
        found,
        state['step'],
        count / 1e6,
        destination,
        kind,
        '' if kind == 'pytorch' else f', {notes["weights"]} weights',
    )


def _warn_of_losses(source, found: str, destination, state: dict):
    """Log a warning about the parts of a training state that its source does not contain."""
    trained = [value for value in state['model'].parameters() if value.requires_grad]
    equal = all(map(torch.equal, trained, state['ema'].shadow_params))
    logging.warning(
        'Wrote %s without Adam moments%s: %s (%s) does not contain them.',
        destination,
        ' and with raw weights equal to the averaged ones' if equal else '',
        source,
        found,
    )


# The command line ---------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> None:
    if len(argv) != 3:
        sys.exit(
            f'error: expected SOURCE and DESTINATION, got {len(argv) - 1} arguments: see '
            'python convert.py --help'
        )
    log_to(None)
    if FLAGS.config and (faults := rules.faults(FLAGS.config, own=('',), unused=rules.RULES)):
        exit_with('\n'.join(faults.values()))
    try:
        source, destination = map(rules.expanded, argv[1:])
        convert(source, destination, FLAGS.config, FLAGS.weights, FLAGS.overwrite)
    except UserError as error:
        sys.exit('\n  '.join([f'error: {error}', *getattr(error, 'details', ())]))


if __name__ == '__main__':
    flags.DEFINE_string('config', None, 'Config file of the network, or FILE:ARGUMENT.')
    flags.DEFINE_enum(
        'weights', 'ema', ['ema', 'raw'], 'For safetensors and diffusers: EMA or raw weights.'
    )
    flags.DEFINE_bool('overwrite', False, 'Replace DESTINATION if it exists.')
    app.run(main, flags_parser=parse_flags)
