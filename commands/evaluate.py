"""The loss, bits/dim, samples and metrics of checkpoints, each with the protocol that it was
computed by.
"""

import functools
import itertools
import time
import types

import numpy as np
import torch
from absl import logging

import checkpoints
import datasets
import evaluation
import likelihood
import losses
import reports
import sde_lib
from commands import drawing
from data.batches import Batches
from data.images import at_most
from data.tensors import get_classes, to_tensor
from metrics.reference import get_reference
from reports import results
from runtime import distributed
from runtime.memory import keep_memory
from runtime.progress import progress
from runtime.randomness import own_randomness
from score_model import ScoreModel


def evaluate(config, workdir, eval_dir, numbers):
    keep_memory(config.device)

    @functools.cache
    def split(name):
        with distributed.main_first():
            return at_most(datasets.get_split(config, name), config.eval.most_images, config.seed)

    run = types.SimpleNamespace(
        config=config,
        sde=sde_lib.get_sde(config),
        eval_dir=eval_dir,
        extractor=None,
        other=None,
        split=split,
    )
    parts = [
        part
        for part, wanted in (
            (_evaluate_loss, config.eval.enable_loss),
            (_evaluate_bpd, config.eval.enable_bpd),
            (_evaluate_samples, config.eval.enable_sampling),
        )
        if wanted
    ]
    # what is missing shows before hours of sampling
    if config.eval.enable_sampling and config.eval.metrics_backend != 'none':
        with distributed.main_first():
            run.extractor = evaluation.get_extractor(config)
        run.real = get_reference(config, run.extractor, config.eval.stats_split)
        if config.eval.metrics_floor:
            run.other = get_reference(
                config, run.extractor, 'test' if config.eval.stats_split == 'train' else 'train'
            )
    for run.number in numbers:
        path = checkpoints.wait_for(
            checkpoints.snapshot_path(workdir, run.number), config.eval.wait_minutes
        )
        run.model = ScoreModel.load(path, config)
        run.protocol = _protocol(config, path)
        for part in parts:
            part(run)
        rows = reports.evaluation_rows(eval_dir, run.number) if distributed.is_main() else []
        if rows:
            logging.info(
                'Checkpoint %d, seed %d:\n%s', run.number, config.seed, reports.table(rows)
            )
        distributed.broadcast(None)  # all begin together to wait for the next checkpoint


def _protocol(config, checkpoint) -> dict:
    """What every number of a checkpoint depends on."""
    precision = config.training.precision
    return dict(
        checkpoint=checkpoint.name,
        weights=results.digest(checkpoint),
        seed=config.seed,
        device=torch.device(config.device).type,
        model=config.model.to_dict(),
        training=dict(sde=config.training.sde, continuous=config.training.continuous)
        | ({} if precision == 'float32' else dict(precision=precision)),
        data={
            key: config.data[key]
            for key in (
                'dataset',
                'image_size',
                'num_channels',
                'centered',
                'uniform_dequantization',
            )
        },
    )


def _images(config, split: str) -> dict:
    """What the images are that losses and likelihoods are of."""
    most = config.eval.most_images
    return datasets.describe(config, split) | (dict(at_most=most) if most else {})


def _evaluate_loss(run):
    """The mean loss over the test set; the file holds the batches so far, and the mean when all are
    there.
    """
    config, settings, path = (
        run.config,
        run.config.training,
        run.eval_dir / f'ckpt_{run.number}_loss.npz',
    )
    batches = Batches(
        run.split('test'),
        config.eval.batch_size,
        config.seed,
        dequantize=config.data.uniform_dequantization,
    )
    loss_fn = losses.get_loss_fn(
        run.sde, False, settings.reduce_mean, settings.continuous, settings.likelihood_weighting
    )
    protocol = results.normal(
        run.protocol
        | dict(
            part='loss',
            images=_images(config, 'test'),
            batch_size=config.eval.batch_size,
            reduce_mean=settings.reduce_mean,
            likelihood_weighting=settings.likelihood_weighting,
        )
    )
    found = results.matching(path, protocol)
    values, sizes = ([*found['all_losses']], [*found['batch_sizes']]) if found else ([], [])
    places = range(distributed.broadcast(len(values)), len(batches))

    def work(i):
        batch = batches.part(i)
        images = to_tensor(batch, config, datasets.get_data_scaler(config))
        # no images: all damaged, and left out
        with torch.no_grad(), own_randomness(config.seed, 'loss', i):
            return loss_fn(run.model.network, images, **get_classes(batch, config)).item() if len(
                images
            ) else 0.0, len(images)

    for i, (value, size) in progress(
        distributed.in_turns(places, work), 'the loss', len(places), 'batch'
    ):
        values.append(value)
        sizes.append(size)
        complete = (
            dict(mean_loss=np.average(values, weights=sizes)) if i == len(batches) - 1 else {}
        )
        results.save(
            path, protocol, all_losses=np.array(values), batch_sizes=np.array(sizes), **complete
        )
    if distributed.is_main():
        logging.info(
            'ckpt-%d loss: %.5e, of %d images',
            run.number,
            np.average(values, weights=sizes),
            sum(sizes),
        )


def _evaluate_bpd(run):
    """Bits/dim of every image of the training or the test set, dequantised anew in each of
    `bpd_repeats` passes.
    """
    config, settings = run.config, run.config.eval
    split = settings.bpd_dataset.lower()
    batches = Batches(run.split(split), settings.batch_size, config.seed, dequantize=True)
    solver = dict(
        rtol=settings.bpd_rtol,
        atol=settings.bpd_atol,
        method=settings.bpd_method,
        probes=settings.bpd_probes,
    )
    options, levels = likelihood.Options(**solver), datasets.get_levels(config)
    places = [*itertools.product(range(settings.bpd_repeats), range(len(batches)))]
    paths = [run.eval_dir / f'{split}_ckpt_{run.number}_bpd_{k}.npz' for k in range(len(places))]
    common = (
        run.protocol
        | dict(part='bpd', images=_images(config, split), batch_size=settings.batch_size)
        | solver
    )
    protocols = [common | dict(repeat=repeat, batch=i) for repeat, i in places]

    def work(k):
        repeat, i = places[k]
        images = to_tensor(batches.part(i, repeat), config, datasets.get_data_scaler(config))
        if not len(images):  # all damaged, and left out
            return dict(bpd=np.empty(0), nats=np.empty(0), repeat=repeat, nfe=0, seconds=0.0)
        started = time.monotonic()
        what = f'computing likelihoods, batch {k + 1} of {len(places)}'
        with (
            drawing.shown_evaluations(run.model, what, forward=True),
            own_randomness(config.seed, 'bpd', repeat, i),
        ):
            result = likelihood.log_likelihood(
                run.model, images, run.model.unscale, levels, options
            )
            bpd, nats = result.bpd.cpu().numpy(), result.nats.cpu().numpy()
        return dict(
            bpd=bpd, nats=nats, repeat=repeat, nfe=result.nfe, seconds=time.monotonic() - started
        )

    missing = distributed.broadcast(
        [k for k in range(len(places)) if results.matching(paths[k], protocols[k]) is None]
    )
    for k, found in distributed.in_turns(missing, work):
        results.save(paths[k], protocols[k], **found, files=len(places))
        logging.info(
            'ckpt-%d bits/dim: %.4f, of %d images (nfe %d), %d of %d',
            run.number,
            np.mean(found['bpd']),
            len(found['bpd']),
            found['nfe'],
            k + 1,
            len(places),
        )
    if not distributed.is_main():
        return
    passes = [[] for _ in range(settings.bpd_repeats)]
    for path, protocol, (repeat, _) in zip(paths, protocols, places):
        found = results.matching(path, protocol)
        if found['files'] != len(places):  # other repeats than when it was made
            results.save(path, protocol, **found | dict(files=len(places)))
        passes[repeat].extend(found['bpd'])
    values = np.mean(passes, 0)  # of each image
    logging.info(
        'ckpt-%d bits/dim: %.4f +- %.4f, of %d images, each averaged over %d passes',
        run.number,
        values.mean(),
        values.std() / len(values) ** 0.5,
        len(values),
        len(passes),
    )
    _remove_others(run.eval_dir.glob(f'{split}_ckpt_{run.number}_bpd_*.npz'), paths)


def _evaluate_samples(run):
    """Exactly `num_samples` samples, their features, and their metrics."""
    config, settings = run.config, run.config.eval
    folder, report, measured = (
        run.eval_dir / f'ckpt_{run.number}',
        run.eval_dir / f'report_{run.number}.npz',
        run.extractor is not None,
    )
    # whose random numbers follow from the number of their first image
    batches = drawing.batches(settings.num_samples, settings.batch_size)
    of_batch = [
        run.protocol
        | dict(
            sampling=config.sampling.to_dict(), batch_size=settings.batch_size, batch=i, size=size
        )
        for i, (_, size) in enumerate(batches)
    ]
    samples = [
        (folder / f'samples_{i}.npz', protocol | dict(part='samples'))
        for i, protocol in enumerate(of_batch)
    ]
    features = (
        [
            (
                folder / f'statistics_{i}.npz',
                protocol | dict(part='features', extractor=run.extractor.protocol),
            )
            for i, protocol in enumerate(of_batch)
        ]
        if measured
        else []
    )

    def work(i):
        batch = results.matching(*samples[i]) or drawing.draw(run.model, ('samples',), *batches[i])
        return batch, run.extractor.run(batch['samples']) if measured else None

    missing = [
        i
        for i in range(len(batches))
        if any(results.matching(*file) is None for file in (samples[i], *features[i : i + 1]))
    ]
    missing = distributed.broadcast(missing)
    if missing and distributed.is_main():
        report.unlink(missing_ok=True)  # of other samples
    for i, (batch, found) in progress(
        distributed.in_turns(missing, work), 'sampling', len(missing), 'batch'
    ):
        if results.matching(*samples[i]) is None:  # else it was there, without its features
            results.save(*samples[i], **batch)
        if measured:
            results.save(*features[i], **found)
    if not distributed.is_main():
        return
    reports.save_grid(folder / 'samples.png', results.matching(*samples[0])['samples'][:100])
    _remove_others(
        [*folder.glob('samples_*.npz'), *folder.glob('statistics_*.npz')],
        [path for path, _ in samples + features],
    )

    def measure():
        parts = [results.matching(*file) for file in features]
        gathered = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        nfe = np.mean([int(results.matching(*file)['nfe']) for file in samples])
        return evaluation.measure(
            gathered, run.real, settings.is_splits, config.device, run.other
        ) | dict(nfe=nfe)

    if measured:
        results.stored(
            report,
            run.protocol
            | dict(
                part='metrics',
                sampling=config.sampling.to_dict(),
                batch_size=settings.batch_size,
                num_samples=settings.num_samples,
                is_splits=settings.is_splits,
                extractor=run.extractor.protocol,
                reference=run.real.protocol,
                floor=run.other and run.other.protocol,
            ),
            measure,
        )


def _remove_others(paths, kept):
    """Deletes what an earlier evaluation with other settings left behind."""
    others = sorted(set(paths) - set(kept))
    for path in others:
        path.unlink()
    if others:
        logging.info(
            'Removed %d files that an evaluation with other settings had left, from %s on.',
            len(others),
            others[0],
        )
