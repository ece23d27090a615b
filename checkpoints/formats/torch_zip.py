"""Files of `torch.save`: training states of this library and of the 2021 release, lists of NCSN.

A training state is {'optimizer', 'model', 'ema', 'step'}; names in 'model' begin with 'module.'. A
list is [model, optimizer] (NCSN) or [model, optimizer, epoch, step, average] (NCSNv2), where the
average {name: tensor} exists only if training used it. Loading never executes code from the file
(`weights_only`), and accepts the numpy scalars in files of the 2021 release.

The file is an uncompressed zip archive. In files of this library, the comment of the archive is the
SHA-256 of its content, which detects any changed byte; zip programs ignore the comment. Other files
are checked by the CRCs of the archive.
"""

import hashlib
import mmap
import os
import pathlib
import pickle
import re
import struct
import zipfile
from typing import Any, BinaryIO

import numpy as np
import torch

from runtime.errors import CheckpointError, reason_of

# The archive's last record has 22 bytes; the last two are the length of the comment after it.
END = b'PK\x05\x06'
END_LENGTH = 22
SEAL = re.compile(rb'sha256:([0-9a-f]{64})')
SEAL_LENGTH = 71

# Errors that PyTorch's reader raises for corrupt files.
READ_ERRORS = (
    RuntimeError,
    EOFError,
    OSError,
    MemoryError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    struct.error,
    zipfile.BadZipFile,
)


def matches(path: pathlib.Path) -> bool:
    """Return whether a file is a zip archive, or a pickle (the format before 2020)."""
    if not path.is_file():
        return False
    with open(path, 'rb') as file:
        return file.read(2) in (b'PK', b'\x80\x02', b'\x80\x03', b'\x80\x04')


def load(path: str | os.PathLike, device: str | torch.device = 'cpu') -> Any:
    """Return the content of a file of `torch.save`.

    Raises:
        CheckpointError: if it is corrupt, or cannot be read without executing code.
    """
    try:
        verify(path)
        _check_no_bytearray(path)
        with torch.serialization.safe_globals(_numpy_scalars()):
            return torch.load(path, map_location=device, weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        imported = re.search(r'GLOBAL ([\w.]+)', str(error))
        raise _contains_code(path, imported[1]) if imported else _unreadable(path) from error
    except READ_ERRORS as error:
        raise _unreadable(path, reason_of(error)) from error


def _contains_code(path, imported: str) -> CheckpointError:
    return CheckpointError(f'{path} contains code, which is never loaded: it imports {imported}')


def _unreadable(path, reason: str = '') -> CheckpointError:
    return CheckpointError(
        f'{path} cannot be read as a checkpoint: it may be truncated, or of another format'
        + (f' ({reason})' if reason else '')
    )


def _numpy_scalars() -> list:
    """Return the objects in a pickled numpy scalar, under their names in numpy 1 and numpy 2."""
    scalar = np.float64(0).__reduce__()[0]
    return [
        (scalar, 'numpy.core.multiarray.scalar'),
        (scalar, 'numpy._core.multiarray.scalar'),
        np.dtype,
        np.dtypes.Float64DType,
        np.dtypes.Float32DType,
        np.dtypes.Int64DType,
    ]


def _check_no_bytearray(path):
    """Raise CheckpointError for a file with a bytearray, which could allocate any amount of memory.

    PyTorch allows bytearray in files, but no checkpoint contains one.
    """
    with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(b'bytearray') >= 0:
            raise _contains_code(path, 'bytearray')


# Integrity ----------------------------------------------------------------------------------------


def seal(file: BinaryIO) -> None:
    """Append the SHA-256 of a zip archive as its comment.

    Args:
        file: a file written by `torch.save`, open for reading and writing.
    """
    size = file.seek(0, 2)
    digest = _digest(file, size - 2)
    file.seek(size - END_LENGTH)
    assert file.read()[:4] == END, 'torch.save ends with the end of an archive that has no comment'
    file.seek(size - 2)
    file.write(struct.pack('<H', SEAL_LENGTH) + b'sha256:' + digest.encode())


def verify(path: str | os.PathLike) -> None:
    """Raise CheckpointError for an archive that is corrupt or was not written by `torch.save`."""
    with open(path, 'rb') as file:
        if file.read(2) != b'PK':
            return  # a file from before 2020 is not an archive
        size = file.seek(0, 2)
        file.seek(max(0, size - END_LENGTH - SEAL_LENGTH))
        end = file.read()
        found = SEAL.fullmatch(end[-SEAL_LENGTH:])
        sealed = found and end[:4] == END and end[20:22] == struct.pack('<H', SEAL_LENGTH)
        if sealed and _digest(file, size - SEAL_LENGTH - 2) != found[1].decode():
            raise CheckpointError(f'{path} is corrupt: SHA-256 mismatch')
    if not sealed and (end[-END_LENGTH : -END_LENGTH + 4] != END or end[-2:] != b'\0\0'):
        raise CheckpointError(f'{path} is corrupt or truncated: the end of the archive is missing')
    with zipfile.ZipFile(path) as archive:  # a seal proves integrity, not who wrote the file
        entries = archive.infolist()
        if (
            any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            or sum(entry.file_size for entry in entries) > size
        ):
            raise CheckpointError(
                f'{path} was not written by torch.save: its entries are compressed or overlap'
            )
        if not sealed and (broken := archive.testzip()) is not None:
            raise CheckpointError(f'{path} is corrupt: CRC mismatch in {broken}')


def _digest(file: BinaryIO, count: int) -> str:
    """Return the SHA-256 of the first `count` bytes of an open file."""
    sha = hashlib.sha256()
    file.seek(0)
    while count:
        block = file.read(min(count, 1 << 20))
        if not block:
            break
        sha.update(block)
        count -= len(block)
    return sha.hexdigest()


# Training states ----------------------------------------------------------------------------------


def read(
    path: str | os.PathLike, network: torch.nn.Module, device: str | torch.device = 'cpu'
) -> dict:
    """Return the training state in a file, which may be a list of NCSN or NCSNv2."""
    content = load(path, device)
    if isinstance(content, (list, tuple)) and content and isinstance(content[0], dict):
        return _from_list(content, network)
    check_state(path, content)
    return content


def check_state(path: str | os.PathLike, content: Any) -> None:
    """Raise CheckpointError if the content of a file is not a training state."""
    if not isinstance(content, dict) or 'model' not in content:
        raise CheckpointError(f"{path} is not a training state: it lacks the entry 'model'")


def bare(weights: dict) -> dict:
    """Remove the prefix 'module.' of a DataParallel from the names of tensors."""
    return {name.removeprefix('module.'): value for name, value in weights.items()}


def _from_list(content: list, network) -> dict:
    weights = bare(content[0])
    averages = [part for part in content[2:] if isinstance(part, dict)]
    average = weights
    if averages:
        parameters = dict(network.named_parameters())
        buffers = {name: value for name, value in weights.items() if name not in parameters}
        average = buffers | bare(averages[0])
    step = int(content[3]) if len(content) > 3 else 0
    return dict(model=weights, ema=dict(named=average), step=step)
