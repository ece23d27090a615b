"""Evaluate checkpoints: --mode eval."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable

import torch
from absl import logging
from ml_collections import ConfigDict

import checkpoints
import evaluation
import reports
import sde_lib
from commands.evaluation_parts import Bits, Checkpoint, Loss, Samples, Setting
from metrics.reference import get_reference
from reports import results
from runtime import distributed
from runtime.progress import progress
from score_model import ScoreModel


def evaluate(
    config: ConfigDict, workdir: str | os.PathLike, eval_dir: pathlib.Path, numbers: Iterable[int]
) -> None:
    """Evaluate the checkpoints with the given numbers; `eval.enable_*` choose the parts.

    Args:
        config: A complete config.
        workdir: Work directory of the training.
        eval_dir: Folder of the results.
        numbers: Numbers of the checkpoints. Each is waited for up to `eval.wait_minutes`.
    """
    settings = config.eval
    enabled = (
        (Loss, settings.enable_loss),
        (Bits, settings.enable_bpd),
        (Samples, settings.enable_sampling),
    )
    setting = _setting(config, eval_dir)
    for number in numbers:
        path = checkpoints.wait_for(
            checkpoints.snapshot_path(workdir, number), settings.wait_minutes
        )
        model = ScoreModel.load(path, config)
        checkpoint = Checkpoint(setting, number, model, _protocol(config, path))
        for part, wanted in enabled:
            if wanted:
                _run(part(checkpoint))
        rows = reports.evaluation_rows(eval_dir, number) if distributed.is_main() else []
        if rows:
            logging.info(
                'Evaluated checkpoint %d, seed %d:\n%s', number, config.seed, reports.table(rows)
            )
        distributed.broadcast(None)  # all processes start to wait for the next one together


def _setting(config, eval_dir) -> Setting:
    """Load extractor and references before sampling, so that missing files are reported early."""
    setting = Setting(config, sde_lib.get_sde(config), eval_dir)
    settings = config.eval
    if not settings.enable_sampling or settings.metrics_backend == 'none':
        return setting
    with distributed.main_first():
        extractor = evaluation.get_extractor(config)
    real, other = get_reference(config, extractor, settings.stats_split), None
    if settings.metrics_floor:
        held_out = 'test' if settings.stats_split == 'train' else 'train'
        other = get_reference(config, extractor, held_out)
    return dataclasses.replace(setting, extractor=extractor, real=real, other=other)


def _protocol(config, checkpoint: pathlib.Path) -> dict:
    """Return the settings on which all results of a checkpoint depend."""
    training = dict(sde=config.training.sde, continuous=config.training.continuous)
    if config.training.precision != 'float32':
        training['precision'] = config.training.precision
    keys = ('dataset', 'image_size', 'num_channels', 'centered', 'uniform_dequantization')
    return dict(
        checkpoint=checkpoint.name,
        weights=results.digest(checkpoint),
        seed=config.seed,
        device=torch.device(config.device).type,
        model=config.model.to_dict(),
        training=training,
        data={key: config.data[key] for key in keys},
    )


def _run(part):
    """Compute the missing batches of a part; process 0 then summarizes all batches."""
    missing = distributed.broadcast(part.missing())
    found = distributed.in_turns(missing, part.compute)
    if part.title:
        found = progress(found, part.title, len(missing), 'batch')
    for k, batch in found:
        part.store(k, batch)
    if distributed.is_main():
        part.gather()
