"""Checks whether `config.data` fits a data set."""

from ml_collections import ConfigDict

from data.images import image_shape
from runtime.errors import UserError

PLACES = ('path', 'tfrecords_path', 'category')  # the keys that say where the images are
CHOICES = dict(on_error=('raise', 'skip'), fit=('crop', 'exact'), layout=('nhwc', 'nchw'))
NEUTRAL = dict(levels=0, layout='NHWC')  # keys that only some data sets use, and their defaults


def check_shape(data: ConfigDict, shape: tuple[int, int, int] | None) -> None:
    """Raise UserError if a data set cannot have images of the shape that the config sets."""
    if shape and image_shape(data) != shape:
        height, width, channels = shape
        raise UserError(
            f'config.data.image_size={data.image_size} and num_channels={data.num_channels} do not '
            f'fit {data.dataset}: its images have {height}x{width} pixels and {channels} '
            f'{"channel" if channels == 1 else "channels"}'
        )
    channels = (3,) if data.dataset.upper() in ('CELEBA', 'LSUN') else (1, 3)
    if data.num_channels not in channels:
        raise UserError(
            f'config.data.num_channels must be {" or ".join(map(str, channels))} for '
            f'{data.dataset}, got {data.num_channels}'
        )


def check_values(data: ConfigDict, keys: tuple[str, ...]) -> None:
    """Raise UserError if a key of `config.data` has a value that does not fit the data set."""
    for key in PLACES:
        if key in keys and not data[key]:
            what = f'the location of the {data.dataset} images'
            if key == 'category':
                what = f'a category of {data.dataset}, such as bedroom or church_outdoor'
            raise UserError(f'config.data.{key} is empty: set it to {what}')
    for key, known in CHOICES.items():
        if data[key].lower() not in known:
            raise UserError(
                f'config.data.{key} must be {" or ".join(map(repr, known))}, got {data[key]!r}'
            )
    for key, default in NEUTRAL.items():
        if key not in keys and str(data[key]).upper() != str(default):
            raise UserError(
                f'config.data.{key} must be {default!r} for {data.dataset}, which does '
                f'not use it, got {data[key]!r}'
            )
    if not 0 <= data.test_fraction < 1:
        raise UserError(f'config.data.test_fraction must be in [0, 1), got {data.test_fraction}')
