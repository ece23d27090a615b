"""`ScoreModel`: a score network with its SDE, the shape and scaling of its data, and its config.

    model = ScoreModel.load('runs/quickstart')
    images = model.sample(16)                                   # with the sampler of the config
    images = model.sample(16, method='heun', steps=18, seed=0)  # with another sampler
    result = model.log_likelihood(images)                       # .bpd, .nats, .bpd_stderr, .z
    filled = model.inpaint(images, mask='right')
    back = model.decode(model.encode(images))

Images are (B, C, H, W) in [0, 1]. The methods `score`, `denoise`, `noise` and `perturb`
(models/score.py) take x as the network sees it; `model.scale` and `model.unscale` convert. For your
own network and SDE, with data of any rank, create `ScoreModel(network, sde, shape=(2,))`: it draws
samples, computes likelihoods and has a training loss (`loss`).
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import Tensor

import checkpoints
import datasets
import likelihood
import losses
import sampling
import sde_lib
from checkpoints import formats
from checkpoints.trained import load_averaged_model, load_classifier, locate
from configs import defaults, stored
from control import latents
from control.guidance import classifier_free_guidance, classifier_guidance
from control.measurements import Mask, Measurement, named_mask
from control.projection import sample_measured
from models.score import Score
from models.utils import create_model
from runtime.errors import UserError
from runtime.randomness import own_randomness, per_image

# keys of config.sampling that are not `sampling.Options`
OF_IMAGES = dict(round=False, seed_per_image=False, guidance=1.0)


class ScoreModel(Score):
    """A score network, its SDE and its data.

    Args:
        network: called as `network(x, label)`, see `Score`.
        sde: the SDE that the network was trained for.
        continuous: whether it was trained at continuous times.
        guides: guidance, see `Score`; usually set by the method `guided`.
        shape: the shape of one sample, such as (3, 32, 32).
        centered: whether the network sees 2 x - 1 instead of data x.
        levels: the number of grey levels, for bits/dim; 1 for data without grey levels, None for
            the number in the config.
        config: its sections `sampling`, `control` and `eval` contain the defaults of the methods.
    """

    network: Callable

    def __init__(
        self,
        network: Callable,
        sde: sde_lib.SDE,
        continuous: bool = True,
        guides: Sequence[Callable] = (),
        *,
        shape: Sequence[int] | None = None,
        centered: bool = False,
        levels: int | None = 1,
        config: ConfigDict | None = None,
    ):
        super().__init__(network, sde, continuous, guides)
        self.shape = shape and tuple(shape)
        self.centered = centered
        self.config = config
        self._levels = levels

    def __repr__(self):
        parts = [repr(self.sde), f'shape={self.shape}', f'continuous={self.continuous}']
        if self.parameter() is not None:
            size = sum(parameter.numel() for parameter in self.network.parameters())
            parts.append(f'{size:,} parameters')
        if self.guides:
            parts.append(f'{len(self.guides)} guides')
        return f'ScoreModel({", ".join(parts)})'

    # Where models come from -----------------------------------------------------------------------

    @classmethod
    def from_config(cls, config: ConfigDict, network: Callable | None = None) -> 'ScoreModel':
        """Return the model that `config` describes, with a new network unless one is given."""
        network, config = network or create_model(config), defaults.complete(config)
        data = config.data
        shape = (data.num_channels, data.image_size, data.image_size)
        score = (network, sde_lib.get_sde(config), config.training.continuous)
        return cls(*score, shape=shape, centered=data.centered, levels=None, config=config)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        config: ConfigDict | None = None,
        device: torch.device | str | None = None,
    ) -> 'ScoreModel':
        """Load a trained model with its EMA weights.

        Args:
            path: a work directory (its latest checkpoint), a checkpoint, a safetensors file, a
                folder written by `save` or by diffusers, the name of a model that comes with the
                library ('mnist-vp'), or a repository of the Hugging Face hub
                ('google/ddpm-cifar10-32').
            config: the config; None: the one stored in the checkpoint or next to it.
            device: the network's device; None: the device of `config`, or a GPU if there is one.

        Raises:
            UserError: if there is no checkpoint or no config, or if `config` contradicts the config
                in the checkpoint.
        """
        path = locate(path)
        config = config or checkpoints.config_of(path)
        if config is None:
            raise UserError(
                f'{path} contains no config: pass config=, the config it was trained with'
            )
        config = ConfigDict(config.to_dict())
        if device or 'device' not in config:
            config.device = str(device or ('cuda:0' if torch.cuda.is_available() else 'cpu'))
        network = load_averaged_model(config, path)
        datasets.check_record(config, path)
        return cls.from_config(config, network)

    def save(self, folder: str | os.PathLike) -> None:
        """Write `model.safetensors` and `config.json` to a folder, from which `load` reads them."""
        if self.config is None:
            raise UserError('only a model with a config can be saved: pass config= to ScoreModel')
        network: Any = getattr(self.network, 'module', self.network)
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        formats.safetensors.save(folder / 'model.safetensors', network.state_dict())
        stored.write(self.config, folder)

    # The data -------------------------------------------------------------------------------------

    @property
    def levels(self) -> int:
        """The number of grey levels of the data."""
        return datasets.get_levels(self.config) if self._levels is None else self._levels

    @property
    def num_classes(self) -> int:
        """The number of classes of a class-conditional network, 0 for other networks."""
        return getattr(getattr(self.network, 'module', self.network), 'num_classes', 0)

    def scale(self, x: Tensor) -> Tensor:
        """Convert data to the input range of the network."""
        return 2 * x - 1 if self.centered else x

    def unscale(self, y: Tensor) -> Tensor:
        """Convert network input to data, such as images in [0, 1]: the inverse of `scale`."""
        return (y + 1) / 2 if self.centered else y

    def _input(self, x):
        """Return floating-point data as the network sees them, on its device."""
        parameter, x = self.parameter(), torch.as_tensor(x)
        if not x.is_floating_point():
            raise UserError(
                f'expected floating-point data (images in [0, 1]), got {x.dtype}: '
                f'divide grey levels by {self.levels - 1}'
            )
        return self.scale(x if parameter is None else x.to(parameter.device))

    # Guidance and training ------------------------------------------------------------------------

    def guided(
        self,
        classes: Sequence[int] | Tensor,
        weight: float | None = None,
        classifier: Callable | str | pathlib.Path | None = None,
    ) -> 'ScoreModel':
        """Return the model with guidance towards classes. For other guidance, see `guided_by`.

        Args:
            classes: class labels (B,), for batches of B samples.
            weight: the guidance scale; None: `sampling.guidance` of the config.
            classifier: for networks that are not class-conditional, a classifier of noisy images
                (see `control.classifier_guidance`), or the path of one.
        """
        if isinstance(classifier, (str, pathlib.Path)):
            if self.config is None:
                raise UserError('only a model with a config can load a classifier: pass a network')
            classifier = load_classifier(classifier, self.config)
        weight = self._settings('sampling')['guidance'] if weight is None else weight
        classes = torch.as_tensor(classes)
        if classifier is not None:
            return self.guided_by(classifier_guidance(self.sde, classifier, classes, weight))
        if not self.num_classes:
            raise UserError(
                'the network is not class-conditional: pass a classifier of noisy images'
            )
        if not (len(classes) and 0 <= classes.min() <= classes.max() < self.num_classes):
            raise UserError(
                f'classes must be between 0 and {self.num_classes - 1}, got {classes.tolist()}'
            )
        return self.guided_by(classifier_free_guidance(classes, weight))

    def loss(
        self, x: Tensor, likelihood_weighting: bool = False, reduce_mean: bool = True, **condition
    ) -> Tensor:
        """Return the denoising score matching loss (Eq. 7) of a batch of data x (B, ...).

        The options are those of `losses.get_loss_fn`. `condition` is passed to the network.
        """
        fn = losses.get_loss_fn(self.sde, True, reduce_mean, self.continuous, likelihood_weighting)
        return fn(self.network, self._input(x), **condition)

    # Samples --------------------------------------------------------------------------------------

    def options(self, **settings) -> sampling.Options:
        """Return the options in the config's `sampling` section, overridden by `settings`."""
        chosen = self._settings('sampling') | settings
        names = {field.name for field in dataclasses.fields(sampling.Options)} | set(OF_IMAGES)
        solver = sampling.Options.of(chosen).solver()
        if unknown := settings.keys() - names - set(solver.settings if solver else ()):
            known = ', '.join(sorted(names - {'own', 'centered'}))
            raise UserError(f'setting must be one of {known}, got {sorted(unknown)[0]!r}')
        return sampling.Options.of(chosen, centered=self.centered)

    def sample(
        self,
        n: int,
        seed: int | None = None,
        classes: Sequence[int] | Tensor | None = None,
        batch_size: int | None = None,
        **settings,
    ) -> Tensor:
        """Draw `n` samples.

        The samples of one seed depend on `batch_size`, unless `seed_per_image=True`.

        Args:
            n: the number of samples.
            seed: the seed; None: continue with the current state of PyTorch's generator. The
                samples differ from those of `--mode sample`, which derives other seeds from it.
            classes: (n,), for a class-conditional network; None: drawn uniformly.
            batch_size: the number of samples drawn together; None: all.
            **settings: keys of `config.sampling`, such as method='heun', steps=18, guidance=2.0,
                seed_per_image=True.

        Returns:
            The samples (n, *shape), such as images in [0, 1].
        """
        if self.num_classes and classes is None and not self.guides:
            with _seeded(seed, 'classes'):
                classes = torch.randint(self.num_classes, (n,))
        chosen, batch_size = self._settings('sampling') | settings, batch_size or n
        alone, parts = chosen['seed_per_image'], []
        begin = int(torch.randint(2**56, ())) if alone and seed is None else seed or 0
        for first in range(0, n, batch_size):
            count, model = min(batch_size, n - first), self
            if classes is not None:
                model = self.guided(classes[first : first + count], chosen['guidance'])
            seeds = range(begin + first, begin + first + count)
            streams = per_image(seeds) if alone else contextlib.nullcontext()
            with _seeded(seed, first), streams:
                parts.append(model.draw(count, **settings)[0])
        return torch.cat(parts)

    def draw(
        self, n: int, loop: sampling.Loop | None = None, seed: int | None = None, **settings
    ) -> tuple[Tensor, int]:
        """Draw one batch of samples and count the network evaluations.

        The arguments are those of `sample`, and `loop` (see `sampling.Loop`). The same seed gives
        the same samples as `sample`, but this method draws no classes (without `guided`, a
        class-conditional network gives unconditional samples) and ignores `seed_per_image`.

        Returns:
            The samples (n, *shape), and the number of network evaluations.
        """
        if self.shape is None:
            raise UserError('the shape of the data is unknown: pass shape= to ScoreModel')
        shape, options = (n, *self.shape), self.options(**settings)
        with _seeded(seed, 0):  # as the first batch of `sample`
            x, nfe = sampling.sample(self, shape, options, loop=loop or sampling.Loop())
        return self._images(x, settings), nfe

    def _images(self, x, settings):
        x = self.unscale(x)
        rounded = (self._settings('sampling') | settings)['round']
        return sampling.round_to_8_bits(x) if rounded else x

    # Likelihoods and latent codes -----------------------------------------------------------------

    def log_likelihood(
        self, x: Tensor, seed: int | None = None, **settings
    ) -> likelihood.Likelihood:
        """Compute log p(x) of data (B, ...), in nats and in bits/dim.

        Args:
            x: integers, such as 8-bit images, are dequantized to (x + u) / levels with u uniform in
                [0, 1); floating-point data are used as they are.
            seed: the seed; None: continue with the current state of PyTorch's generator.
            **settings: fields of `likelihood.Options`; their defaults are `config.eval.bpd_*`.
        """
        section, levels, x = self._settings('eval'), self.levels, torch.as_tensor(x)
        chosen = {key: section[f'bpd_{key}'] for key in ('probes', 'method', 'rtol', 'atol')}
        options = likelihood.Options(**chosen | settings)
        with _seeded(seed, 'likelihood'):
            if not x.is_floating_point():
                if int(x.min()) < 0 or int(x.max()) >= levels:
                    raise UserError(
                        f'expected grey levels from 0 to {levels - 1}, got {x.min()} to {x.max()}'
                    )
                x = (x + torch.rand(x.shape).to(x.device)) / levels
            return likelihood.log_likelihood(self, self._input(x), self.unscale, levels, options)

    def encode(self, x: Tensor, **settings) -> Tensor:
        """Map data (B, ...) to their latent codes, shape of x, by the probability-flow ODE.

        `settings` are those of `sample`. By default the method is 'ode' with the tolerances of
        `config.control`.
        """
        return latents.encode(self, self._input(x), self._flow(settings))[0]

    def decode(self, z: Tensor, **settings) -> Tensor:
        """Map latent codes z (B, ...) to data: the inverse of `encode` with the same settings."""
        x, _ = latents.decode(self, torch.as_tensor(z), self._flow(settings))
        return self._images(x, settings)

    def _flow(self, settings):
        control = self._settings('control')
        flow = dict(method='ode', rtol=control['rtol'], atol=control['atol'])
        return self.options(**flow | settings)

    # Measurements ---------------------------------------------------------------------------------

    def restore(
        self, measurement: Measurement, y: Tensor, seed: int | None = None, **settings
    ) -> Tensor:
        """Draw images that agree with y = A x.

        Args:
            measurement: A, see control/measurements.py.
            y: the measured values of images (B, C, H, W) in [0, 1].
            seed: the seed; None: continue with the current state of PyTorch's generator.
            **settings: those of `sample`, and `resample`, `jump` and `consistency`, whose defaults
                are those of `config.control`.

        Returns:
            The images (B, C, H, W) in [0, 1].
        """
        chosen = self._settings('control') | settings
        of_loop = ('resample', 'jump', 'consistency')
        options = self.options(**{k: v for k, v in settings.items() if k not in of_loop})
        loop = sampling.Loop(resample=chosen['resample'], jump=chosen['jump'])
        if options.method.lower() == 'adaptive' and 'resample' not in settings:
            loop = sampling.Loop()  # adaptive steps cannot be repeated
        with _seeded(seed, 'restore'):
            y, weight = self._input(y), chosen['consistency']
            x, _ = sample_measured(self, measurement, y, options, loop, weight)
        return self._images(x, settings)

    def inpaint(
        self, images: Tensor, mask: str | Tensor, seed: int | None = None, **settings
    ) -> Tensor:
        """Fill in the missing pixels of images (B, C, H, W). Known pixels do not change.

        Args:
            images: in [0, 1].
            mask: the missing region ('left', 'right', 'top', 'bottom', 'center', 'border', 'half',
                'most', see `control.named_mask`), or a tensor that broadcasts to the images and is
                1 where pixels are known, 0 where they are missing.
            seed, **settings: as for `restore`.
        """
        images = torch.as_tensor(images)
        if isinstance(mask, str):
            mask = named_mask(mask, *images.shape[-2:])
        measurement = Mask(torch.as_tensor(mask))
        filled = self.restore(measurement, measurement(images), seed, **settings)
        return torch.where(measurement.mask.to(filled.device), images.to(filled), filled)

    def _settings(self, section: str) -> dict:
        """Return a section of the config, or its defaults if there is no config.

        The defaults of samplers are those of `sampling.Options`.
        """
        if self.config is not None:
            return self.config[section].to_dict()
        return dict(OF_IMAGES) if section == 'sampling' else defaults.base()[section].to_dict()


def _seeded(seed, *place):
    """Return a context with random numbers derived from `seed` and `place`, if seed is not None."""
    return contextlib.nullcontext() if seed is None else own_randomness(seed, *place)
