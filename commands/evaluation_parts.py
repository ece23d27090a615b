"""The parts of --mode eval for a checkpoint: its loss, bits/dim, and samples with their metrics.

A `Checkpoint` contains the inputs of the parts. Each part is computed in batches, which the
processes share: `missing` lists the batches without a file of the same protocol, `compute` computes
one batch, `store` writes it, and `gather` summarizes all batches at the end. An interrupted
evaluation resumes with the missing batches.
"""

import dataclasses
import itertools
import pathlib
import time

import numpy as np
import torch
from absl import logging
from ml_collections import ConfigDict

import datasets
import evaluation
import likelihood
import losses
import reports
import sde_lib
from commands import drawing
from data.batches import Batches
from data.images import Images, Streamed, Subset, at_most
from data.tensors import get_classes, to_tensor
from metrics.extractors import Extractor
from metrics.reference import Reference
from reports import results
from runtime import distributed
from runtime.randomness import own_randomness
from score_model import ScoreModel


@dataclasses.dataclass(frozen=True)
class Setting:
    """The inputs that the evaluations of all checkpoints share.

    Attributes:
        config: The config.
        sde: The SDE of the config.
        eval_dir: Folder of the results.
        extractor: Extractor of features, None without metrics.
        real: Reference of the metrics, in process 0.
        other: Real images that are also compared with `real`, in process 0, or None.
        splits: Images of the splits that have been read so far.
    """

    config: ConfigDict
    sde: sde_lib.SDE
    eval_dir: pathlib.Path
    extractor: Extractor | None = None
    real: Reference | None = None
    other: Reference | None = None
    splits: dict = dataclasses.field(default_factory=dict)

    def images(self, split: str) -> Images | Streamed | Subset:
        """Return the images of a split, at most `eval.most_images`; they are read only once."""
        if split not in self.splits:
            config = self.config
            with distributed.main_first():
                found = datasets.get_split(config, split)
                self.splits[split] = at_most(found, config.eval.most_images, config.seed)
        return self.splits[split]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint to evaluate: its number, its model, and the protocol of all its results."""

    setting: Setting
    number: int
    model: ScoreModel
    protocol: dict


def _described(config, split: str) -> dict:
    """Describe the images of which losses and likelihoods are computed."""
    most = config.eval.most_images
    return datasets.describe(config, split) | (dict(at_most=most) if most else {})


class Loss:
    """The mean loss over the test set, in one file that is extended after each batch."""

    title = 'the loss'

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint, self.config = checkpoint, checkpoint.setting.config
        config, settings = self.config, self.config.training
        self.batches = Batches(
            checkpoint.setting.images('test'),
            config.eval.batch_size,
            config.seed,
            dequantize=config.data.uniform_dequantization,
        )
        self.loss_fn = losses.get_loss_fn(
            checkpoint.setting.sde,
            False,
            settings.reduce_mean,
            settings.continuous,
            settings.likelihood_weighting,
        )
        self.path = checkpoint.setting.eval_dir / f'ckpt_{checkpoint.number}_loss.npz'
        self.protocol = checkpoint.protocol | dict(
            part='loss',
            images=_described(config, 'test'),
            batch_size=config.eval.batch_size,
            reduce_mean=settings.reduce_mean,
            likelihood_weighting=settings.likelihood_weighting,
        )
        self.values, self.sizes = [], []

    def missing(self) -> list[int]:
        found = results.matching(self.path, self.protocol)
        if found is not None:
            self.values, self.sizes = [*found['all_losses']], [*found['batch_sizes']]
        return [*range(len(self.values), len(self.batches))]

    def compute(self, i: int) -> tuple[float, int]:
        """Return the mean loss and the size of batch i; both are 0 if no image can be read."""
        config, batch = self.config, self.batches.part(i)
        images = to_tensor(batch, config, datasets.get_data_scaler(config))
        if not len(images):
            return 0.0, 0
        with torch.no_grad(), own_randomness(config.seed, 'loss', i):
            loss = self.loss_fn(self.checkpoint.model.network, images, **get_classes(batch, config))
        return loss.item(), len(images)

    def store(self, i: int, found: tuple[float, int]) -> None:
        value, size = found
        self.values.append(value)
        self.sizes.append(size)
        arrays = dict(all_losses=np.array(self.values), batch_sizes=np.array(self.sizes))
        if i == len(self.batches) - 1:
            arrays['mean_loss'] = np.average(self.values, weights=self.sizes)
        results.save(self.path, self.protocol, **arrays)

    def gather(self) -> None:
        mean = np.average(self.values, weights=self.sizes)
        number = self.checkpoint.number
        logging.info('ckpt-%d loss: %.5e, of %d images', number, mean, sum(self.sizes))


class Bits:
    """Bits/dim of every image of a split, with new dequantization noise in each pass."""

    title = ''  # the solver shows its own progress

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint, self.config = checkpoint, checkpoint.setting.config
        config, settings = self.config, self.config.eval
        self.split = settings.bpd_dataset.lower()
        self.batches = Batches(
            checkpoint.setting.images(self.split),
            settings.batch_size,
            config.seed,
            dequantize=True,
        )
        solver = dict(
            rtol=settings.bpd_rtol,
            atol=settings.bpd_atol,
            method=settings.bpd_method,
            probes=settings.bpd_probes,
        )
        self.options = likelihood.Options(**solver)
        # (pass, batch) of each file
        self.places = [*itertools.product(range(settings.bpd_repeats), range(len(self.batches)))]
        name, folder = f'{self.split}_ckpt_{checkpoint.number}_bpd', checkpoint.setting.eval_dir
        self.paths = [folder / f'{name}_{k}.npz' for k in range(len(self.places))]
        common = checkpoint.protocol | dict(
            part='bpd',
            images=_described(config, self.split),
            batch_size=settings.batch_size,
            **solver,
        )
        self.protocols = [common | dict(repeat=repeat, batch=i) for repeat, i in self.places]

    def missing(self) -> list[int]:
        files = enumerate(zip(self.paths, self.protocols))
        return [k for k, file in files if results.matching(*file) is None]

    def compute(self, k: int) -> dict:
        """Return bits/dim and log-likelihoods (nats) of a batch, without its corrupt images."""
        config, model, (repeat, i) = self.config, self.checkpoint.model, self.places[k]
        batch = self.batches.part(i, repeat)
        images = to_tensor(batch, config, datasets.get_data_scaler(config))
        if not len(images):
            return dict(bpd=np.empty(0), nats=np.empty(0), repeat=repeat, nfe=0, seconds=0.0)
        started = time.monotonic()
        what = f'computing likelihoods, batch {k + 1} of {len(self.places)}'
        levels = datasets.get_levels(config)
        with (
            drawing.shown_evaluations(model, what, forward=True),
            own_randomness(config.seed, 'bpd', repeat, i),
        ):
            found = likelihood.log_likelihood(model, images, model.unscale, levels, self.options)
            bpd, nats = found.bpd.cpu().numpy(), found.nats.cpu().numpy()
        seconds = time.monotonic() - started
        return dict(bpd=bpd, nats=nats, repeat=repeat, nfe=found.nfe, seconds=seconds)

    def store(self, k: int, found: dict) -> None:
        results.save(self.paths[k], self.protocols[k], **found, files=len(self.places))
        logging.info(
            'ckpt-%d bits/dim: %.4f, of %d images (nfe %d), %d of %d',
            self.checkpoint.number,
            np.mean(found['bpd']),
            len(found['bpd']),
            found['nfe'],
            k + 1,
            len(self.places),
        )

    def gather(self) -> None:
        passes = [[] for _ in range(self.config.eval.bpd_repeats)]
        for path, protocol, (repeat, _) in zip(self.paths, self.protocols, self.places):
            found = results.matching(path, protocol)
            if found['files'] != len(self.places):  # it is from another number of passes
                results.save(path, protocol, **found | dict(files=len(self.places)))
            passes[repeat].extend(found['bpd'])
        values = np.mean(passes, 0)  # one value per image
        logging.info(
            'ckpt-%d bits/dim: %.4f +- %.4f, of %d images, each averaged over %d passes',
            self.checkpoint.number,
            values.mean(),
            values.std() / len(values) ** 0.5,
            len(values),
            len(passes),
        )
        name = f'{self.split}_ckpt_{self.checkpoint.number}_bpd_*.npz'
        _remove_others(self.checkpoint.setting.eval_dir.glob(name), self.paths)


class Samples:
    """`num_samples` samples, their features, and their metrics."""

    title = 'sampling'

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint, self.extractor = checkpoint, checkpoint.setting.extractor
        config, settings = checkpoint.setting.config, checkpoint.setting.config.eval
        self.folder = checkpoint.setting.eval_dir / f'ckpt_{checkpoint.number}'
        self.report = checkpoint.setting.eval_dir / f'report_{checkpoint.number}.npz'
        # the random numbers of a batch depend on the number of its first image
        self.batches = drawing.batches(settings.num_samples, settings.batch_size)
        self.drawn = dict(sampling=config.sampling.to_dict(), batch_size=settings.batch_size)
        self.samples = self._files('samples', part='samples')
        self.features = []
        if self.extractor:
            protocol = self.extractor.protocol
            self.features = self._files('statistics', part='features', extractor=protocol)

    def _files(self, name: str, **described) -> list[tuple[pathlib.Path, dict]]:
        """Return (path, protocol) for each batch."""
        common = self.checkpoint.protocol | self.drawn
        return [
            (self.folder / f'{name}_{i}.npz', common | dict(batch=i, size=size) | described)
            for i, (_, size) in enumerate(self.batches)
        ]

    def missing(self) -> list[int]:
        found = [
            i
            for i in range(len(self.batches))
            for file in (self.samples[i], *self.features[i : i + 1])
            if results.matching(*file) is None
        ]
        if found and distributed.is_main():
            self.report.unlink(missing_ok=True)  # it measured other samples
        return [*dict.fromkeys(found)]

    def compute(self, i: int) -> tuple[dict, dict | None]:
        """Return the samples of a batch, read from their file if it exists, and their features."""
        batch = results.matching(*self.samples[i])
        if batch is None:
            batch = drawing.draw(self.checkpoint.model, ('samples',), *self.batches[i])
        return batch, self.extractor.run(batch['samples']) if self.extractor else None

    def store(self, i: int, found: tuple[dict, dict | None]) -> None:
        batch, features = found
        if results.matching(*self.samples[i]) is None:
            results.save(*self.samples[i], **batch)
        if features is not None:
            results.save(*self.features[i], **features)

    def gather(self) -> None:
        first = results.matching(*self.samples[0])['samples'][:100]
        reports.save_grid(self.folder / 'samples.png', first)
        _remove_others(
            [*self.folder.glob('samples_*.npz'), *self.folder.glob('statistics_*.npz')],
            [path for path, _ in self.samples + self.features],
        )
        if not self.extractor:
            return
        setting, settings = self.checkpoint.setting, self.checkpoint.setting.config.eval
        protocol = self.checkpoint.protocol | dict(
            part='metrics',
            **self.drawn,
            num_samples=settings.num_samples,
            is_splits=settings.is_splits,
            extractor=self.extractor.protocol,
            reference=setting.real.protocol,
            floor=setting.other and setting.other.protocol,
        )
        results.stored(self.report, protocol, self._measure)

    def _measure(self) -> dict:
        setting = self.checkpoint.setting
        parts = [results.matching(*file) for file in self.features]
        features = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        splits, device = setting.config.eval.is_splits, setting.config.device
        found = evaluation.measure(features, setting.real, splits, device, setting.other)
        nfe = np.mean([int(results.matching(*file)['nfe']) for file in self.samples])
        return found | dict(nfe=nfe)


def _remove_others(paths, kept):
    """Delete `paths` that are not in `kept`: files of an evaluation with other settings."""
    others = sorted(set(paths) - set(kept))
    for path in others:
        path.unlink()
    if others:
        logging.info(
            'Removed %d files of an evaluation with other settings, starting with %s.',
            len(others),
            others[0],
        )
