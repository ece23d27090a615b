"""Batches of arrays as tensors on the device of a network."""

from collections.abc import Callable

import torch
from ml_collections import ConfigDict

from runtime.errors import UserError


def to_tensor(batch: dict, config: ConfigDict, scaler: Callable) -> torch.Tensor:
    """Return the images of a batch as networks see them: (B, C, H, W) on the config's device."""
    images = torch.from_numpy(batch['image']).permute(0, 3, 1, 2).contiguous()
    return scaler(to_device(images, config.device))


def to_device(x: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    """Copy `x` to the device, without waiting for a GPU."""
    if torch.device(device).type == 'cuda':
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def get_classes(batch: dict, config: ConfigDict) -> dict[str, torch.Tensor]:
    """Return {'classes': (B,)} for class-conditional networks, {} for others.

    Raises:
        UserError: if a label is not below `model.num_classes`.
    """
    number = config.model.num_classes
    if not number:
        return {}
    if len(batch['label']) and not 0 <= batch['label'].min() <= batch['label'].max() < number:
        wrong = next(label for label in batch['label'] if not 0 <= label < number)
        raise UserError(
            f'the data set has the label {wrong}, but '
            f'config.model.num_classes={number}: labels start at 0, so '
            f'expected 0 to {number - 1} (--mode data counts them)'
        )
    return {'classes': to_device(torch.from_numpy(batch['label']), config.device)}
