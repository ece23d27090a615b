"""Reference statistics of a data set: --mode stats."""

from absl import logging

import evaluation
from commands import preflight
from metrics.reference import get_reference, statistics_path
from runtime import distributed, interruption


@interruption.interruptible()
def statistics(config, workdir=''):
    """Compute the reference statistics of the config's data set and extractor, if there are none.

    Returns:
        Their file.
    """
    config = preflight.check(config, workdir, 'stats')
    with distributed.main_first():
        extractor = evaluation.get_extractor(config)
    real = get_reference(config, extractor, config.eval.stats_split)
    path = statistics_path(config, extractor, config.eval.stats_split)
    if real:
        logging.info('%s has the features of %d images.', path, len(real.features))
    return path
