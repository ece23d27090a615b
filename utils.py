"""Two names that notebooks know; see `checkpoints`."""

import checkpoints


def restore_checkpoint(ckpt_dir, state, device):
    """Loads the checkpoint file `ckpt_dir` (a file, whatever the name says) into `state` and
    returns it; strict.
    """
    return checkpoints.restore(ckpt_dir, state, device)


def save_checkpoint(ckpt_dir, state):
    """Writes `state` to the file `ckpt_dir`."""
    checkpoints.save(ckpt_dir, state)
