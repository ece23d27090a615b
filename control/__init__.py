"""Conditional samples: measurements, guidance, latent codes.

from control import Mask, named_mask, sample_measured

mask = Mask(named_mask('right', 28, 28))
images, nfe = sample_measured(model, mask, mask(x), options)
"""

from control.guidance import classifier_free_guidance, classifier_guidance, measurement_guidance
from control.latents import decode, encode, interpolate, mix, reconstruction_error, temper
from control.measurements import (
    Grey,
    Mask,
    Measurement,
    Separable,
    blur,
    downsampling,
    named_mask,
    register_measurement,
)
from control.projection import sample_measured

__all__ = [
    'Grey',
    'Mask',
    'Measurement',
    'Separable',
    'blur',
    'classifier_free_guidance',
    'classifier_guidance',
    'decode',
    'downsampling',
    'encode',
    'interpolate',
    'measurement_guidance',
    'mix',
    'named_mask',
    'reconstruction_error',
    'register_measurement',
    'sample_measured',
    'temper',
]
