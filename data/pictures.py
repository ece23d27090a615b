"""Decode the bytes of a picture's file to an array with Pillow."""

import io

import numpy as np
from ml_collections import ConfigDict

from data.images import UnreadableImage, reason
from data.levels import check_values, in_8_bits
from runtime.errors import UserError

ORIENTATION = 0x0112  # the EXIF tag of the orientation of a picture


class PictureDecoder:
    """A function from the bytes of a picture's file to an array (H, W, C), uint8.

    Transparent pixels become white. Only the first of several frames is read. Up to 256 grey levels
    do not change; the levels of 16-bit pictures become 256.

    Args:
        data: `config.data` with `image_size`, `num_channels` and `fit`: 'crop' takes the middle
            square and resizes it by an antialiased bicubic filter; 'exact' raises UserError unless
            the picture has the right size.
        levels: White is the value levels - 1. 0: White is the largest value of the type.

    Raises:
        UnreadableImage: when called, if the picture is corrupt or cannot be decoded.
    """

    def __init__(self, data: ConfigDict, levels: int = 0):
        self.size = data.image_size
        self.channels = data.num_channels
        self.exact = data.fit.lower() == 'exact'
        self.mode = {1: 'L', 3: 'RGB'}[data.num_channels]
        self.levels = levels
        self.white = min(levels or 256, 256) - 1

    def __call__(self, content: bytes) -> np.ndarray:
        from PIL import UnidentifiedImageError

        try:
            return self._convert(_opened(content, self.levels))
        except UserError:
            raise
        except UnidentifiedImageError as error:
            raise UnreadableImage('is not a picture') from error
        except Exception as error:  # Pillow's decoders raise errors of many kinds
            raise UnreadableImage(f'cannot be decoded: {reason(error)}') from error

    def _convert(self, image) -> np.ndarray:
        from PIL import Image

        if image.mode.startswith('I'):  # 16 bits
            image = Image.fromarray(in_8_bits(np.asarray(image), self.levels))
        if 'A' in image.mode or 'transparency' in image.info:
            white = Image.new('RGBA', image.size, (self.white, self.white, self.white, 255))
            image = Image.alpha_composite(white, image.convert('RGBA'))
        if image.mode != self.mode:
            image = image.convert(self.mode)
        if self.white < 255:
            check_values(np.asarray(image), self.white + 1)
        if image.size != (self.size, self.size):
            image = self._resized(image)
        pixels = np.minimum(np.asarray(image), self.white)  # bicubic filters overshoot
        return pixels.reshape(self.size, self.size, self.channels)

    def _resized(self, image):
        from PIL import Image

        if self.exact:
            raise UserError(
                f'has {image.width}x{image.height} pixels; config.data.image_size is {self.size}: '
                '--config.data.fit=crop crops the middle square of each picture and resizes it'
            )
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        middle = (left, top, left + side, top + side)
        return image.resize((self.size, self.size), Image.BICUBIC, box=middle)


def _opened(content: bytes, levels: int):
    """Return the Pillow image in a file, rotated as its EXIF data specify.

    If only the EXIF data are corrupt, the picture is read without them.
    """
    try:
        return _loaded(content, levels)
    except UnreadableImage:
        raise
    except Exception:  # Pillow raises errors of many kinds
        without = _without_exif(content)
        if without == content:
            raise
        return _loaded(without, levels)


def _loaded(content: bytes, levels: int):
    from PIL import Image

    image = Image.open(io.BytesIO(content))
    if image.mode == 'F':
        raise UnreadableImage(
            'holds floating-point values; expected whole numbers of 8 or 16 bits: convert it'
        )
    if levels > 256 and ';16' in str(image.tile) and not image.mode.startswith('I'):
        raise UnreadableImage(
            'has several channels of 16 bits, of which only the upper 8 can be read: '
            f'config.data.levels={levels} needs pictures with one channel of 16 bits, or a 16-bit '
            'array (data.dataset=NPZ)'
        )
    if image.format == 'TIFF':
        # load() would follow the pointers in the EXIF data, which may be corrupt
        image.getexif().get_ifd = lambda tag: {}
    image.load()
    turns = {
        2: Image.FLIP_LEFT_RIGHT,
        3: Image.ROTATE_180,
        4: Image.FLIP_TOP_BOTTOM,
        5: Image.TRANSPOSE,
        6: Image.ROTATE_270,
        7: Image.TRANSVERSE,
        8: Image.ROTATE_90,
    }
    turn = turns.get(image.getexif().get(ORIENTATION))
    return image if turn is None else image.transpose(turn)


def _without_exif(content: bytes) -> bytes:
    """Return the file with its EXIF data removed (PNG) or renamed so that decoders ignore them."""
    if content.startswith(b'\x89PNG') and b'eXIf' in content:
        start = content.index(b'eXIf') - 4  # length (4 bytes), name (4), data, checksum (4)
        length = int.from_bytes(content[start : start + 4], 'big')
        return content[:start] + content[start + 12 + length :]
    return content.replace(b'Exif', b'none').replace(b'EXIF', b'none')
