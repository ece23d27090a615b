"""Features of images: pixels, and the networks of torch-fidelity."""

import os
import pickle
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from reports import results
from runtime.errors import UserError

TORCH_FIDELITY_WEIGHTS = (
    'https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/'
    'weights-inception-2015-12-05-6726825d.pth'
)


class Extractor(NamedTuple):
    """run(images (B, H, W, C) uint8) gives {'pool_3': (B, D) float32}, with 'logits' (B, classes)
    of a classifier; `protocol` says how.
    """

    protocol: dict
    run: Callable


def pixels(config) -> Extractor:
    return Extractor(
        dict(backend='pixels', extractor='none', feature='pixels', input='pixels divided by 255'),
        lambda images: {'pool_3': images.reshape(len(images), -1) / np.float32(255)},
    )


def in_colour(images: np.ndarray) -> np.ndarray:
    return images if images.shape[-1] == 3 else np.repeat(images, 3, axis=-1)


def torch_fidelity(config) -> Extractor:
    try:
        from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY as known
        from torch_fidelity.utils import create_feature_extractor
    except ModuleNotFoundError as error:
        raise UserError(
            'torch-fidelity is not installed: pip install -e ".[metrics]", or use '
            'config.eval.metrics_backend=pixels'
        ) from error
    name, path = config.eval.extractor, os.path.expanduser(config.eval.inception_path)
    if name not in known:
        raise UserError(
            f'config.eval.extractor must be one of {", ".join(map(repr, known))}, got {name!r}'
        )
    feature = config.eval.features or known[name].get_default_feature_layer_for_metric('fid')
    provided = known[name].get_provided_features_list()
    if feature not in provided:
        raise UserError(
            f'config.eval.features must be one of {", ".join(map(repr, provided))} for '
            f'{name}, got {feature!r}'
        )
    classifies = name == 'inception-v3-compat' and feature == '2048'
    try:
        # (TorchScript) torch-fidelity unpickles the file: only one without code gets there
        if path and not name.startswith('clip'):
            torch.load(path, map_location='cpu', weights_only=True)
        network = create_feature_extractor(
            name,
            [feature, 'logits_unbiased'] if classifies else [feature],
            cuda=False,
            verbose=False,
            **(dict(feature_extractor_weights_path=path) if path else {}),
        ).to(config.device)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        source = (
            TORCH_FIDELITY_WEIGHTS
            if name == 'inception-v3-compat'
            else 'the weights that torch-fidelity names for it'
        )
        raise UserError(
            f'config.eval.inception_path={path!r} cannot be loaded into {name}: {reason}'
            if path
            else f"config.eval.metrics_backend='torch_fidelity' needs {source}, which cannot be "
            'fetched '
            f'({reason}): download it elsewhere and '
            'give it as --config.eval.inception_path=FILE'
        ) from error

    def run(images):
        parts = []
        for start in range(0, len(images), 64):
            x = (
                torch.from_numpy(in_colour(images[start : start + 64]))
                .permute(0, 3, 1, 2)
                .contiguous()
                .to(config.device)
            )
            with torch.no_grad():
                parts.append(network.convert_features_tuple_to_dict(network(x)))
        found = {
            key: torch.cat([part[key] for part in parts]).float().cpu().numpy() for key in parts[0]
        }
        return {
            'logits' if key == 'logits_unbiased' else 'pool_3': value
            for key, value in found.items()
        }

    return Extractor(
        dict(
            backend='torch_fidelity',
            extractor=name,
            feature=feature,
            input='8-bit RGB, resized within the network',
            weights=results.digest(path) if path else 'as torch-fidelity fetches them',
        ),
        run,
    )
