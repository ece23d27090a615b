"""Run notebooks from top to bottom and save them with their outputs and pictures.

  python notebooks/execute.py [NAME ...]     # tour, images or control (default: all notebooks)

A cell with "picture": "name" in its metadata draws one picture, which is also saved as
assets/name.png. So README and notebooks show the same pictures.
"""

import base64
import os
import pathlib
import sys
import time

import nbformat
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).resolve().parent
ASSETS = FOLDER.parent / 'assets'
ORDER = ('tour', 'images', 'control')  # the first ones create files in RUNS for the others
METADATA = {
    'kernelspec': {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'},
    'language_info': {'name': 'python'},
}


class ThisPython(AsyncKernelManager):
    """Starts the interpreter that runs this file, not an installed kernel with the same name."""

    kernel_spec = KernelSpec(**get_kernel_dict())


def notebooks() -> list[pathlib.Path]:
    """Return all notebooks, in the order in which they run."""
    return sorted(
        FOLDER.glob('*.ipynb'),
        key=lambda path: (ORDER.index(path.stem) if path.stem in ORDER else len(ORDER), path.stem),
    )


def execute(path, env=None, limit: float = float('inf')):
    """Run the notebook at `path` and return it with new outputs; the file is not changed.

    Args:
        path: path of the notebook.
        env: environment variables to set.
        limit: time limit of the whole notebook in seconds.

    Raises:
        TimeoutError: after the time limit (nbclient's CellTimeoutError).
        CellExecutionError: if a cell raises an error.
    """
    notebook, end = nbformat.read(path, as_version=4), time.monotonic() + limit
    client = NotebookClient(
        notebook,
        kernel_manager_class=ThisPython,
        resources={'metadata': {'path': str(FOLDER)}},
        record_timing=False,
        extra_arguments=['--log-level=ERROR'],
        timeout_func=lambda cell: (
            max(1, int(end - time.monotonic())) if limit < float('inf') else -1
        ),
    )
    # without MPLBACKEND, pictures are drawn in the notebook
    inherited = {key: value for key, value in os.environ.items() if key != 'MPLBACKEND'}
    client.execute(env={**inherited, **(env or {})})
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.id = f'{pathlib.Path(path).stem}-{number:02d}'
        if cell.cell_type == 'code':
            cell.outputs = _settled(cell.outputs)
    return notebook


def _settled(outputs):
    """Remove what differs between runs (warnings, progress bars); join the pieces of text."""
    kept = []
    for output in outputs:
        if output.output_type != 'stream':
            output.metadata = nbformat.from_dict({})
        elif output.name == 'stderr':
            continue
        elif kept and kept[-1].output_type == 'stream':
            kept[-1].text += output.text
            continue
        kept.append(output)
    return kept


def pictures(notebook) -> dict[str, list[bytes]]:
    """Return the PNGs of every cell that names a picture, by that name."""
    return {
        cell.metadata.picture: [
            base64.b64decode(output.data['image/png'])
            for output in cell.get('outputs', ())
            if 'image/png' in output.get('data', {})
        ]
        for cell in notebook.cells
        if 'picture' in cell.metadata
    }


def main(names):
    paths = [FOLDER / f'{pathlib.Path(name).stem}.ipynb' for name in names] or notebooks()
    for path in paths:
        start = time.monotonic()
        notebook = execute(path)
        drawn = pictures(notebook)
        for name, images in drawn.items():
            if len(images) != 1:
                sys.exit(
                    f'{path.name}: expected one picture from the cell of {name!r}, '
                    f'got {len(images)}'
                )
        for name, (image,) in drawn.items():
            (ASSETS / f'{name}.png').write_bytes(image)
        nbformat.write(notebook, path)
        print(f'{path.name}: {time.monotonic() - start:.0f} s, {len(drawn)} pictures')


if __name__ == '__main__':
    main(sys.argv[1:])
