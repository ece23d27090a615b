"""TFRecord files."""

import glob
import os

import numpy as np

from data.images import Damaged, Streamed, image_shape
from runtime.errors import UserError
from runtime.tensorflow import tensorflow


class Records:
    """The records of TFRecord files, by index: each is length (8 bytes), its checksum (4), the
    bytes, their checksum (4).

    Where a length is damaged, the next record is looked for within SEARCH bytes, and what lies
    between counts as one damaged record.
    """

    SEARCH = 2**24

    def __init__(self, paths):
        self.paths, places = [os.fspath(path) for path in paths], []
        for k, path in enumerate(self.paths):
            with open(path, 'rb', buffering=0) as file:
                position, end = 0, os.fstat(file.fileno()).st_size
                while position < end:
                    length = _length(os.pread(file.fileno(), 12, position))
                    places.append((k, position, -1 if length is None else length))
                    position = (
                        self._next(file, position, end)
                        if length is None
                        else position + 16 + length
                    )
        self.places = np.array(places, np.int64).reshape(-1, 3)

    def _next(self, file, damaged: int, end: int) -> int:
        """Where the record behind a damaged one begins, or the end of the file."""
        content = os.pread(file.fileno(), self.SEARCH, damaged)
        found = next(
            (
                damaged + k
                for k in range(1, len(content) - 11)
                if _length(content[k : k + 12]) is not None
            ),
            None,
        )
        if found is None and (damaged == 0 or damaged + len(content) < end):
            raise UserError(
                f'{file.name}: at byte {damaged} no record begins; the file is damaged '
                'there or no TFRecord file'
            )
        return found or end

    def __len__(self):
        return len(self.places)

    def name(self, i: int) -> str:
        k, position, _ = self.places[i]
        record = i - np.searchsorted(self.places[:, 0], k)
        return f'{self.paths[k]}: record {record}, at byte {position},'

    def __getitem__(self, i: int) -> bytes:
        k, position, length = map(int, self.places[i])
        if length < 0:
            raise Damaged('has no valid length')
        # opened anew: sets of hundreds of files would exhaust the descriptors
        with open(self.paths[k], 'rb', buffering=0) as file:
            content = os.pread(file.fileno(), length + 4, position + 12)
        if len(content) < length + 4:
            raise Damaged('is cut short')
        if checksum(content[:-4]) != content[-4:]:
            raise Damaged('does not match its checksum')
        return content[:-4]


def _length(header: bytes) -> int | None:
    """The length of the record that a header of 12 bytes begins, or None where it begins none."""
    return (
        int.from_bytes(header[:8], 'little')
        if len(header) == 12 and checksum(header[:8]) == header[8:]
        else None
    )


def checksum(content: bytes) -> bytes:
    """CRC-32C, rotated and offset, as TFRecord files have it."""
    import google_crc32c

    crc = google_crc32c.value(content)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, 'little')


def example_parser():
    """A function from the bytes of a tf.train.Example to its features."""
    tensorflow()
    from google.protobuf.message import DecodeError
    from tensorflow.core.example.example_pb2 import Example

    def parse(record):
        try:
            return Example.FromString(record).features.feature
        except DecodeError as error:
            raise Damaged('is no tf.train.Example') from error

    return parse


def tfrecords(config, split: str) -> Streamed:
    """FFHQ and CelebA-HQ as the TFRecord files of StyleGAN: 'shape' int64[3] and 'data', raw bytes
    (C, H, W). One set for both splits.
    """
    data = config.data
    paths = sorted(glob.glob(os.path.expanduser(data.tfrecords_path)))
    if not paths:
        raise UserError(
            f'config.data.tfrecords_path={data.tfrecords_path!r}: there is no such file'
        )
    records, parse, expected = (
        Records(paths),
        example_parser(),
        [data.num_channels, data.image_size, data.image_size],
    )

    def decode(i):
        features = parse(records[i])
        shape, content = (
            list(features['shape'].int64_list.value),
            b''.join(features['data'].bytes_list.value),
        )
        if len(shape) != 3 or np.prod(shape) != len(content):
            raise Damaged(f"holds {len(content)} bytes of 'data' for a 'shape' of {shape}")
        if shape != expected:
            raise UserError(
                f'has shape {shape}, the config asks for {expected}: take the file of '
                'that resolution'
            )
        return np.frombuffer(content, np.uint8).reshape(shape).transpose(1, 2, 0), 0

    return Streamed(decode, len(records), image_shape(data), records.name, data.on_error)
