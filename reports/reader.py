"""Read the numbers of an evaluation from its files, including files of the 2021 release."""

import collections
import math
import pathlib

import numpy as np

from reports import results
from reports.numbers import FID_FEATURES, METRICS, SPLITS, UNKNOWN, Number

# Settings that change samples, and the methods that use them (empty: all methods). They are shown
# if they are not 0.
NAMED_SETTINGS = {'eta': ('ddim',), 'churn': ('heun',), 'prior_mean': (), 'thresholding': ()}


def numbers_of(eval_dir: pathlib.Path, checkpoint: int) -> list[Number]:
    """Read all numbers of a checkpoint from the files in `eval_dir`."""
    bits = [number for split in ('test', 'train') for number in _bits(eval_dir, checkpoint, split)]
    metrics = _metrics(eval_dir, checkpoint) or samples_of(eval_dir, checkpoint)
    return _loss(eval_dir, checkpoint) + bits + metrics


def samples_of(eval_dir: pathlib.Path, checkpoint: int, most: float = math.inf) -> list[Number]:
    """Count the samples of a checkpoint; `parts` holds the first hundred.

    Args:
        eval_dir: Folder of the evaluation.
        checkpoint: Number of the checkpoint.
        most: Stop reading files after this number of samples.

    Returns:
        A list with one number; empty without files.
    """
    files, images, n = [], [], 0
    for file in _batches(eval_dir / f'ckpt_{checkpoint}', 'samples_*.npz'):
        n += len(file['samples'])
        images.extend(file.pop('samples')[: 100 - len(images)])
        files.append(file)
        if n >= most:
            break
    if not files:
        return []
    number = Number(
        kind='samples',
        quantity='samples',
        value=n,
        protocol=files[-1]['protocol'],
        n=n,
        counted='samples',
        note='without metrics',
        sampler=_sampler(files[-1]['protocol']),
        nfe=_mean_nfe(files),
        parts=np.stack(images),
    )
    return [number]


def _loss(eval_dir, checkpoint) -> list[Number]:
    file = results.load(eval_dir / f'ckpt_{checkpoint}_loss.npz')
    if file is None:
        return []
    sizes, protocol = file.get('batch_sizes'), file['protocol']
    number = Number(
        kind='loss',
        quantity='loss',
        value=float(np.average(file['all_losses'], weights=sizes)),
        protocol=protocol,
        n=UNKNOWN if sizes is None else int(sizes.sum()),
        counted='images',
        reference=_images(protocol.get('images'), 'set'),
        complete='mean_loss' in file,
    )
    return [number]


def _bits(eval_dir, checkpoint, split) -> list[Number]:
    """Read bits/dim: the mean over images of the average over the passes of each image."""
    files = list(_batches(eval_dir, f'{split}_ckpt_{checkpoint}_bpd_*.npz'))
    if not files:
        return []
    passes = collections.defaultdict(list)  # by batch
    for i, file in enumerate(files):
        # in files of the 2021 release the array has no name and the batch has no number
        values = file['bpd'] if 'bpd' in file else file['arr_0']
        passes[file.get('batch', i)].append(np.ravel(values))
    parts = np.concatenate([np.mean(passes[i], axis=0, dtype=np.float64) for i in sorted(passes)])
    protocol = files[0]['protocol']
    number = Number(
        kind='bits/dim',
        quantity='bits/dim' if split == 'test' else 'bits/dim, train',
        value=float(parts.mean()),
        protocol=protocol,
        n=len(parts),
        counted='images',
        reference=_images(protocol.get('images'), 'set'),
        nfe=_mean_nfe(files),
        error=float(parts.std(ddof=1) / len(parts) ** 0.5),
        parts=parts,
        note=_dequantization(passes) if protocol else 'number of passes unknown',
        complete=len(files) >= max(file.get('files', 0) for file in files),
    )
    return [number]


def _dequantization(passes: dict) -> str:
    """Return 'uniformly dequantized, 5 passes' from the passes over each batch."""
    counts = sorted({len(batch) for batch in passes.values()})
    plural = '' if counts == [1] else 'es'
    return f'uniformly dequantized, {" to ".join(map(str, counts))} pass{plural}'


def _metrics(eval_dir, checkpoint) -> list[Number]:
    """Read the metrics of the samples, each followed by its value for real images if known."""
    file = results.load(eval_dir / f'report_{checkpoint}.npz') or {}
    protocol = file.pop('protocol', {})
    data = protocol.get('reference', {}).get('data')
    sets = {
        '': dict(
            counted='samples',
            sampler=_sampler(protocol),
            nfe='' if 'input' in protocol else _mean_nfe([file]),
        ),
        'floor_': dict(
            counted='training images' if data and data['split'] == 'test' else 'test images',
            real=', real to real',
        ),
    }
    return [
        _metric(key, file, prefix, protocol, basis)
        for key in METRICS
        for prefix, basis in sets.items()
        if prefix + key in file
    ]


def _metric(key: str, file: dict, prefix: str, protocol: dict, basis: dict) -> Number:
    """Return the metric `key` of one set of images; its values in `file` start with `prefix`."""
    metric, values = METRICS[key], collections.defaultdict(lambda: UNKNOWN)
    for name, value in file.items():
        if name.startswith(prefix):
            values[name.removeprefix(prefix)] = value.item()
    extractor = protocol.get('extractor', {})
    features = tuple(extractor.get(part, UNKNOWN) for part in ('backend', 'extractor', 'feature'))
    # the name of the network, or the layer for the network of FID
    space = next(part for part in features[1:] if part not in ('none', 'inception-v3-compat'))
    is_fid = features[1:] in FID_FEATURES
    if key != 'IS':  # IS needs no real images
        basis = basis | dict(reference=_reference(protocol), n_reference=values['n_reference'])
    return Number(
        kind=metric.kind,
        quantity=metric.name_of_fid if is_fid else f'{metric.name}, {space}',
        value=values[key],
        protocol=protocol,
        n=values['n_samples'],
        features=features,
        error=values.get(metric.error) or None,
        blocks=values['kid_error_blocks'],
        note=metric.note.format_map(values),
        **basis,
    )


def _batches(folder, pattern):
    """Yield the files of a pattern by number; skip those whose protocol is not the first one's."""
    whole = None
    for path in sorted(folder.glob(pattern), key=lambda path: (len(path.name), path.name)):
        file = results.load(path)
        if file is None:
            continue
        protocol = file['protocol']
        for key in ('repeat', 'batch', 'size'):
            if key in protocol:
                file[key] = protocol.pop(key)
        whole = protocol if whole is None else whole
        if protocol == whole:
            yield file


def _mean_nfe(files) -> str:
    nfe = np.mean([file.get('nfe', np.nan) for file in files])
    return UNKNOWN if np.isnan(nfe) else f'{nfe:.10g}'


def _sampler(protocol: dict) -> str:
    """Describe the sampler and its settings, as in 'heun, churn 7, guidance 4'."""
    if 'input' in protocol:
        return f'from {protocol["input"]["name"]}'
    settings = protocol.get('sampling', {})
    if 'method' not in settings:
        return UNKNOWN
    method = name = settings['method'].lower()
    if method == 'pc':
        name = f'pc {settings["predictor"]} + {settings["corrector"]}'.lower()
        if settings.get('probability_flow'):
            name += ' (probability flow)'
    parts = [name]
    for key, methods in NAMED_SETTINGS.items():
        value = settings.get(key)
        if value and (method in methods or not methods):
            parts.append(key if value is True else f'{key} {value:g}')
    if protocol.get('model', {}).get('num_classes'):
        parts.append(f'guidance {settings.get("guidance", 1.0):g}')
    return ', '.join(parts)


def _reference(protocol: dict) -> str:
    """Describe the reference images; statistics from a file have an 'origin' instead of 'data'."""
    reference = protocol.get('reference', {})
    if 'origin' in reference:
        return f'images of {reference["origin"]}'
    return _images(reference.get('data'), 'images')


def _images(data: dict | None, noun: str) -> str:
    """Describe the images of a protocol, as in 'test set of CIFAR10'."""
    if not data:
        return UNKNOWN
    return (
        f'{SPLITS[data["split"]]} {noun} of {data["dataset"]} {data.get("category") or ""}'.strip()
    )
