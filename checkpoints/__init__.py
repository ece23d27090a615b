"""Training states in files, and the formats of other programs."""

from checkpoints.files import (
    Saver,
    config_of,
    find_resumable,
    latest,
    load,
    only_writer,
    previous,
    restore,
    resume_path,
    save,
    snapshot_numbers,
    snapshot_path,
    wait_for,
)

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
