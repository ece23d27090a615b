"""Save and restore checkpoints under the names of the 2021 release; see `checkpoints`."""

import os

import torch

import checkpoints


def restore_checkpoint(
    ckpt_dir: str | os.PathLike, state: dict, device: str | torch.device
) -> dict:
    """Load a checkpoint into `state` and return it.

    Args:
        ckpt_dir: the checkpoint file (the name of the argument is that of the 2021 release).
        state: training state; every entry must be in the file, except `rng`.
        device: where the tensors of the file are loaded to.

    Raises:
        CheckpointError: if the file cannot be read or does not fit; `state` is then unchanged.
    """
    return checkpoints.restore(ckpt_dir, state, device)


def save_checkpoint(ckpt_dir: str | os.PathLike, state: dict) -> None:
    """Write `state` to the file `ckpt_dir`; raise CheckpointError if it cannot be written."""
    checkpoints.save(ckpt_dir, state)
