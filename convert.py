"""Turns a checkpoint of one kind into one of another: of the 2021 releases, of NCSN and NCSNv2, of
diffusers, and safetensors.

  python convert.py checkpoint_24.pth cifar10.safetensors --config
  configs/ve/cifar10_ncsnpp_continuous.py python convert.py checkpoint_48
  celebahq/checkpoints/checkpoint_48.pth --config configs/ve/celebahq_256_ncsnpp_continuous.py   #
  from JAX python convert.py checkpoint_48.pth celebahq-256 --config
  configs/ve/celebahq_256_ncsnpp_continuous.py    # a folder for diffusers python convert.py
  ddpm-cifar10-32 ddpm.safetensors     # from diffusers, which tells its config; it is written to
  ddpm.json

What SOURCE is shows in its first bytes, what DESTINATION will be in its name: NAME.pth (a training
state as the 2021 PyTorch release loads it), NAME.safetensors, or a folder (a pipeline of
diffusers). The config is that beside SOURCE, where there is one, or --config. Safetensors and
diffusers hold one set of weights: the averaged ones, or with --weights=raw those that are trained.
What has been written is read again and compared before it takes its place.
"""

import os
import pathlib
import sys
import tempfile

import torch
from absl import app, flags, logging

from commands.command_line import exit_with, log_to, parse_flags

FLAGS = flags.FLAGS
SUFFIXES = {'.pth': 'pytorch', '.pt': 'pytorch', '.safetensors': 'safetensors', '': 'diffusers'}


def convert(source, destination, config=None, weights: str = 'ema', overwrite: bool = False) -> str:
    """Writes the checkpoint `source` as `destination`, of the kind that its name says; returns that
    kind.

    `config`: of the network, where `source` does not bring one along. `weights`: 'ema' or 'raw',
    for kinds that hold one set. UserError, with nothing written, where it does not fit, cannot be
    expressed, or is there already.
    """
    import checkpoints
    import run_lib
    from checkpoints import formats
    from runtime.errors import UserError

    destination = pathlib.Path(destination)
    kind = SUFFIXES.get(destination.suffix)
    if kind is None:
        raise UserError(
            f'{destination}: its name must end in .pth or .safetensors, or have no '
            'ending, for a folder of diffusers'
        )
    found, brought = formats.guess(source), config is None
    config = config or checkpoints.config_of(source)
    if config is None:
        raise UserError(f'{source} ({found}) does not tell its config: give --config')
    _check_free(
        destination,
        kind,
        with_config=kind == 'safetensors' or kind == 'pytorch' and brought,
        overwrite=overwrite,
    )
    config = config.copy_and_resolve_references()
    config.device = 'cpu'
    state = run_lib.create_state(config)
    network = state['model'].module
    content = formats.read(source, network)
    checkpoints.restore(source, state, optional=('rng', 'optimizer'), content=content)
    with state['ema'].applied_to(network.parameters()) if weights == 'ema' else torch.no_grad():
        chosen = {name: value.clone() for name, value in network.state_dict().items()}
    notes = dict(step=state['step'], weights='averaged' if weights == 'ema' else 'raw')

    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=destination.parent, prefix='.convert-') as folder:
            partial = pathlib.Path(folder, destination.name)
            if kind == 'pytorch':
                compared = _buffers_as_loaded(content['model'], network)
                checkpoints.save(
                    partial,
                    state
                    | dict(model={f'module.{name}': value for name, value in compared.items()}),
                )
                if brought:  # no config of the repository need have what it says
                    partial.with_suffix('.json').write_text(
                        config.to_json_best_effort(indent=1) + '\n'
                    )
                averaged = formats.read(partial, network)['ema']['shadow_params']
                _compare(
                    destination,
                    dict(enumerate(averaged)),
                    dict(enumerate(state['ema'].shadow_params)),
                )
            else:
                formats.FORMATS[kind].write(partial, network, chosen, config, notes)
                compared = chosen
            again = {
                name.removeprefix('module.'): value
                for name, value in formats.read(partial, network)['model'].items()
            }
            _compare(destination, again, compared)
            _move(folder, destination.parent)
    except OSError as error:
        raise UserError(f'{destination} cannot be written: {error.strerror or error}') from error
    count = sum(value.numel() for value in network.parameters())
    logging.info(
        '%s (%s, step %d, %.1f million parameters) -> %s (%s%s)',
        source,
        found,
        state['step'],
        count / 1e6,
        destination,
        kind,
        '' if kind == 'pytorch' else f', {notes["weights"]} weights',
    )
    if kind == 'pytorch' and 'optimizer' not in content:
        _warn_of_losses(source, found, destination, state)
    return kind


def _check_free(destination, kind: str, with_config: bool, overwrite: bool):
    """Raise UserError if something at `destination`, or the config beside it, must not be
    replaced.
    """
    from checkpoints import formats
    from runtime.errors import UserError

    for path in (destination, *[destination.with_suffix('.json')] * with_config):
        if path.exists() and not overwrite:
            raise UserError(f'{path} is there already: --overwrite replaces it')
    replaceable = formats.FORMATS[kind].matches if kind == 'diffusers' else pathlib.Path.is_file
    if destination.exists() and not replaceable(destination):
        raise UserError(f'{destination} is there and no {kind} checkpoint: it is not replaced')


def _warn_of_losses(source, found: str, destination, state: dict):
    """Log what a training state lacks because its source did not hold it."""
    trained = [value for value in state['model'].parameters() if value.requires_grad]
    equal = all(map(torch.equal, trained, state['ema'].shadow_params))
    logging.warning(
        'Wrote %s without Adam moments%s: %s (%s) does not hold them.',
        destination,
        ' and with raw weights equal to the averaged ones' if equal else '',
        source,
        found,
    )


def _move(folder, to):
    """Move all files below `folder` to the same places below `to`; what else is there stays."""
    for path in pathlib.Path(folder).rglob('*'):
        if path.is_file():
            place = to / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)


def _buffers_as_loaded(loaded: dict, network) -> dict:
    """The state dict of `network` with its buffers as they were read: the 2021 release keeps its
    noise levels, `sigmas`, in float64.
    """
    loaded = {name.removeprefix('module.'): value for name, value in loaded.items()}
    buffers = dict(network.named_buffers())
    return {
        name: loaded[name] if name in buffers else value
        for name, value in network.state_dict().items()
    }


def _compare(path, again: dict, written: dict):
    """CheckpointError where what was read again is not what was written, bit for bit or both no
    number.
    """
    from runtime.errors import CheckpointError

    same = again.keys() == written.keys() and all(
        again[key].shape == written[key].shape
        and torch.allclose(again[key], written[key], rtol=0, atol=0, equal_nan=True)
        for key in written
    )
    if not same:
        raise CheckpointError(
            f'{path} was not written: what was read again differed from it, '
            'which a failing disk may do'
        )


def main(argv):
    from configs import rules
    from runtime.errors import UserError

    if len(argv) != 3:
        sys.exit(
            f'error: SOURCE and DESTINATION are needed, got {len(argv) - 1} arguments: see '
            'python convert.py --help'
        )
    log_to(None)
    if FLAGS.config and (faults := rules.faults(FLAGS.config, own=('',), unused=rules.RULES)):
        exit_with('\n'.join(faults.values()))
    try:
        convert(
            rules.expanded(argv[1]),
            rules.expanded(argv[2]),
            FLAGS.config,
            FLAGS.weights,
            FLAGS.overwrite,
        )
    except UserError as error:
        sys.exit('\n  '.join([f'error: {error}', *getattr(error, 'details', ())]))


if __name__ == '__main__':
    flags.DEFINE_string('config', None, 'The config file, or FILE:ARGUMENT.')
    flags.DEFINE_enum(
        'weights', 'ema', ['ema', 'raw'], 'For safetensors and diffusers: averaged or raw weights.'
    )
    flags.DEFINE_bool('overwrite', False, 'Replace DESTINATION if it is there.')
    app.run(main, flags_parser=parse_flags)
