"""The numbers that the files of an evaluation hold."""

import collections
import math

import numpy as np

from reports import results
from reports.numbers import FID_FEATURES, METRICS, SPLITS, UNKNOWN, Number

# where not 0; (): of all methods
TOLD_SETTINGS = {'eta': ('ddim',), 'churn': ('heun',), 'prior_mean': (), 'thresholding': ()}


def numbers_of(eval_dir, checkpoint: int) -> list[Number]:
    """All that the files in `eval_dir` say of a checkpoint."""
    bits = [number for split in ('test', 'train') for number in _bits(eval_dir, checkpoint, split)]
    return (
        _loss(eval_dir, checkpoint)
        + bits
        + (_metrics(eval_dir, checkpoint) or samples_of(eval_dir, checkpoint))
    )


def _loss(eval_dir, checkpoint) -> list[Number]:
    file = results.load(eval_dir / f'ckpt_{checkpoint}_loss.npz')
    if file is None:
        return []
    sizes, p = file.get('batch_sizes'), file['protocol']
    value, n = (
        float(np.average(file['all_losses'], weights=sizes)),
        UNKNOWN if sizes is None else int(sizes.sum()),
    )
    return [
        Number(
            'loss',
            'loss',
            value,
            p,
            n,
            'images',
            _images(p.get('images'), 'set'),
            complete='mean_loss' in file,
        )
    ]


def _bits(eval_dir, checkpoint, split) -> list[Number]:
    """Bits/dim: each image averaged over its passes, then the mean over images."""
    files, passes = list(_batches(eval_dir, f'{split}_ckpt_{checkpoint}_bpd_*.npz')), {}
    if not files:
        return []
    for i, file in enumerate(files):  # the 2021 release gave the array no name and told no batch
        passes.setdefault(file.get('batch', i), []).append(
            np.ravel(file['bpd'] if 'bpd' in file else file['arr_0'])
        )
    parts = np.concatenate([np.mean(passes[i], axis=0, dtype=np.float64) for i in sorted(passes)])
    p, times = (
        files[0]['protocol'],
        ' to '.join(map(str, sorted({len(batch) for batch in passes.values()}))),
    )
    return [
        Number(
            'bits/dim',
            'bits/dim' if split == 'test' else 'bits/dim, train',
            float(parts.mean()),
            p,
            len(parts),
            'images',
            _images(p.get('images'), 'set'),
            nfe=_mean_nfe(files),
            error=float(parts.std(ddof=1) / len(parts) ** 0.5),
            parts=parts,
            note=f'uniformly dequantised, {times} time{"s" * (times != "1")}'
            if p
            else 'passes over the data unknown',
            complete=len(files) >= max(file.get('files', 0) for file in files),
        )
    ]


def _metrics(eval_dir, checkpoint) -> list[Number]:
    """The metrics of the samples, each followed by the same between real images, where there is
    one.
    """
    file, found = results.load(eval_dir / f'report_{checkpoint}.npz') or {}, []
    p = file.pop('protocol', {})
    features = tuple(
        p.get('extractor', {}).get(part, UNKNOWN) for part in ('backend', 'extractor', 'feature')
    )
    # a network, or a layer of FID's
    space = next(part for part in features[1:] if part not in ('none', 'inception-v3-compat'))
    # 'origin': a file, published or given
    data, origin = (p.get('reference', {}).get(key) for key in ('data', 'origin'))
    of = f'images of {origin}' if origin else _images(data, 'images')
    sets = {
        '': dict(
            counted='samples', sampler=_sampler(p), nfe='' if 'input' in p else _mean_nfe([file])
        ),
        'floor_': dict(
            counted='training images' if data and data['split'] == 'test' else 'test images',
            real=', real to real',
        ),
    }
    for key, (kind, name, name_of_fid, error, note) in METRICS.items():
        for prefix, basis in sets.items():
            values = collections.defaultdict(
                lambda: UNKNOWN,
                {
                    name.removeprefix(prefix): value.item()
                    for name, value in file.items()
                    if name.startswith(prefix)
                },
            )
            if key in values:
                against = (
                    {} if key == 'IS' else dict(reference=of, n_reference=values['n_reference'])
                )
                found.append(
                    Number(
                        kind,
                        name_of_fid if features[1:] in FID_FEATURES else f'{name}, {space}',
                        values[key],
                        p,
                        values['n_samples'],
                        features=features,
                        error=values.get(error) or None,
                        blocks=values['kid_error_blocks'],
                        note=note.format_map(values),
                        **against,
                        **basis,
                    )
                )
    return found


def samples_of(eval_dir, checkpoint, most: float = math.inf) -> list[Number]:
    """The number of samples, which are counted until there are `most`, with the first hundred of
    them.
    """
    files, images, n = [], [], 0
    for file in _batches(eval_dir / f'ckpt_{checkpoint}', 'samples_*.npz'):
        n += len(file['samples'])
        images.extend(file.pop('samples')[: 100 - len(images)])
        files.append(file)
        if n >= most:
            break
    return (
        [
            Number(
                'samples',
                'samples',
                n,
                file['protocol'],
                n,
                'samples',
                note='without metrics',
                sampler=_sampler(file['protocol']),
                nfe=_mean_nfe(files),
                parts=np.stack(images),
            )
        ]
        if files
        else []
    )


def _batches(folder, pattern):
    """The files of a pattern in the order of their numbers, as far as they are parts of what the
    first is a part of.
    """
    whole = None
    for path in sorted(folder.glob(pattern), key=lambda path: (len(path.name), path.name)):
        file = results.load(path)
        if file is not None:
            file |= {
                key: file['protocol'].pop(key)
                for key in ('repeat', 'batch', 'size')
                if key in file['protocol']
            }
            whole = file['protocol'] if whole is None else whole
            if file['protocol'] == whole:
                yield file


def _mean_nfe(files) -> str:
    nfe = np.mean([file.get('nfe', np.nan) for file in files])
    return UNKNOWN if np.isnan(nfe) else f'{nfe:.10g}'


def _sampler(protocol) -> str:
    """The sampler and the settings that change what it draws: 'pc reverse_diffusion + langevin',
    'heun, churn 7, guidance 4'.
    """
    if 'input' in protocol:
        return f'from {protocol["input"]["name"]}'
    s = protocol.get('sampling', {})
    if 'method' not in s:
        return UNKNOWN
    method = name = s['method'].lower()
    if method == 'pc':
        name = f'pc {s["predictor"]} + {s["corrector"]}'.lower() + ' (probability flow)' * bool(
            s.get('probability_flow')
        )
    told = [
        (key, value)
        for key, methods in TOLD_SETTINGS.items()
        if method in methods or not methods
        for value in [s.get(key)]
        if value
    ]
    if protocol.get('model', {}).get('num_classes'):
        told.append(('guidance', s.get('guidance', 1.0)))
    return ', '.join([name, *(key if value is True else f'{key} {value:g}' for key, value in told)])


def _images(data, noun, unknown=UNKNOWN) -> str:
    """'test set of DIGITS', 'training images of CIFAR10'."""
    return (
        f'{SPLITS[data["split"]]} {noun} of {data["dataset"]} {data.get("category") or ""}'.strip()
        if data
        else unknown
    )
