r"""Measure the samples of any model, which are read from files: --mode metrics.

    python main.py --config CONFIG --workdir DIR --mode metrics --input samples.npz \
        --reference photos.zip

Samples are 8-bit images: a folder or a zip file of pictures, or an npz file with an array (N, H, W,
C). They are compared with the config's data set, or with the images at --reference. Features,
metrics, protocol, table and report are the same as in --mode eval.
"""

import contextlib
import os
import pathlib
import zipfile

import numpy as np
import torch
from absl import logging
from ml_collections import ConfigDict

import checkpoints
import datasets
import evaluation
import reports
from commands import preflight
from configs.defaults import complete
from data.images import Subset, split_indices
from data.levels import to_8_bits
from metrics.reference import get_reference
from reports import results
from runtime import distributed, interruption
from runtime.errors import UserError
from runtime.progress import progress

EXPECTED = (
    'expected a folder or a zip file of pictures, or an .npz file with a uint8 array (N, H, W, C) '
    'called samples, images or arr_0'
)


@interruption.interruptible()
def measure(
    config: ConfigDict,
    workdir: str | os.PathLike,
    input: str,
    reference: str = '',
    output: str = '',
) -> pathlib.Path:
    """Measure the samples at `input` and write the results and a report.

    Finished batches of the same protocol are not computed again.

    Args:
        config: A config. Its image size, channels and section `eval` are used, and its data set
            unless `reference` is given.
        workdir: Work directory, created if it does not exist.
        input: Folder, zip file or npz file of samples, which are never resized.
        reference: Folder, zip file or npz file of real images. Pictures are cropped and resized as
            `config.data.fit` chooses.
        output: Folder for the results. The default is `workdir/metrics_{name of input}`.

    Returns:
        The folder, with report.md, summary.csv, protocols.json, report_0.npz (metrics) and ckpt_0
        (features, first samples).

    Raises:
        UserError: if samples or reference cannot be read, or their number does not suit the
            metrics.
    """
    config = preflight.check(config, workdir, 'metrics')
    given = _of_files(config, input, '--input', 'exact')
    real, flag = config, ''
    if reference:
        flag = '--reference'
        real = _of_files(config, reference, flag, config.data.fit)
    name = pathlib.Path(given.data.path).resolve().stem
    folder = pathlib.Path(output or pathlib.Path(workdir, f'metrics_{name}')).expanduser()
    with _naming('--input'):
        samples, protocol = _samples(given)
    with _naming(flag):
        datasets.get_source(real)
        most = (
            len(datasets.get_split(real, config.eval.stats_split, in_memory=False))
            if flag
            else None
        )
    evaluation.check_size(config, len(samples), most)
    with (
        checkpoints.only_writer(folder, 'measurement', '--output')
        if distributed.is_main()
        else contextlib.nullcontext()
    ):
        distributed.broadcast(None)  # if another process holds the lock, none of these continues
        return _measure(config, real, samples, protocol, folder, flag)


def _measure(config, real, samples, protocol, folder, flag) -> pathlib.Path:
    """Measure samples and write the results, after all inputs have been found.

    Args:
        config: The config.
        real: Config of the real images.
        samples: The samples.
        protocol: Description of the samples.
        folder: Folder of the results.
        flag: The flag that names the real images; '' if they are those of the config.
    """
    with distributed.main_first():
        extractor = evaluation.get_extractor(config)
    with _naming(flag):
        compared, floor = _references(config, real, extractor)
    with _naming('--input'):
        features = _features(config, extractor, samples, folder / 'ckpt_0', protocol)
    if not distributed.is_main():
        return folder
    if flag:
        origin = dict(origin=pathlib.Path(real.data.path).resolve().name)
        compared = compared._replace(protocol=compared.protocol | origin)
        floor = floor and floor._replace(protocol=floor.protocol | origin)
    n, splits = len(features['pool_3']), config.eval.is_splits
    described = protocol | dict(
        part='metrics',
        num_samples=n,
        is_splits=splits,
        extractor=extractor.protocol,
        reference=compared.protocol,
        floor=floor and floor.protocol,
    )
    results.stored(
        folder / 'report_0.npz',
        described,
        lambda: evaluation.measure(features, compared, splits, config.device, floor),
    )
    table = reports.table(reports.evaluation_rows(folder, 0))
    logging.info('Measured %d samples of %s:\n%s', n, protocol['input']['name'], table)
    logging.info('Wrote %s.', reports.write([folder], folder, '.'))
    return folder


def _references(config, real, extractor):
    """Return the real images to compare with, and those for the metrics floor (or None)."""
    split = config.eval.stats_split
    compared, floor = get_reference(real, extractor, split), None
    if config.eval.metrics_floor and datasets.has_held_out(real):
        floor = get_reference(real, extractor, 'test' if split == 'train' else 'train')
    return compared, floor


def _of_files(config, path: str, flag: str, fit: str) -> ConfigDict:
    """Return a copy of the config whose data set is the images at `path`.

    All images are in both splits, unless the files have splits.
    """
    place = pathlib.Path(path).expanduser()
    arrays = place.suffix.lower() in ('.npz', '.npy')
    if not path:
        raise UserError(f'{flag} is missing: {EXPECTED}')
    if not place.exists():
        raise UserError(f'{flag}={path} not found: {EXPECTED}')
    if not arrays and not place.is_dir() and not zipfile.is_zipfile(place):
        raise UserError(f'{flag}={path} is not supported: {EXPECTED}')
    copy = ConfigDict(config.to_dict())
    copy.data = ConfigDict(
        {key: config.data[key] for key in ('image_size', 'num_channels', 'on_error', 'memory_gib')}
    )
    copy.data.update(
        dataset='NPZ' if arrays else 'FOLDER', path=str(place), fit=fit, test_fraction=0.0
    )
    copy.model.num_classes = 0  # labels are not used
    return complete(copy)


@contextlib.contextmanager
def _naming(flag: str):
    """In errors about images, replace `config.data.path` by the flag (unless it is '')."""
    try:
        yield
    except UserError as error:
        if not flag:
            raise
        text, hint, _ = str(error).partition(': --config.data.fit')
        text = text.replace('config.data.path', flag)
        if hint:
            text += ': expected images of that size, because samples are never resized'
        raise UserError(text if flag in text else f'{flag}: {text}') from error


def _samples(config) -> tuple[Subset, dict]:
    """Return the samples, in the order in which they are measured, and their protocol.

    Blocks of the kernel distance and parts of the Inception score must be random. Samples are read
    in random order. The order of the file is restored for an array called 'samples', as --mode eval
    and sample write it: that order is random already.
    """
    path = config.data.path
    if datasets.get_source(config).has_test_set(path):
        raise UserError(f'{path} has a training set and a test set: expected one set of samples')
    images = datasets.get_split(config, 'train', in_memory=False)
    if len(images) < 4 or config.eval.is_splits > len(images):
        raise UserError(
            f'{path} has {len(images)} images: expected 4 or more, and at least '
            f'config.eval.is_splits={config.eval.is_splits}'
        )
    images.read(np.arange(1))  # reports a wrong image size before any work
    order, drawn = np.arange(len(images)), False
    if config.data.dataset == 'NPZ':
        with np.load(path) as arrays:
            drawn = 'samples' in arrays
    if drawn:
        order = np.argsort(split_indices(len(images), config.data.test_fraction, 'train'))
    described = datasets.describe(config, 'train') | dict(
        name=pathlib.Path(path).resolve().name, order='file' if drawn else 'random'
    )
    return Subset(images, order), dict(input=described, device=torch.device(config.device).type)


def _features(config, extractor, samples, folder, protocol: dict) -> dict | None:
    """Compute the features of the samples in batches, which all processes share; one file each.

    Returns:
        {'pool_3': (n, D), ...} for process 0.
    """
    size = config.eval.batch_size
    batches = np.split(np.arange(len(samples)), range(size, len(samples), size))
    common = protocol | dict(part='features', extractor=extractor.protocol, batch_size=size)
    files = [(folder / f'statistics_{i}.npz', common | dict(batch=i)) for i in range(len(batches))]

    def work(i):
        images = samples.read(batches[i])[0]
        return extractor.run(to_8_bits(images, samples.levels)) if len(images) else {}

    missing = distributed.broadcast(
        [i for i, file in enumerate(files) if results.matching(*file) is None]
    )
    found = distributed.in_turns(missing, work)
    what = 'computing the features of the samples'
    for i, features in progress(found, what, len(missing), 'batch'):
        results.save(*files[i], **features)
    if not distributed.is_main():
        return None
    _save_first(samples, folder, protocol)
    for path in {*folder.glob('statistics_*.npz')} - {path for path, _ in files}:
        path.unlink()  # a file of other samples
    parts = [part for part in (results.matching(*file) for file in files) if part]
    if not parts:
        raise UserError(f'none of the {len(samples)} images could be read')
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _save_first(samples, folder, protocol: dict):
    """Store up to 100 samples, for the report."""
    first = to_8_bits(samples.read(np.arange(min(100, len(samples))))[0], samples.levels)
    described = protocol | dict(part='samples', batch=0, size=len(first))
    results.save(folder / 'samples_0.npz', described, samples=first)
    reports.save_grid(folder / 'samples.png', first)
