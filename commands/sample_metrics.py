"""Metrics of samples that lie in files, whatever drew them.

    python main.py --config CONFIG --workdir DIR --mode metrics --input samples.npz --reference \
        photos.zip

Samples are 8-bit images: a folder or a zip file of pictures, or an npz file with an array (N, H, W,
C). They are compared with the config's data set, or with the images at --reference. Features,
metrics, protocol, table and report are those of --mode eval.
"""

import contextlib
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
from data.folders import has_test_set
from data.images import Subset, held_out
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
def measure(config, workdir, input: str, reference: str = '', output: str = '') -> pathlib.Path:
    """Measure the samples at `input` and write the results and a report. Finished batches of the
    same protocol are not computed again.

    Args:
        config: Image size and channels, the section `eval`, and the data set unless `reference` is
            given.
        workdir: Work directory, created if it does not exist.
        input: Folder, zip file or npz file of samples, which are never resized.
        reference: Folder, zip file or npz file of real images. Pictures are cropped and resized as
            `config.data.fit` says.
        output: Folder for the results. The default is `workdir/metrics_{name of input}`.

    Returns:
        The folder, with report.md, summary.csv, report_0.npz (metrics) and ckpt_0 (features, first
        samples).

    Raises:
        UserError: Samples or reference cannot be read, or are too few or too many for the metrics.
    """
    config = preflight.check(config, workdir, 'metrics')
    settings = config.eval
    given = _of_files(config, input, '--input', 'exact')
    real, flag = (
        (_of_files(config, reference, '--reference', config.data.fit), '--reference')
        if reference
        else (config, '')
    )
    name, split = pathlib.Path(given.data.path).resolve().stem, settings.stats_split
    folder = (
        pathlib.Path(output).expanduser() if output else pathlib.Path(workdir, f'metrics_{name}')
    )
    with _naming('--input'):
        samples, protocol = _samples(given)
    with _naming(flag):
        datasets.get_source(real)
        most = len(datasets.get_split(real, split, in_memory=False)) if reference else None
    evaluation.check_size(config, len(samples), most)
    with (
        checkpoints.only_writer(folder, 'measurement', '--output')
        if distributed.is_main()
        else contextlib.nullcontext()
    ):
        distributed.broadcast(None)  # if another process holds the lock, none of these continues
        return _measure(config, real, samples, protocol, folder, flag)


def _measure(config, real, samples, protocol, folder, flag) -> pathlib.Path:
    """`measure`, once everything has been found; `flag`: where the real images come from, '' if
    from the config.
    """
    settings, split = config.eval, config.eval.stats_split
    with distributed.main_first():
        extractor = evaluation.get_extractor(config)
    with _naming(flag):
        compared, floor = get_reference(real, extractor, split), None
        if settings.metrics_floor and datasets.has_held_out(real):
            floor = get_reference(real, extractor, 'test' if split == 'train' else 'train')
    with _naming('--input'):
        features = _features(config, extractor, samples, folder / 'ckpt_0', protocol)
    if not distributed.is_main():
        return folder
    if flag:
        origin = dict(origin=pathlib.Path(real.data.path).resolve().name)
        compared, floor = (
            x and x._replace(protocol=x.protocol | origin) for x in (compared, floor)
        )
    splits = settings.is_splits
    results.stored(
        folder / 'report_0.npz',
        protocol
        | dict(
            part='metrics',
            num_samples=len(features['pool_3']),
            is_splits=splits,
            extractor=extractor.protocol,
            reference=compared.protocol,
            floor=floor and floor.protocol,
        ),
        lambda: evaluation.measure(features, compared, splits, config.device, floor),
    )
    table = reports.table(reports.evaluation_rows(folder, 0))
    logging.info(
        'Measured %d samples of %s:\n%s', len(features['pool_3']), protocol['input']['name'], table
    )
    logging.info('Wrote %s.', reports.write([folder], folder, '.'))
    return folder


def _of_files(config, path: str, flag: str, fit: str) -> ConfigDict:
    """Return a copy of the config whose data set is the images at `path`, all of them in both
    splits unless they have splits.
    """
    place = pathlib.Path(path).expanduser()
    arrays = place.suffix.lower() in ('.npz', '.npy')
    if not path:
        raise UserError(f'{flag} is missing: {EXPECTED}')
    if not place.exists():
        raise UserError(f'{flag}={path} not found: {EXPECTED}')
    if not arrays and not place.is_dir() and not zipfile.is_zipfile(place):
        raise UserError(f'{flag}={path} has another format: {EXPECTED}')
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
    """Name a flag instead of `config.data.path` in errors about the images that it gives; ''
    changes nothing.
    """
    try:
        yield
    except UserError as error:
        if not flag:
            raise
        text, hint, _ = str(error).partition(': --config.data.fit')
        text = text.replace(
            'config.data.path', flag
        ) + ': expected images of that size, because samples are never resized' * bool(hint)
        raise UserError(text if flag in text else f'{flag}: {text}') from error


def _samples(config) -> tuple[Subset, dict]:
    """Return the samples, in the order in which they are measured, and what they are.

    Blocks of the kernel distance and parts of the Inception score must be random. A data set is
    read in random order, which is kept unless the array is called 'samples': --mode eval and sample
    write such arrays, and their order in the file is random already.
    """
    path = config.data.path
    if has_test_set(config):
        raise UserError(f'{path} has a training set and a test set: expected one set of samples')
    images = datasets.get_split(config, 'train', in_memory=False)
    if len(images) < 4 or config.eval.is_splits > len(images):
        raise UserError(
            f'{path} has {len(images)} images: expected 4 or more, and at least '
            f'config.eval.is_splits={config.eval.is_splits}'
        )
    images.read(np.arange(1))  # a wrong size shows before any work
    drawn = False
    if config.data.dataset == 'NPZ':
        with np.load(path) as arrays:
            drawn = 'samples' in arrays
    order = (
        np.argsort(held_out(len(images), config.data, 'train')) if drawn else np.arange(len(images))
    )
    described = datasets.describe(config, 'train') | dict(
        name=pathlib.Path(path).resolve().name, order='file' if drawn else 'random'
    )
    return Subset(images, order), dict(input=described, device=torch.device(config.device).type)


def _features(config, extractor, samples, folder, protocol: dict) -> dict | None:
    """Return {'pool_3': (n, D), ...} of the samples for process 0, a file for each batch; and store
    the first samples for the report.
    """
    size = config.eval.batch_size
    batches = np.split(np.arange(len(samples)), range(size, len(samples), size))
    files = [
        (
            folder / f'statistics_{i}.npz',
            protocol
            | dict(part='features', extractor=extractor.protocol, batch_size=size, batch=i),
        )
        for i in range(len(batches))
    ]

    def work(i):
        images = samples.read(batches[i])[0]
        return extractor.run(to_8_bits(images, samples.levels)) if len(images) else {}

    missing = distributed.broadcast(
        [i for i, file in enumerate(files) if results.matching(*file) is None]
    )
    for i, found in progress(
        distributed.in_turns(missing, work),
        'computing the features of the samples',
        len(missing),
        'batch',
    ):
        results.save(*files[i], **found)
    if not distributed.is_main():
        return None
    first = to_8_bits(samples.read(np.arange(min(100, len(samples))))[0], samples.levels)
    results.save(
        folder / 'samples_0.npz',
        protocol | dict(part='samples', batch=0, size=len(first)),
        samples=first,
    )
    reports.save_grid(folder / 'samples.png', first)
    for path in {*folder.glob('statistics_*.npz')} - {path for path, _ in files}:
        path.unlink()  # of other samples
    parts = [part for part in (results.matching(*file) for file in files) if part]
    if not parts:
        raise UserError(f'none of the {len(samples)} images could be read')
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
