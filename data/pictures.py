"""From the bytes of a picture to an array."""

import io
from collections.abc import Callable

import numpy as np

from data.images import Damaged
from data.levels import check_values, in_8_bits
from data.listing import reason
from runtime.errors import UserError


def pictures(data, levels: int = 0) -> Callable[[bytes], np.ndarray]:
    """Return a function from the bytes of a picture's file to (H, W, C) of type uint8, with the
    size and channels of `config.data`.

    fit='crop': the middle square, resized by an antialiased bicubic filter. fit='exact': as it is,
    or UserError. What is transparent becomes white. Of several frames the first is taken. `levels`:
    white is the value levels - 1; 0: the largest of the file's type. Up to 256 values stay as they
    are; of 16 bits, `levels` values become 256. The function raises Damaged for whatever the
    decoder cannot read.
    """
    from PIL import Image, UnidentifiedImageError

    size, channels, exact = data.image_size, data.num_channels, data.fit == 'exact'
    mode, white = {1: 'L', 3: 'RGB'}[channels], min(levels or 256, 256) - 1

    def convert(image):
        if image.mode.startswith('I'):  # 16 bits
            image = Image.fromarray(in_8_bits(np.asarray(image), levels))
        if 'A' in image.mode or 'transparency' in image.info:
            image = image.convert('RGBA')
            image = Image.alpha_composite(
                Image.new('RGBA', image.size, (white, white, white, 255)), image
            )
        if image.mode != mode:
            image = image.convert(mode)
        if white < 255:
            check_values(np.asarray(image), white + 1)
        if image.size != (size, size):
            if exact:
                raise UserError(
                    f'has {image.width}x{image.height} pixels, config.data.image_size '
                    f'is {size}: '
                    '--config.data.fit=crop takes the middle square of each picture '
                    'and resizes it'
                )
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.resize(
                (size, size), Image.BICUBIC, box=(left, top, left + side, top + side)
            )
        # bicubic filters overshoot
        return np.minimum(np.asarray(image), white).reshape(size, size, channels)

    def decode(content):
        try:
            return convert(_opened(content, levels))
        except UserError:
            raise
        except UnidentifiedImageError as error:
            raise Damaged('is no picture') from error
        except Exception as error:  # Pillow's decoders raise errors of many kinds
            raise Damaged(f'cannot be decoded: {reason(error)}') from error

    return decode


def _opened(content: bytes, levels: int):
    """The Pillow image in a file, turned as its EXIF data say. Where these alone are damaged, it is
    read without them.
    """
    from PIL import Image

    turns = {
        2: Image.FLIP_LEFT_RIGHT,
        3: Image.ROTATE_180,
        4: Image.FLIP_TOP_BOTTOM,
        5: Image.TRANSPOSE,
        6: Image.ROTATE_270,
        7: Image.TRANSVERSE,
        8: Image.ROTATE_90,
    }

    def load(content):
        image = Image.open(io.BytesIO(content))
        if image.mode == 'F':
            raise Damaged(
                'holds floating-point values; expected whole numbers of 8 or 16 bits: convert it'
            )
        if levels > 256 and ';16' in str(image.tile) and not image.mode.startswith('I'):
            raise Damaged(
                'has several channels of 16 bits, of which only the upper 8 can be '
                f'read: config.data.levels={levels} needs '
                'pictures with one channel of 16 bits, or a 16-bit array '
                '(data.dataset=NPZ)'
            )
        if image.format == 'TIFF':
            # load() would follow its pointers, which may lead anywhere
            image.getexif().get_ifd = lambda tag: {}
        image.load()
        turn = turns.get(image.getexif().get(0x0112))
        return image if turn is None else image.transpose(turn)

    try:
        return load(content)
    except Damaged:
        raise
    except Exception:
        without = _without_exif(content)
        if without == content:
            raise
        return load(without)


def _without_exif(content: bytes) -> bytes:
    """The same file with the EXIF data cut out (PNG), or under a name that decoders pass over."""
    if content.startswith(b'\x89PNG') and b'eXIf' in content:
        start = content.index(b'eXIf') - 4  # length (4 bytes), name (4), data, checksum (4)
        return (
            content[:start]
            + content[start + 12 + int.from_bytes(content[start : start + 4], 'big') :]
        )
    return content.replace(b'Exif', b'none').replace(b'EXIF', b'none')
