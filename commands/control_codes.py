"""Tasks of `--mode control` that encode pictures and decode latent codes."""

from collections.abc import Callable

import numpy as np
import torch
from absl import logging

from commands import drawing
from commands.control_job import Job, Result, Task
from control import latents, named_mask
from sampling import Options


def _options(job: Job) -> Options:
    return job.model.options(rtol=job.config.control.rtol, atol=job.config.control.atol)


def _encode(job: Job, x: torch.Tensor) -> torch.Tensor:
    """Return the codes of images (n, C, H, W) as the network sees them."""
    times = latents.encoding_times(job.model.sde, _options(job))
    return _in_batches(job, latents.encode, x, 'encoding', times, forward=True)


def _decode(job: Job, z: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
    """Decode codes (..., C, H, W).

    Returns:
        8-bit images (..., H, W, C), and the images as the network sees them, (n, C, H, W) with all
        leading dimensions flattened.
    """
    times = latents.encoding_times(job.model.sde, _options(job))
    times = None if times is None else times.flip(0)
    x = _in_batches(job, latents.decode, z.flatten(0, -4), 'decoding', times)
    images = job.to_8_bits(x)
    return images.reshape(*z.shape[:-3], *images.shape[1:]), x


def _in_batches(
    job: Job, convert: Callable, x: torch.Tensor, what: str, times, forward: bool = False
) -> torch.Tensor:
    """Apply `latents.encode` or `latents.decode` to batches, with a progress bar for each."""
    parts, found, options = x.split(job.config.eval.batch_size), [], _options(job)
    for i, part in enumerate(parts, 1):
        title = f'{what} {len(part)} images, batch {i} of {len(parts)}'
        with drawing.shown_evaluations(job.model, title, times, forward):
            found.append(convert(job.model, part, options)[0])
    return torch.cat(found)


def reconstruct(job: Job) -> Result:
    """Encode each picture and decode its code. Errors are in 8-bit grey levels (of 256)."""
    x = job.inputs()
    z = _encode(job, x)
    images, decoded = _decode(job, z)
    unscale = job.model.unscale
    mean, largest = latents.reconstruction_error(unscale(x), unscale(decoded))
    logging.info(
        'Reconstructed %d images. Error in 8-bit grey levels (of 256): mean %.4f, largest %.4f.',
        len(x),
        mean.mean(),
        largest.max(),
    )
    scale = job.model.sde.prior_sampling((10000,)).std()
    # black to white spans six standard deviations of the prior
    codes = ((z / scale / 6 + 0.5).clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    arrays = dict(
        inputs=job.pictures,
        codes=z.cpu().numpy(),
        samples=images,
        mean_error=mean.cpu().numpy(),
        largest_error=largest.cpu().numpy(),
    )
    return Result(
        ('picture', 'code', 'decoded'), np.stack([job.pictures, codes, images], 1), arrays
    )


def interpolate(job: Job) -> Result:
    """Decode codes between the codes of two pictures."""
    z, fractions = _encode(job, job.inputs()), torch.linspace(0, 1, job.config.control.steps)
    codes = latents.interpolate(z[0::2], z[1::2], fractions).transpose(0, 1)
    return _between_pictures(job, codes, [f'{fraction:.3g} of the way' for fraction in fractions])


def mix(job: Job) -> Result:
    """Decode combinations of the codes of two pictures: an even mix, and halves side by side."""
    z, size = _encode(job, job.inputs()), job.config.data.image_size
    right, bottom = (1 - named_mask(side, size, size) for side in ('right', 'bottom'))
    weights = {
        'even mix': torch.tensor([1.0, 1.0]),
        'left and right half': torch.stack([1 - right, right])[:, None, None],
        'upper and lower half': torch.stack([1 - bottom, bottom])[:, None, None],
    }
    pairs = torch.stack([z[0::2], z[1::2]])
    codes = torch.stack([latents.mix(pairs, each) for each in weights.values()], 1)
    return _between_pictures(job, codes, weights)


def _between_pictures(job: Job, codes: torch.Tensor, titles) -> Result:
    """Decode codes (pairs, columns, C, H, W) and show them between the pictures of their pair."""
    images, _ = _decode(job, codes)
    pairs = job.pictures.reshape(-1, 2, *job.pictures.shape[1:])
    return Result(
        ('first picture', *titles, 'second picture'),
        np.concatenate([pairs[:, :1], images, pairs[:, 1:]], 1),
        dict(inputs=job.pictures, samples=images),
    )


def temper(job: Job) -> Result:
    """Decode the code of each picture at several temperatures."""
    z = _encode(job, job.inputs())
    temperatures = [float(t) for t in job.config.control.temperatures]
    images, _ = _decode(job, torch.stack([latents.temper(z, t) for t in temperatures], 1))
    return Result(
        ('picture', *(f'temperature {t:g}' for t in temperatures)),
        np.concatenate([job.pictures[:, None], images], 1),
        dict(inputs=job.pictures, samples=images),
    )


TASKS = {
    'reconstruct': Task(reconstruct),
    'interpolate': Task(interpolate, pictures=2),
    'temper': Task(temper),
    'mix': Task(mix, pictures=2),
}
