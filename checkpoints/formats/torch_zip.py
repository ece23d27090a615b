"""Files of `torch.save`: training states of this library and of the 2021 PyTorch release, and the
lists of NCSN's and NCSNv2's authors.

A training state is {'optimizer', 'model', 'ema', 'step'}; names in 'model' begin with 'module.'. A
list is [model, optimizer] (NCSN) or [model, optimizer, epoch, step, average] (NCSNv2), the average
{name: tensor} and there only where it was switched on. Reading executes nothing (`weights_only`),
yet takes the numpy scalars of published files.

Such a file is a zip archive without compression. Ours carry the SHA-256 of all that is in them as
the archive's comment, which any reader of zip files passes over: a byte that is not as it was
written is noticed. Of others the sums of the archive itself are checked.
"""

import hashlib
import mmap
import pathlib
import pickle
import re
import struct
import zipfile

import numpy as np
import torch

from runtime.errors import CheckpointError


def _numpy_scalars():
    """What a pickled numpy scalar is made of, under the names it has in files of numpy 1 and of
    numpy 2.
    """
    scalar = np.float64(0).__reduce__()[0]
    return [
        (scalar, 'numpy.core.multiarray.scalar'),
        (scalar, 'numpy._core.multiarray.scalar'),
        np.dtype,
        np.dtypes.Float64DType,
        np.dtypes.Float32DType,
        np.dtypes.Int64DType,
    ]


# the archive's last record, of 22 bytes: the last two are the length of the comment behind it
END = b'PK\x05\x06'
SEAL = re.compile(rb'sha256:([0-9a-f]{64})')
SEAL_LENGTH = 71


def _digest(file, count: int) -> str:
    """SHA-256 of the first `count` bytes of an open file."""
    sha = hashlib.sha256()
    file.seek(0)
    while count:
        block = file.read(min(count, 1 << 20))
        if not block:
            break
        sha.update(block)
        count -= len(block)
    return sha.hexdigest()


def seal(file):
    """Writes the digest of a zip archive, open for reading and writing, behind it."""
    size = file.seek(0, 2)
    digest = _digest(file, size - 2)
    file.seek(size - 22)
    assert file.read()[:4] == END, 'torch.save ends with the end of an archive that has no comment'
    file.seek(size - 2)
    file.write(struct.pack('<H', SEAL_LENGTH) + b'sha256:' + digest.encode())


def verify(path):
    """CheckpointError for an archive with something in it that is not as it was written, or that no
    `torch.save` has written.
    """
    with open(path, 'rb') as file:
        if file.read(2) != b'PK':
            return  # of before 2020: no archive
        size = file.seek(0, 2)
        file.seek(max(0, size - 22 - SEAL_LENGTH))
        end = file.read()
        found = SEAL.fullmatch(end[-SEAL_LENGTH:])
        sealed = found and end[:4] == END and end[20:22] == struct.pack('<H', SEAL_LENGTH)
        if sealed and _digest(file, size - SEAL_LENGTH - 2) != found[1].decode():
            raise CheckpointError(
                f'{path} is damaged: what is in it is not what was written (its SHA-256 is another)'
            )
    if not sealed and (end[-22:-18] != END or end[-2:] != b'\0\0'):
        raise CheckpointError(f'{path} is damaged, or cut short: it does not end as such files do')
    with zipfile.ZipFile(path) as archive:  # a seal tells of damage, not of the writer's intent
        entries = archive.infolist()
        if (
            any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            or sum(entry.file_size for entry in entries) > size
        ):
            raise CheckpointError(f'{path} is no checkpoint of PyTorch: it holds compressed data')
        if not sealed and (broken := archive.testzip()) is not None:
            raise CheckpointError(f'{path} is damaged: the sum of {broken} in it is another')


def _refuse_allocation(path):
    """CheckpointError for a file that asks for memory by a number alone: no checkpoint has a
    bytearray in it, which PyTorch would allow.
    """
    with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(b'bytearray') >= 0:
            raise CheckpointError(
                f'{path} is refused: besides data there is code in it, which '
                'wants to import bytearray'
            )


def matches(path: pathlib.Path) -> bool:
    """A zip file, or a pickle of before 2020."""
    if not path.is_file():
        return False
    with open(path, 'rb') as file:
        return file.read(2) in (b'PK', b'\x80\x02', b'\x80\x03', b'\x80\x04')


def load(path, device='cpu'):
    """The content of a file of `torch.save`; CheckpointError where it cannot be read without
    executing anything.
    """
    try:
        verify(path)
        _refuse_allocation(path)
        with torch.serialization.safe_globals(_numpy_scalars()):
            return torch.load(path, map_location=device, weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        wanted = re.search(r'GLOBAL ([\w.]+)', str(error))
        raise CheckpointError(
            f'{path} is refused: besides data there is code in it, which wants '
            f'to import {wanted[1]}'
            if wanted
            else f'{path} cannot be read as a checkpoint; it may be cut short, or of another kind'
        ) from error
    except (
        RuntimeError,
        EOFError,
        OSError,
        MemoryError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        AssertionError,
        # whatever a damaged file makes PyTorch's reader stumble over
        NotImplementedError,
        struct.error,
        zipfile.BadZipFile,
    ) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f'{path} cannot be read as a checkpoint; it may be cut short, or of '
            f'another kind: {reason}'
        ) from error


def bare(weights: dict) -> dict:
    """The same tensors without the 'module.' of a DataParallel in front of their names."""
    return {name.removeprefix('module.'): value for name, value in weights.items()}


def read(path, network, device='cpu') -> dict:
    """The training state in a file: as it is there, or from the list of NCSN's or NCSNv2's
    authors.
    """
    content = load(path, device)
    if isinstance(content, (list, tuple)) and content and isinstance(content[0], dict):
        return _from_list(content, network)
    if not isinstance(content, dict) or 'model' not in content:
        raise CheckpointError(f"{path} is no training state: it has no 'model'")
    return content


def _from_list(content, network) -> dict:
    weights, found = bare(content[0]), [part for part in content[2:] if isinstance(part, dict)]
    parameters = dict(network.named_parameters())
    buffers = {name: value for name, value in weights.items() if name not in parameters}
    average = buffers | bare(found[0]) if found else weights
    return dict(
        model=weights, ema=dict(named=average), step=int(content[3]) if len(content) > 3 else 0
    )
