"""Checks before any work starts: report every fault of a config for a mode, in one sentence each.

The checks of single keys (commands/key_checks.py) run first, then the checks of combinations of
keys (commands/joint_checks.py) in the order of CHECKS.
"""

import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from ml_collections import ConfigDict

import checkpoints
from commands import joint_checks as joint
from commands import key_checks
from commands.joint_checks import Job
from configs import rules, stored
from configs.defaults import complete
from runtime.errors import UserError

SECTIONS = ('data', 'training', 'optim', 'model', 'sampling', 'eval')

# The config keys of arguments of library functions: they replace the names of arguments in errors
# such as "skip_type must be one of ..., got 'x'".
ARGUMENTS = {
    name: f'config.{section}.{name}'
    for section in ('eval', 'control', 'data', 'optim', 'training', 'model', 'sampling')
    for name in rules.RULES[section]
} | dict(
    n_steps='config.sampling.n_steps_each',
    denoise='config.sampling.noise_removal',
    head_dim='config.model.attn_head_dim',
    channels='channels (config.model.nf times config.model.ch_mult)',
)


# The checks ---------------------------------------------------------------------------------------


def check_snapshots(job: Job) -> None:
    """Check that a numbered checkpoint to evaluate exists, or that the evaluation will wait."""
    settings, workdir = job.config.eval, job.workdir
    numbers = range(settings.begin_ckpt, settings.end_ckpt + 1)
    there = any(checkpoints.snapshot_path(workdir, k).is_file() for k in numbers)
    if there or not numbers or settings.wait_minutes > 0:
        return
    found = checkpoints.snapshot_numbers(workdir)
    others = f'only {ranges(found)}' if found else 'nor any other'
    raise UserError(
        f'{checkpoints.snapshot_path(workdir, 0).parent} has no checkpoint from '
        f'config.eval.begin_ckpt={settings.begin_ckpt} to config.eval.end_ckpt='
        f'{settings.end_ckpt}, {others}: change these keys, or wait for a running training with '
        '--config.eval.wait_minutes=60'
    )


def check_workdir(job: Job) -> None:
    """Create the work directory and check that files can be written to it."""
    if not job.workdir and job.mode in ('stats', 'data'):
        return
    try:
        pathlib.Path(job.workdir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=job.workdir):
            pass
    except OSError as error:
        raise UserError(
            f'--workdir={os.fspath(job.workdir)} cannot be written: {error.strerror}'
        ) from error


class Check(NamedTuple):
    """A check that runs in `modes`, unless a key with one of the prefixes `keys` has a fault."""

    run: Callable[[Job], None]
    modes: str
    keys: str


TRAINING = 'train classifier'
SAMPLING = 'sample control'
NETWORK = f'{TRAINING} eval {SAMPLING}'
ALL = f'{NETWORK} stats metrics data'
SDE = 'training.sde model.sigma_ model.beta_ model.num_scales'
SHAPES = 'model. data. device training.continuous training.recompute training.precision'

# Faults are reported in this order. The data of --mode metrics may differ from those of the config.
CHECKS = (
    Check(joint.check_levels, f'{NETWORK} stats data', 'data.'),
    Check(joint.check_kind, NETWORK, 'model. training.recompute sampling.guidance'),
    Check(joint.check_scaling, NETWORK, 'model. training.'),
    Check(joint.check_sde, NETWORK, SDE),
    Check(check_workdir, ALL, ''),
    Check(
        joint.check_sampler,
        f'train eval {SAMPLING}',
        f'sampling. training.continuous data. device {SDE}',
    ),
    Check(joint.check_source, f'{TRAINING} eval stats data', 'data.'),
    Check(joint.check_batches, TRAINING, 'training.batch_size training.accumulation'),
    Check(joint.check_optimizer, TRAINING, 'optim.'),
    Check(joint.check_objective, TRAINING, f'training. {SDE}'),
    Check(joint.check_evaluation, 'eval', 'eval. data.'),
    Check(check_snapshots, 'eval', 'eval.'),
    Check(joint.check_reference, 'stats metrics', 'eval. data.'),
    Check(joint.check_network, NETWORK, SHAPES),
)


def check(
    config: ConfigDict, workdir: str | os.PathLike, mode: str, checkpoint: str | os.PathLike = ''
) -> ConfigDict:
    """Check everything that can be checked before any work starts, and complete the config.

    Args:
        config: The config of the user; optional keys may be missing.
        workdir: Work directory; created if it does not exist. '' for none.
        mode: 'train', 'classifier', 'eval', 'sample', 'control', 'stats', 'metrics' or 'data'.
        checkpoint: Checkpoint file to sample from; '' for a checkpoint of the work directory.

    Returns:
        A copy of the config, completed with the defaults of missing optional keys.

    Raises:
        UserError: with one line for each fault.
    """
    _check_sections(config, mode)
    key_checks.check_registered(config, workdir)
    has_network = mode in NETWORK.split()
    faulty = key_checks.faulty_keys(config, mode, has_network)
    config = complete(key_checks.without(config, faulty))
    faulty |= key_checks.unknown_names(config, has_network)
    if workdir and has_network and not checkpoint and not faulty:
        _check_trained(config, workdir, mode)
    faults = [*faulty.values(), *_joint_faults(Job(config, workdir, mode), faulty)]
    if faults:
        raise UserError('\n'.join(dict.fromkeys(faults)))
    if has_network and not key_checks.is_ours(config):
        joint.check_own_network(config)
    return config


def _check_sections(config, mode):
    needed = (*SECTIONS, 'control') if mode == 'control' else SECTIONS
    missing = [name for name in needed if not hasattr(config.get(name), 'items')]
    if missing:
        raise UserError(
            '\n'.join(
                f'the config is missing the section {name}: see configs/keys.py' for name in missing
            )
        )


def _joint_faults(job: Job, faulty) -> Iterator[str]:
    """Run the CHECKS of a mode that read none of the `faulty` keys; yield their sentences."""
    known = [key for key in faulty if rules.of(key)]
    for check in CHECKS:
        beginnings = tuple(check.keys.split())
        if job.mode not in check.modes.split() or any(key.startswith(beginnings) for key in known):
            continue
        try:
            check.run(job)
        except (UserError, NotImplementedError) as error:
            for line in (str(error) or repr(error)).splitlines():
                yield _in_terms_of_config(line)


def _check_trained(config, workdir, mode):
    """Check that the config defines the model that was trained in the work directory."""
    path, resume = pathlib.Path(workdir, 'config.json'), checkpoints.resume_path(workdir)
    if config.force_config or not path.is_file():
        return  # with force_config, loading the checkpoint logs warnings
    if resume.is_file() or checkpoints.snapshot_numbers(workdir):
        trains = mode in TRAINING.split()
        checkpoint = resume if trains else checkpoints.latest(workdir)
        stored.check(config, stored.get_config(path), checkpoint)


# Sentences ----------------------------------------------------------------------------------------


def _in_terms_of_config(sentence: str) -> str:
    """Replace names of arguments that stand before ' must ' or '=' by keys of the config."""
    return re.sub(
        r'(?<![\w.])(\w+)(?= must |=)', lambda name: ARGUMENTS.get(name[1], name[1]), sentence
    )


def warnings(config: ConfigDict) -> list[str]:
    """Return one sentence for each training setting that is allowed but probably a mistake.

    The config must have passed `check`.
    """
    training, found = config.training, []
    if training.n_iters < config.optim.warmup:
        found.append(
            f'config.training.n_iters={training.n_iters} is less than '
            f'config.optim.warmup={config.optim.warmup}: '
            f'the learning rate never reaches config.optim.lr={config.optim.lr:g}'
        )
    if training.snapshot_freq > training.n_iters:
        found.append(
            f'config.training.snapshot_freq={training.snapshot_freq} is greater than '
            f'config.training.n_iters={training.n_iters}: '
            'the only numbered checkpoint will be that of the last step'
        )
    if joint.is_unet(config):
        wanted = tuple(config.model.attn_resolutions)
        sides = [config.data.image_size // 2**i for i in range(len(config.model.ch_mult))]
        absent = [side for side in wanted if side not in sides]
        if absent:
            found.append(
                f'config.model.attn_resolutions={wanted} includes '
                f'{", ".join(map(str, absent))}, but the network only has the '
                f'resolutions {", ".join(map(str, sides))}: it has no attention at the missing '
                'ones'
            )
    return found


def ranges(numbers: Iterable[int]) -> str:
    """Abbreviate whole numbers in increasing order: '1, 3-5'."""
    parts = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ', '.join(str(first) if first == last else f'{first}-{last}' for first, last in parts)
