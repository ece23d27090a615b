"""Draw one picture with samples, inpainted digits and interpolations of the pretrained models.

Run `python examples/demo.py`; it writes runs/demo.png.
"""

import argparse
import os
import pathlib
import sys

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from control import latents
from score_model import ScoreModel

MODELS = {
    'mnist-vp': 'MNIST, VP',
    'mnist-ve': 'MNIST, VE',
    'fashion-mnist-subvp': 'Fashion-MNIST, sub-VP',
}


def tiled(rows: torch.Tensor) -> torch.Tensor:
    """Invert images (rows, columns, 1, H, W) in [0, 1] and join them, with white lines between."""
    rows = torch.nn.functional.pad(1 - rows.clamp(0, 1), (1, 1, 1, 1), value=1)[:, :, 0]
    return torch.cat([torch.cat([*row], 1) for row in rows])


def draw(path: str | os.PathLike, seed: int = 0) -> None:
    """Draw the picture and save it to `path`."""
    figure, axes = plt.subplots(
        1,
        5,
        figsize=(10, 2.4),
        constrained_layout=True,
        gridspec_kw=dict(width_ratios=[5, 5, 5, 4, 6]),
    )
    figure.get_layout_engine().set(w_pad=0.08)
    pictures = {}
    for name, title in MODELS.items():
        model = ScoreModel.load(name)
        pictures[title] = model.sample(25, seed=seed).unflatten(0, (5, 5))

    model = ScoreModel.load('mnist-vp')
    digits = model.sample(5, seed=seed + 1)
    half = digits.clone()
    half[..., 14:] = 0.25
    filled = [
        model.inpaint(digits, mask='right', seed=seed + k, resample=3, consistency=0.0)
        for k in range(2)
    ]
    pictures['Right half filled in, twice'] = torch.stack([digits, half, *filled], 1)

    flow = dict(method='heun', steps=12)
    codes = model.encode(model.sample(10, seed=seed + 2), **flow)
    between = latents.interpolate(codes[:5], codes[5:], torch.linspace(0, 1, 6)).transpose(0, 1)
    pictures['Between two latent codes'] = model.decode(between.flatten(0, 1), **flow).unflatten(
        0, (5, 6)
    )

    for axis, (title, rows) in zip(axes, pictures.items()):
        axis.imshow(tiled(rows).cpu(), cmap='gray', vmin=0, vmax=1, interpolation='nearest')
        axis.set_title(title, fontsize=10)
        axis.axis('off')
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--output', default='runs/demo.png', help='PNG file (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    draw(args.output, args.seed)
    print(f'Wrote {args.output}')
