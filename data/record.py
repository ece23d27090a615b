"""The record of the data set that a network was trained on: `data.json` in its work directory."""

import json
import os
import pathlib

from ml_collections import ConfigDict

from data.settings import PLACES
from runtime import distributed
from runtime.errors import UserError

FILE = 'data.json'


def identity(data: ConfigDict, keys: tuple[str, ...]) -> dict:
    """Return the values of `config.data` that identify a data set, wherever its files are stored.

    Args:
        data: The completed `config.data`.
        keys: The keys of `data` that this kind of data set uses.
    """
    values = dict(
        dataset=data.dataset.upper(), image_size=data.image_size, num_channels=data.num_channels
    )
    names = {key: pathlib.Path(data[key]).name for key in PLACES if key in keys and data[key]}
    return values | names


def write(
    workdir: str | os.PathLike, identity: dict, classes: tuple[str, ...], conditional: bool
) -> None:
    """Write the data set that a network is trained on to `workdir/data.json`.

    Args:
        workdir: The work directory.
        identity: The values that identify the data set.
        classes: The names of its classes in the order of their labels; empty if unknown.
        conditional: Whether the network is class-conditional.

    Raises:
        UserError: if the network is class-conditional and was trained here with other classes.
    """
    path, before = pathlib.Path(workdir, FILE), _read(workdir).get('classes')
    if conditional and classes and before and before != list(classes):
        raise UserError(
            f'{path} has the classes {", ".join(before)}, but the data set has '
            f'{", ".join(classes)}: labels would change meaning. Restore the original classes, or '
            'train in another work directory'
        )
    if distributed.is_main():
        partial = path.with_name(path.name + '.partial')
        partial.write_text(json.dumps(identity | dict(classes=classes), indent=1) + '\n')
        partial.replace(path)


def differences(workdir: str | os.PathLike, identity: dict) -> list[str]:
    """Describe how a data set differs from the one in `workdir/data.json`."""
    found = _read(workdir)
    return [
        f'{key} is {found[key]!r} there and {value!r} in the config'
        for key, value in identity.items()
        if found.get(key, value) != value
    ]


def _read(workdir) -> dict:
    """The content of `workdir/data.json`; {} if it is missing or cannot be read."""
    try:
        found = json.loads(pathlib.Path(workdir, FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
