"""A score network together with its SDE, the scaling and shape of its data, and its config.

    model = ScoreModel.load('runs/quickstart')
    images = model.sample(16)                                   # with the sampler of the config
    images = model.sample(16, method='heun', steps=18, seed=0)  # with another sampler
    result = model.log_likelihood(images)                       # .bpd, .nats, .bpd_stderr, .z
    filled = model.inpaint(images, mask='right')
    z = model.encode(images)
    back = model.decode(z)

Images are (B, C, H, W) in [0, 1]. `score`, `denoise`, `noise` and `perturb` (models/score.py) take
x as the network sees it: `model.scale` and `model.unscale` convert. A network and an SDE of your
own, on data of any rank, make a model as well: `ScoreModel(network, sde, shape=(2,))` samples,
computes likelihoods and trains (`loss`).
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping

import torch
from ml_collections import ConfigDict

import checkpoints
import datasets
import likelihood
import losses
import sampling
import sde_lib
from checkpoints import formats
from checkpoints.loading import load_averaged_model, load_classifier, locate
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
        sde: the SDE it was trained for.
        continuous: whether it was trained on continuous times.
        guides: guidance, see `Score`; better set by `guided`.
        shape: of one sample, such as (3, 32, 32).
        centered: whether the network sees data x as 2 x - 1 rather than as they are.
        levels: the number of grey levels, for bits/dim; 1 for data without levels.
        config: the config whose `sampling`, `control` and `eval` sections are the defaults of the
            methods.
    """

    def __init__(
        self,
        network,
        sde,
        continuous=True,
        guides=(),
        *,
        shape=None,
        centered=False,
        levels=1,
        config=None,
    ):
        super().__init__(network, sde, continuous, guides)
        self.shape, self.centered, self.config = shape and tuple(shape), centered, config
        self._levels = levels

    def __repr__(self):
        size = (
            f', {sum(parameter.numel() for parameter in self.network.parameters()):,} parameters'
            if self.parameter() is not None
            else ''
        )
        guided = f', {len(self.guides)} guides' if self.guides else ''
        about = f'shape={self.shape}, continuous={self.continuous}{size}{guided}'
        return f'ScoreModel({self.sde!r}, {about})'

    # Where models come from -----------------------------------------------------------------------

    @classmethod
    def from_config(cls, config: ConfigDict, network=None) -> 'ScoreModel':
        """The model that `config` describes, with a new network unless one is given."""
        network, config = network or create_model(config), defaults.complete(config)
        data = config.data
        return cls(
            network,
            sde_lib.get_sde(config),
            config.training.continuous,
            shape=(data.num_channels, data.image_size, data.image_size),
            centered=data.centered,
            levels=None,
            config=config,
        )

    @classmethod
    def load(cls, path, config: ConfigDict | None = None, device=None) -> 'ScoreModel':
        """Load a trained model, with its averaged weights, ready to sample from.

        Args:
            path: a work directory (its latest checkpoint), a checkpoint, a safetensors file, a
                folder of `save` or of diffusers, the name of a model that comes with the library
                ('mnist-vp'), or a repository of the Hugging Face hub ('google/ddpm-cifar10-32').
            config: the config; None: the one in the checkpoint or beside it.
            device: where the network goes; None: a GPU if there is one.

        Raises:
            UserError: if there is no checkpoint or no config, if they do not fit each other, or if
                `config` defines another model.
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

    def save(self, folder):
        """Write `model.safetensors` and `config.json` to a folder, from which `load` reads them."""
        if self.config is None:
            raise UserError(
                'only a model with a config can be saved: pass config= to ScoreModel, '
                'or use torch.save for the network'
            )
        folder, network = pathlib.Path(folder), getattr(self.network, 'module', self.network)
        folder.mkdir(parents=True, exist_ok=True)
        formats.safetensors.save(folder / 'model.safetensors', network.state_dict())
        stored.write(self.config, folder)

    # What the data are ----------------------------------------------------------------------------

    @property
    def levels(self) -> int:
        """The number of grey levels of the data."""
        return datasets.get_levels(self.config) if self._levels is None else self._levels

    @property
    def num_classes(self) -> int:
        """The number of classes that the network can be conditioned on, 0 for none."""
        return getattr(getattr(self.network, 'module', self.network), 'num_classes', 0)

    def scale(self, x):
        """Data as the network sees them."""
        return 2 * x - 1 if self.centered else x

    def unscale(self, y):
        """Data as they are, images in [0, 1]; the inverse of `scale`."""
        return (y + 1) / 2 if self.centered else y

    def _input(self, x):
        """A tensor as the network sees it, on its device."""
        parameter, x = self.parameter(), torch.as_tensor(x)
        if not x.is_floating_point():
            raise UserError(
                f'expected floating-point data (images in [0, 1]), got {x.dtype}: '
                f'divide grey levels by {self.levels - 1}'
            )
        return self.scale(x if parameter is None else x.to(parameter.device))

    # Guidance and training ------------------------------------------------------------------------

    def guided(self, classes, weight: float | None = None, classifier=None) -> 'ScoreModel':
        """The model guided towards `classes` (B,), for batches of B samples.

        `weight`: of the guidance; None: `sampling.guidance` of the config. `classifier`: for a
        network that is not conditioned on classes, a classifier of noisy images, `classifier(x,
        label) -> logits`, or the path of one (`load_classifier`). Other guidance: `guided_by`.
        """
        if isinstance(classifier, (str, pathlib.Path)):
            if self.config is None:
                raise UserError(
                    'only a model with a config can load a classifier: pass the network'
                )
            classifier = load_classifier(classifier, self.config)
        weight = self._settings('sampling')['guidance'] if weight is None else weight
        classes = torch.as_tensor(classes)
        if classifier is None and not (
            self.num_classes
            and len(classes)
            and 0 <= classes.min() <= classes.max() < self.num_classes
        ):
            raise UserError(
                f'classes must be between 0 and {self.num_classes - 1}, got {classes.tolist()}'
                if self.num_classes
                else 'the network is not conditioned on classes: pass a classifier of noisy images'
            )
        return self.guided_by(
            classifier_guidance(self.sde, classifier, classes, weight)
            if classifier
            else classifier_free_guidance(classes, weight)
        )

    def loss(self, x, likelihood_weighting: bool = False, reduce_mean: bool = True, **condition):
        """The denoising score matching loss (Eq. 7) of a batch of data (B, ...), to be minimized:
        see `losses.get_loss_fn`.
        """
        loss_fn = losses.get_loss_fn(
            self.sde, True, reduce_mean, self.continuous, likelihood_weighting
        )
        return loss_fn(self.network, self._input(x), **condition)

    # Samples --------------------------------------------------------------------------------------

    def options(self, **settings) -> sampling.Options:
        """The sampler of the config's `sampling` section, with `settings` in place of its
        values.
        """
        chosen = self._settings('sampling') | settings
        names = {field.name for field in dataclasses.fields(sampling.Options)} | set(OF_IMAGES)
        solver = sampling.Options.of(chosen).solver()
        if unknown := settings.keys() - names - set(solver.settings if solver else ()):
            raise UserError(
                'setting must be one of '
                f'{", ".join(sorted(names - {"own", "centered"}))}, got '
                f'{sorted(unknown)[0]!r}'
            )
        return sampling.Options.of(chosen, centered=self.centered)

    def sample(
        self,
        n: int,
        seed: int | None = None,
        classes=None,
        batch_size: int | None = None,
        **settings,
    ):
        """Draw `n` samples.

        Args:
            n: how many.
            seed: of the random numbers; None: the current state of PyTorch's generator.
            classes: (n,) for a network that is conditioned on classes; None: drawn uniformly.
            batch_size: how many are drawn together; None: all. Without `seed_per_image` the samples
            of a seed depend on it. **settings: keys of `config.sampling`, such as method='heun',
            steps=18, guidance=2.0, seed_per_image=True.

        Returns:
            The samples (n, *shape), images in [0, 1].
        """
        if self.num_classes and classes is None and not self.guides:
            with _seeded(seed, 'classes'):
                classes = torch.randint(self.num_classes, (n,))
        parts, batch_size, streams = [], batch_size or n, contextlib.nullcontext()
        chosen = self._settings('sampling') | settings
        alone = chosen['seed_per_image']
        begin = seed if seed is not None or not alone else int(torch.randint(2**56, ()))
        for first in range(0, n, batch_size):
            count = min(batch_size, n - first)
            if alone:
                streams = per_image(range(begin + first, begin + first + count))
            model = (
                self
                if classes is None
                else self.guided(classes[first : first + count], chosen['guidance'])
            )
            with _seeded(seed, first), streams:
                parts.append(model.draw(count, **settings)[0])
        return torch.cat(parts)

    def draw(self, n: int, loop: sampling.Loop | None = None, **settings):
        """Draw one batch, as `sample` does: the samples, and the number of network evaluations."""
        if self.shape is None:
            raise UserError('the shape of the data is unknown: pass shape= to ScoreModel')
        x, nfe = sampling.sample(
            self, (n, *self.shape), self.options(**settings), loop=loop or sampling.Loop()
        )
        return self._images(x, settings), nfe

    def _images(self, x, settings):
        x = self.unscale(x)
        return (
            sampling.round_to_8_bits(x) if (self._settings('sampling') | settings)['round'] else x
        )

    # Likelihoods and latent codes -----------------------------------------------------------------

    def log_likelihood(self, x, seed: int | None = None, **settings) -> likelihood.Likelihood:
        """Compute log p(x) in nats, and bits/dim, of data (B, ...).

        Integer input, such as 8-bit images, is dequantized: (x + u) / levels with u uniform in [0,
        1). Floating-point input is not changed. `settings`: fields of `likelihood.Options`; their
        defaults are those of `config.eval.bpd_*`.
        """
        chosen, x = self._settings('eval'), torch.as_tensor(x)
        chosen = {
            key: chosen[f'bpd_{key}'] for key in ('probes', 'method', 'rtol', 'atol')
        } | settings
        with _seeded(seed, 'likelihood'):
            if not x.is_floating_point():
                if int(x.min()) < 0 or int(x.max()) >= self.levels:
                    raise UserError(
                        f'expected grey levels from 0 to {self.levels - 1}, got '
                        f'{x.min()} to {x.max()}'
                    )
                x = (x + torch.rand(x.shape)) / self.levels
            return likelihood.log_likelihood(
                self, self._input(x), self.unscale, self.levels, likelihood.Options(**chosen)
            )

    def encode(self, x, **settings):
        """The latent codes, shape of x, to which the probability flow carries data (B, ...).

        `settings` as for `sample`, but the method is 'ode', with the tolerances of
        `config.control`, unless one is given.
        """
        return latents.encode(self, self._input(x), self._flow(settings))[0]

    def decode(self, z, **settings):
        """The data that have the latent codes z (B, ...): the inverse of `encode`."""
        return self._images(latents.decode(self, z, self._flow(settings))[0], settings)

    def _flow(self, settings):
        control = self._settings('control')
        return self.options(
            **dict(method='ode', rtol=control['rtol'], atol=control['atol']) | settings
        )

    # Measurements ---------------------------------------------------------------------------------

    def restore(self, measurement: Measurement, y, seed: int | None = None, **settings):
        """Draw images that agree with y = A x (control/measurements.py).

        Args:
            measurement: A.
            y: measured of images (B, C, H, W) in [0, 1].
            seed: of the random numbers.
            **settings: as for `sample`, and `resample`, `jump` and `consistency`, whose defaults
            are those of `config.control`.

        Returns:
            The images (B, C, H, W).
        """
        chosen = self._settings('control') | settings
        options = self.options(
            **{
                key: value
                for key, value in settings.items()
                if key not in ('resample', 'jump', 'consistency')
            }
        )
        repeats = options.method.lower() != 'adaptive' or 'resample' in settings
        loop = sampling.Loop(
            resample=chosen['resample'] if repeats else 1, jump=chosen['jump'] if repeats else 1
        )
        with _seeded(seed, 'restore'):
            x, _ = sample_measured(
                self, measurement, self._input(y), options, loop, chosen['consistency']
            )
        return self._images(x, settings)

    def inpaint(self, images, mask, seed: int | None = None, **settings):
        """Fill in what is missing of images (B, C, H, W).

        `mask`: what is missing ('left', 'right', 'top', 'bottom', 'center', 'border', 'half',
        'most'), or a tensor that broadcasts to the images, 1 where they are known. Everything else
        as for `restore`.
        """
        images = torch.as_tensor(images)
        mask = (
            named_mask(mask, *images.shape[-2:]) if isinstance(mask, str) else torch.as_tensor(mask)
        )
        measurement = Mask(mask)
        filled = self.restore(measurement, measurement(images), seed, **settings)
        return torch.where(measurement.mask.to(filled.device), images.to(filled), filled)

    def _settings(self, section: str) -> Mapping:
        """A section of the config as a dict; without a config the defaults, of samplers those of
        `sampling.Options`.
        """
        if self.config is None:
            return dict(OF_IMAGES) if section == 'sampling' else defaults.base()[section].to_dict()
        return self.config[section].to_dict()


def _seeded(seed, *place):
    """A block with random numbers that follow from the seed and the place, or without a seed from
    the current state.
    """
    return contextlib.nullcontext() if seed is None else own_randomness(seed, *place)
