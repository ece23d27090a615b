"""Read and write checkpoints, also in the formats of other programs."""

from checkpoints.files import (
    Saver,
    find_resumable,
    latest,
    load,
    only_writer,
    previous,
    resume_path,
    save,
    snapshot_numbers,
    snapshot_path,
    wait_for,
)
from checkpoints.states import config_of, restore

__all__ = [
    'Saver',
    'config_of',
    'find_resumable',
    'latest',
    'load',
    'only_writer',
    'previous',
    'restore',
    'resume_path',
    'save',
    'snapshot_numbers',
    'snapshot_path',
    'wait_for',
]
