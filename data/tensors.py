"""Batches of arrays as tensors on the device of a network."""

import torch

from runtime.errors import UserError


def to_tensor(batch: dict, config, scaler) -> torch.Tensor:
    """The images of a batch as networks see them: (B, C, H, W) on the config's device."""
    return scaler(
        to_device(torch.from_numpy(batch['image']).permute(0, 3, 1, 2).contiguous(), config.device)
    )


def to_device(x: torch.Tensor, device) -> torch.Tensor:
    """`x` on the device, which the host does not wait for."""
    return (
        x.pin_memory().to(device, non_blocking=True)
        if torch.device(device).type == 'cuda'
        else x.to(device)
    )


def get_classes(batch: dict, config) -> dict[str, torch.Tensor]:
    """{'classes': (B,)} for networks that know classes, {} for others; UserError for a label beyond
    `model.num_classes`.
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
