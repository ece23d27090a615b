"""Extractors of features of 8-bit images: the pixels, or the networks of torch-fidelity.

The network of TF-GAN is in `evaluation`, which has the table of all extractors.
"""

import os
import pickle
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from ml_collections import ConfigDict

from reports import results
from runtime.errors import UserError, reason_of

TORCH_FIDELITY_WEIGHTS = (
    'https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/'
    'weights-inception-2015-12-05-6726825d.pth'
)
FID_NETWORK = 'inception-v3-compat'
BATCH = 64  # images that a network sees at a time


class Extractor(NamedTuple):
    """A function from images to features, and its protocol.

    Attributes:
        protocol: The settings of the features: backend, extractor, feature, input, weights.
        run: Function of images (B, H, W, C) uint8. It returns {'pool_3': (B, D) float32} and, for
            a classifier, 'logits' (B, classes).
    """

    protocol: dict
    run: Callable[[np.ndarray], dict[str, np.ndarray]]


def in_colour(images: np.ndarray) -> np.ndarray:
    """Repeat grey images (B, H, W, 1) to three channels."""
    return images if images.shape[-1] == 3 else np.repeat(images, 3, axis=-1)


def in_batches(run: Callable, images: np.ndarray) -> dict[str, np.ndarray]:
    """Apply `run` to batches of colour images, and join the arrays that it returns."""
    parts = [
        run(in_colour(images[start : start + BATCH])) for start in range(0, len(images), BATCH)
    ]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def pixels(config: ConfigDict) -> Extractor:
    """The pixels themselves, divided by 255."""
    return Extractor(
        dict(backend='pixels', extractor='none', feature='pixels', input='pixels divided by 255'),
        lambda images: {'pool_3': images.reshape(len(images), -1) / np.float32(255)},
    )


def torch_fidelity(config: ConfigDict) -> Extractor:
    """The network `eval.extractor` of torch-fidelity at its layer `eval.features`.

    Raises:
        UserError: if torch-fidelity, the network, the layer or the weights are not available.
    """
    name, feature = _named(config.eval.extractor, config.eval.features)
    path = os.path.expanduser(config.eval.inception_path)
    network = _load(name, feature, path).to(config.device)

    def run(images):
        x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(config.device)
        with torch.no_grad():
            found = network.convert_features_tuple_to_dict(network(x))
        return {
            'logits' if key == 'logits_unbiased' else 'pool_3': value.float().cpu().numpy()
            for key, value in found.items()
        }

    protocol = dict(
        backend='torch_fidelity',
        extractor=name,
        feature=feature,
        input='8-bit RGB, resized within the network',
        weights=results.digest(path) if path else 'as torch-fidelity fetches them',
    )
    return Extractor(protocol, lambda images: in_batches(run, images))


def _named(name: str, feature: str) -> tuple[str, str]:
    """Return the names of network and layer, by default the layer that its FID uses."""
    try:
        from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY as known
    except ModuleNotFoundError as error:
        raise UserError(
            'torch-fidelity is not installed: pip install -e ".[metrics]", or use '
            'config.eval.metrics_backend=pixels'
        ) from error
    if name not in known:
        raise UserError(
            f'config.eval.extractor must be one of {", ".join(map(repr, known))}, got {name!r}'
        )
    feature = feature or known[name].get_default_feature_layer_for_metric('fid')
    provided = known[name].get_provided_features_list()
    if feature not in provided:
        raise UserError(
            f'config.eval.features must be one of {", ".join(map(repr, provided))} for '
            f'{name}, got {feature!r}'
        )
    return name, feature


def _load(name: str, feature: str, path: str) -> torch.nn.Module:
    """Load a network on the CPU, with the weights at `path` or those that the package fetches."""
    from torch_fidelity.utils import create_feature_extractor

    classifies = name == FID_NETWORK and feature == '2048'
    features = [feature, 'logits_unbiased'] if classifies else [feature]
    weights = dict(feature_extractor_weights_path=path) if path else {}
    try:
        # torch-fidelity unpickles the file, so it must be one that contains no code (CLIP networks
        # are TorchScript)
        if path and not name.startswith('clip'):
            torch.load(path, map_location='cpu', weights_only=True)
        return create_feature_extractor(name, features, cuda=False, verbose=False, **weights)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = reason_of(error)
        if path:
            message = f'config.eval.inception_path={path!r} cannot be loaded into {name}: {reason}'
        else:
            fetched = TORCH_FIDELITY_WEIGHTS if name == FID_NETWORK else f'the weights of {name}'
            message = (
                f"config.eval.metrics_backend='torch_fidelity' needs {fetched}, which cannot be "
                f'fetched ({reason}): download it on another '
                'machine and set --config.eval.inception_path=FILE'
            )
        raise UserError(message) from error
