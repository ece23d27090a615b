"""Reference statistics of a data set: --mode stats."""

import os
import pathlib

from absl import logging
from ml_collections import ConfigDict

import evaluation
from commands import preflight
from metrics.reference import get_reference, statistics_path
from runtime import distributed, interruption


@interruption.interruptible()
def statistics(config: ConfigDict, workdir: str | os.PathLike = '') -> pathlib.Path:
    """Compute the reference statistics of the config's data set and extractor, if not done yet.

    Returns:
        The path of the statistics file.
    """
    config = preflight.check(config, workdir, 'stats')
    with distributed.main_first():
        extractor = evaluation.get_extractor(config)
    real = get_reference(config, extractor, config.eval.stats_split)
    path = statistics_path(config, extractor, config.eval.stats_split)
    if real:
        logging.info('Found the features of %d images in %s.', len(real.features), path)
    return path
