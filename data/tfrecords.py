"""TFRecord files: their records by index, and the images of FFHQ and CelebA-HQ in them."""

import glob
import os
from collections.abc import Callable, Iterable

import numpy as np
from ml_collections import ConfigDict

from data.images import Streamed, UnreadableImage, image_shape
from runtime.errors import UserError
from runtime.tensorflow import tensorflow


class Records:
    """The records of TFRecord files, by index.

    A record is its length (8 bytes), the checksum of the length (4), the content, and the checksum
    of the content (4). After a corrupt length, the next record is searched for within SEARCH bytes;
    the bytes in between count as one unreadable record.

    Raises:
        UserError: if a record has no valid length and no record follows within SEARCH bytes.
    """

    SEARCH = 2**24

    def __init__(self, paths: Iterable[str | os.PathLike]):
        self.paths, places = [os.fspath(path) for path in paths], []
        for k, path in enumerate(self.paths):
            with open(path, 'rb', buffering=0) as file:
                position, end = 0, os.fstat(file.fileno()).st_size
                while position < end:
                    length = _length(os.pread(file.fileno(), 12, position))
                    places.append((k, position, -1 if length is None else length))
                    if length is None:
                        position = self._next(file, position, end)
                    else:
                        position += 16 + length
        self.places = np.array(places, np.int64).reshape(-1, 3)  # file, position, length

    def _next(self, file, corrupt: int, end: int) -> int:
        """Return where the record after a corrupt one begins, or the end of the file."""
        content = os.pread(file.fileno(), self.SEARCH, corrupt)
        for k in range(1, len(content) - 11):
            if _length(content[k : k + 12]) is not None:
                return corrupt + k
        if corrupt == 0 or corrupt + len(content) < end:
            raise UserError(
                f'{file.name}: expected a record at byte {corrupt}; the file is corrupt there or '
                'not a TFRecord file'
            )
        return end

    def __len__(self) -> int:
        return len(self.places)

    def name(self, i: int) -> str:
        """Return the place of a record, for error messages."""
        k, position, _ = self.places[i]
        record = i - np.searchsorted(self.places[:, 0], k)
        return f'{self.paths[k]}: record {record}, at byte {position},'

    def __getitem__(self, i: int) -> bytes:
        k, position, length = map(int, self.places[i])
        if length < 0:
            raise UnreadableImage('has no valid length')
        # opened for each record: sets of hundreds of files would exhaust the descriptors
        with open(self.paths[k], 'rb', buffering=0) as file:
            content = os.pread(file.fileno(), length + 4, position + 12)
        if len(content) < length + 4:
            raise UnreadableImage('is truncated')
        if checksum(content[:-4]) != content[-4:]:
            raise UnreadableImage('does not match its checksum')
        return content[:-4]


def _length(header: bytes) -> int | None:
    """The length of the record that begins with these 12 bytes, or None if none does."""
    if len(header) < 12 or checksum(header[:8]) != header[8:]:
        return None
    return int.from_bytes(header[:8], 'little')


def checksum(content: bytes) -> bytes:
    """Return the CRC-32C in the form of TFRecord files: rotated, with an offset (4 bytes)."""
    import google_crc32c

    crc = google_crc32c.value(content)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, 'little')


def example_parser() -> Callable:
    """Return a function from the bytes of a tf.train.Example to its features by name."""
    tensorflow()
    from google.protobuf.message import DecodeError
    from tensorflow.core.example.example_pb2 import Example

    def parse(record):
        try:
            return Example.FromString(record).features.feature
        except DecodeError as error:
            raise UnreadableImage('is not a tf.train.Example') from error

    return parse


def load(config: ConfigDict, split: str) -> Streamed:
    """Return FFHQ or CelebA-HQ from the TFRecord files of StyleGAN; both splits are the same.

    A record has 'shape', int64[3], and 'data', the raw bytes (C, H, W).
    """
    data = config.data
    paths = sorted(glob.glob(os.path.expanduser(data.tfrecords_path)))
    if not paths:
        raise UserError(f'config.data.tfrecords_path={data.tfrecords_path!r}: no such file')
    records, parse = Records(paths), example_parser()
    expected = [data.num_channels, data.image_size, data.image_size]

    def decode(i):
        features = parse(records[i])
        shape = list(features['shape'].int64_list.value)
        content = b''.join(features['data'].bytes_list.value)
        if len(shape) != 3 or np.prod(shape) != len(content):
            raise UnreadableImage(f"has {len(content)} bytes of 'data' for a 'shape' of {shape}")
        if shape != expected:
            raise UserError(
                f'has an image of shape {shape}; expected {expected} from config.data: use the '
                'file of that resolution'
            )
        return np.frombuffer(content, np.uint8).reshape(shape).transpose(1, 2, 0), 0

    return Streamed(decode, len(records), image_shape(data), records.name, data.on_error)
