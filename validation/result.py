"""What is validated, and what was found: a `Model` and its `Result`."""

import dataclasses
import pathlib
import re
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from reports import Number

from .invariants import Check, Denoising
from .published import Published


class Model(NamedTuple):
    """A checkpoint to be validated.

    Args:
        name: of the model, in the report.
        config_path: of its config, with :argument as for --config.
        source: file or folder in any of the `checkpoints.formats`.
        paper: the published model with this config, if there is one.
    """

    name: str
    config_path: str
    source: pathlib.Path
    paper: Published | None = None

    @property
    def slug(self) -> str:
        """Return the name as the name of a file."""
        return re.sub(r'[^\w.-]+', '_', self.name)


@dataclasses.dataclass
class Result:
    """All that was found of a model.

    Args:
        model: the checkpoint.
        config: its config, with the settings of the validation.
        about: 'source', 'format', 'digest', 'step' and 'parameters' of the checkpoint.
        workdir: work directory of its evaluation; None if it could not be read.
        number: of the checkpoint in that work directory.
        checks: in the order of the report.
        numbers: of its evaluation.
        denoising: errors of denoising; None if there are no images.
        left_out: the reason for each part that could not be measured.
        costs: of a 'sample' and a 'likelihood': seconds per image, NFE, number of images.
        images: at most 1000 samples (n, H, W, C), 8 bits.
        real: at most as many test images; None if there are none.
    """

    model: Model
    config: ConfigDict
    about: dict
    workdir: pathlib.Path | None = None
    number: int = 0
    checks: list[Check] = dataclasses.field(default_factory=list)
    numbers: list[Number] = dataclasses.field(default_factory=list)
    denoising: Denoising | None = None
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    costs: dict[str, tuple[float, float, int]] = dataclasses.field(default_factory=dict)
    images: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0))
    real: np.ndarray | None = None

    @property
    def method(self) -> str:
        """Return the sampling method, in small letters."""
        return self.config.sampling.method.lower()

    def solver(self, what: str) -> str:
        """Return how a 'sample' was drawn or a 'likelihood' was computed, in a few words."""
        sampling, evaluation = self.config.sampling, self.config.eval
        if what == 'likelihood':
            return f'{evaluation.bpd_method}, rtol {evaluation.bpd_rtol:g}'
        if self.method == 'ode':
            return f'{sampling.ode_method}, rtol {sampling.rtol or 1e-5:g}'
        if self.method != 'pc':
            steps = f', {sampling.steps} steps' if sampling.steps else ''
            return f'{sampling.method}{steps}'
        steps = sampling.steps or self.config.model.num_scales
        return f'{sampling.predictor} + {sampling.corrector}, {steps} steps'
