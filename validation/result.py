"""A `Model` to validate, and the `Result` of its validation."""

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
        name: name of the model in the report.
        config_path: path of its config, with :argument as for --config.
        source: file or folder in any of the `checkpoints.formats`.
        paper: the published model with this config, if it exists.
    """

    name: str
    config_path: str
    source: pathlib.Path
    paper: Published | None = None

    @property
    def slug(self) -> str:
        """The name with all characters replaced that file names should not contain."""
        return re.sub(r'[^\w.-]+', '_', self.name)


@dataclasses.dataclass
class Result:
    """All results of the validation of a model.

    Args:
        model: the checkpoint.
        config: its config, with the settings of the validation.
        about: 'source', 'format', 'digest', 'step' and 'parameters' of the checkpoint.
        workdir: work directory of its evaluation; None if the checkpoint could not be read.
        number: number of the checkpoint in that work directory.
        checks: results of the checks, in the order of the report.
        numbers: numbers of its evaluation.
        denoising: errors of denoising; None without a data set.
        left_out: the reason for each part that could not be measured.
        costs: cost of a 'sample' and a 'likelihood': seconds per image, NFE, number of images.
        images: at most 1000 samples, 8-bit (n, H, W, C).
        real: at most 1000 test images; None without a data set.
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
        """The sampling method, in lower case."""
        return self.config.sampling.method.lower()

    def solver(self, what: str) -> str:
        """Describe the sampler of a 'sample' or the solver of a 'likelihood' in a few words."""
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
