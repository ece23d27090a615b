"""Decoding of pictures from the bytes of a file to an array."""

import collections
import struct

import numpy as np
import pytest
from PIL import Image, features

from data.images import UnreadableImage
from data.pictures import PictureDecoder
from image_files import (
    config_of,
    crops,
    encoded,
    everything,
    save,
)
from runtime.errors import UserError
from runtime.tensorflow import tensorflow


def read_one(path, size, channels=3, **data):
    return everything(
        config_of('FOLDER', size, channels, path=str(path.parent), test_fraction=0.0, **data)
    )[0][0]


def test_colours_depths_and_orientation_are_understood(tmp_path):
    image = crops(1, 16)[0]
    grey = read_one(save(tmp_path / 'colour' / 'a.png', image), 16, channels=1)
    # the grey value of ITU-R 601
    assert (
        grey.shape == (16, 16, 1)
        and np.abs(grey[..., 0] - image @ np.array([0.299, 0.587, 0.114])).max() <= 1
    )
    assert np.array_equal(
        read_one(save(tmp_path / 'grey' / 'a.png', image[..., 0]), 16),
        np.repeat(image[..., :1], 3, axis=2),
    )
    palette = Image.fromarray(image).quantize(16)
    (tmp_path / 'palette').mkdir()
    palette.save(tmp_path / 'palette' / 'a.png')
    assert np.array_equal(
        read_one(tmp_path / 'palette' / 'a.png', 16), np.asarray(palette.convert('RGB'))
    )
    deep = image[..., 0].astype(np.uint16) * 256 + 77
    assert np.array_equal(
        read_one(save(tmp_path / 'deep' / 'a.png', deep), 16, channels=1)[..., 0], image[..., 0]
    )
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: rotate clockwise
    for name, options in (
        ('a.png', {}),
        ('a.webp', dict(lossless=True)),
        ('a.jpg', dict(quality=100, subsampling=0)),
    ):
        turned = read_one(save(tmp_path / name[2:] / name, image, exif=exif, **options), 16).astype(
            int
        )
        assert np.abs(turned - np.rot90(image, -1)).mean() < (2 if name == 'a.jpg' else 1e-9)


def test_other_sizes_are_cropped_or_raise_an_error(tmp_path):
    image = crops(1, 20, 40)[0]
    path = save(tmp_path / 'wide' / 'a.png', image)
    assert np.array_equal(read_one(path, 20), image[:, 10:30])
    small = read_one(path, 10).astype(float)
    # a bicubic filter differs from a mean over blocks
    assert np.abs(small - image[:, 10:30].reshape(10, 2, 10, 2, 3).mean((1, 3))).mean() < 6
    with pytest.raises(
        UserError, match='wide: a.png has 40x20 pixels; config.data.image_size is 20.*fit=crop'
    ):
        read_one(path, 20, fit='exact', on_error='skip')  # a wrong size is not skipped
    assert np.array_equal(
        read_one(save(tmp_path / 'square' / 'a.png', image[:, :20]), 20, fit='exact'), image[:, :20]
    )


def test_transparent_pixels_become_white(tmp_path):
    image = np.zeros((4, 4, 4), np.uint8)
    image[..., 0], image[:2, :, 3] = 200, 255  # red, with a transparent lower half
    save(tmp_path / 'a.png', image)
    found = everything(config_of('FOLDER', 4, path=str(tmp_path), test_fraction=0.0))[0][0]
    assert np.array_equal(found[0, 0], (200, 0, 0)) and np.array_equal(found[3, 3], (255, 255, 255))


WITH_EXIF = ('PNG', 'JPEG', 'WEBP', 'AVIF', 'TIFF')


def decoder(size=8, channels=3, levels=0):
    return PictureDecoder(config_of('FOLDER', size, channels).data, levels)


def exif_data():
    exif = Image.Exif()
    exif[0x010E], exif.get_ifd(0x8769)[0x9286] = 'described', b'a comment'
    return exif


def exif_block(kind):
    """Return a picture's file, and the positions of the EXIF data in it."""
    content = encoded(crops(1, 8)[0], kind, exif=exif_data().tobytes())
    if kind == 'TIFF':  # the EXIF directory, and the pointer to it in the main directory
        pointer = content.index(b'\x69\x87')
        start = int.from_bytes(content[pointer + 8 : pointer + 12], 'little')
        return content, [*range(pointer + 4, pointer + 12), *range(start, start + 18)]
    start = content.rindex(b'MM\0*', 0, content.index(b'described'))
    return content, range(start, content.index(b'a comment', start) + len(b'a comment'))


@pytest.mark.filterwarnings('ignore')  # Pillow warns of corrupt EXIF data
@pytest.mark.parametrize('kind', WITH_EXIF)
def test_a_picture_with_corrupt_exif_data_is_read(kind):
    """If any byte of the EXIF data is changed, the pixels remain the same, perhaps rotated."""
    if kind in ('WEBP', 'AVIF') and not features.check(kind.lower()):
        pytest.skip(f'this Pillow has no {kind}')
    content, places = exif_block(kind)
    decode = decoder()
    whole = decode(content)
    turned = {np.rot90(image, k).tobytes() for image in (whole, whole[:, ::-1]) for k in range(4)}
    for place in places:
        for change in (0x01, 0x80, 0xFF):
            corrupt = bytearray(content)
            corrupt[place] ^= change
            assert decode(bytes(corrupt)).tobytes() in turned, (place, change)


def test_exif_pointers_of_tiff_files_are_not_followed():
    """The pointer has a negative position here, because its entry has a signed type."""
    content, places = exif_block('TIFF')
    corrupt, pointer = bytearray(content), places[4]
    corrupt[pointer - 6 : pointer + 4] = struct.pack('<hii', 9, 1, -38)
    assert np.array_equal(decoder()(bytes(corrupt)), decoder()(content))


@pytest.mark.filterwarnings('ignore')
def test_any_error_of_a_decoder_means_a_corrupt_picture():
    """Decode 2,000 files of all formats that Pillow writes, with changed bytes or truncated."""
    Image.init()
    rng, files, decode = np.random.default_rng(0), {}, decoder()
    exif = exif_data()
    exif[0x0112] = 6
    exif, picture = exif.tobytes(), Image.fromarray(crops(1, 8)[0])
    # all formats except those that Pillow cannot read by itself
    for kind in sorted(set(Image.SAVE) - {'PDF', 'PALM', 'EPS', 'WMF', 'BUFR', 'GRIB', 'HDF5'}):
        for mode in ('RGB', 'L', 'P', '1'):
            try:
                files[kind] = encoded(picture.convert(mode), kind, exif=exif)
                break
            except (OSError, ValueError):  # the format does not support this mode
                continue
    assert {'PNG', 'JPEG', 'TIFF', 'GIF', 'BMP'} <= files.keys()
    names, outcomes = (
        sorted(files) + [kind for kind in WITH_EXIF if kind in files] * 4,
        collections.Counter(),
    )
    for k in range(2000):
        name = names[k % len(names)]
        content = bytearray(files[name])
        for place in rng.integers(len(content), size=rng.integers(1, 5)):
            content[place] = rng.integers(256)
        if rng.random() < 0.1:
            del content[rng.integers(len(content)) :]
        try:
            image = decode(bytes(content))
            assert image.shape == (8, 8, 3) and image.dtype == np.uint8
            outcomes[name, 'read'] += 1
        except UnreadableImage as fault:
            assert str(fault).startswith(
                ('is not a picture', 'cannot be decoded: ', 'holds floating-point values')
            )
            outcomes[name, 'corrupt'] += 1
    assert (
        all(outcomes['JPEG', outcome] > 20 for outcome in ('read', 'corrupt'))
        and sum(outcomes.values()) == 2000
    )


def test_values_that_are_not_8_or_16_bit_raise_an_error():
    for values, words in (
        (np.full((8, 8), 0.5, np.float32), 'holds floating-point values'),
        (np.full((8, 8), 70000, np.int32), 'has values up to 70000, expected 0 to 65535'),
        (np.full((8, 8), -1, np.int32), 'has values down to -1'),
    ):
        with pytest.raises(UnreadableImage, match=words):
            decoder()(encoded(values, 'TIFF'))


def test_several_channels_of_16_bits_are_not_reduced_silently(tmp_path):
    """Pillow keeps only the upper 8 bits of each channel, which have little of a 12-bit value."""
    tf = tensorflow()
    content = tf.io.encode_png(crops(1, 8)[0].astype(np.uint16) << 4).numpy()
    assert decoder()(content).max() <= 15
    with pytest.raises(
        UnreadableImage, match='several channels of 16 bits.*config.data.levels=4096'
    ):
        decoder(levels=4096)(content)
