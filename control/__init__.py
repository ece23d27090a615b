"""What samples are conditioned on: measurements, guidance, latent codes."""

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
    'sample_measured',
    'temper',
]
