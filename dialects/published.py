"""Files of `torch.save`: training states of this library and of the 2021 PyTorch release, and the lists of NCSN's and NCSNv2's authors.

A training state is {'optimizer', 'model', 'ema', 'step'}; names in 'model' begin with 'module.'. A list is [model, optimizer] (NCSN) or
[model, optimizer, epoch, step, average] (NCSNv2), the average {name: tensor} and there only where it was switched on. Reading executes
nothing (`weights_only`), yet takes the numpy scalars of published files.
"""
import pathlib
import pickle
import zipfile

import numpy as np
import torch

from errors import CheckpointError


def _numpy_scalars():
    """What a pickled numpy scalar is made of, under the names it has in files of numpy 1 and of numpy 2."""
    scalar = np.float64(0).__reduce__()[0]
    return [(scalar, 'numpy.core.multiarray.scalar'), (scalar, 'numpy._core.multiarray.scalar'), np.dtype, np.dtypes.Float64DType,
            np.dtypes.Float32DType, np.dtypes.Int64DType]


def matches(path: pathlib.Path) -> bool:
    """A zip file, or a pickle of before 2020."""
    if not path.is_file():
        return False
    with open(path, 'rb') as file:
        return file.read(2) in (b'PK', b'\x80\x02', b'\x80\x03', b'\x80\x04')


def load(path, device='cpu'):
    """The content of a file of `torch.save`; CheckpointError where it cannot be read without executing anything."""
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            return torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = '' if isinstance(error, OSError) else ': ' + (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f'{path} cannot be read as a checkpoint; it may be cut short, or of another kind{reason}') from error


def bare(weights: dict) -> dict:
    """The same tensors without the 'module.' of a DataParallel in front of their names."""
    return {name.removeprefix('module.'): value for name, value in weights.items()}


def read(path, network, device='cpu') -> dict:
    """The training state in a file: as it is there, or from the list of NCSN's or NCSNv2's authors."""
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
    return dict(model=weights, ema=dict(named=average), step=int(content[3]) if len(content) > 3 else 0)
