"""The speed of the forward pass of NCSN++, as a share of the speed of matrix products.

    python benchmarks/forward.py                        # under a minute on two cores
    python benchmarks/forward.py --compile --json forward.json

Each time is the minimum over the rounds. 'of products' is the rate (FLOP/s) of the network's
convolutions and matrix products, divided by the rate of square matrix products in the same
precision. Both rates are measured in the same rounds.
"""

from typing import NamedTuple

import torch
from timing import Products, arguments, dtypes, flops, inputs, interleaved, ncsnpp, parse_args, show

from models.utils import create_model


class Setting(NamedTuple):
    """Values of `config.training`."""

    precision: str
    channels_last: bool
    compile: bool


PLAIN = Setting('float32', True, False)


def settings(precisions, compiled: bool) -> list[Setting]:
    """Return all settings to measure; only channels-last networks are compiled."""
    found = []
    for precision in precisions:
        found += [Setting(precision, False, False), Setting(precision, True, False)]
        if compiled:
            found.append(Setting(precision, True, True))
    return found


def forward(setting: Setting, args):
    """Return a function without arguments that runs a forward pass of the network."""
    torch.manual_seed(args.seed)
    config = ncsnpp(args.device, args.quick, **setting._asdict())
    model, (x, labels) = create_model(config).eval(), inputs(config, args.batch)
    return torch.no_grad()(lambda: model(x, labels))


def row(setting: Setting, best: dict, work: int, rates: dict, batch: int) -> dict:
    """Return the table row of a setting.

    Args:
        best: seconds of each setting.
        work: number of operations of a forward pass of the batch.
        rates: FLOP/s of matrix products by precision.
    """
    seconds = best[setting]
    return setting._asdict() | dict(
        layout='channels last' if setting.channels_last else 'channels first',
        batch=batch,
        seconds=seconds,
        images_per_second=batch / seconds,
        tflops=work / seconds / 1e12,
        of_float32=seconds / best[PLAIN],
        of_products=work / seconds / rates[setting.precision],
    )


def title(work: int, batch: int, size: int, rates: dict) -> str:
    """Describe the measurement and the rates of products of size x size matrices."""
    limits = ', '.join(f'{rate / 1e12:.3f} TFLOP/s in {name}' for name, rate in rates.items())
    text = (
        f'NCSN++ forward, batch {batch}, {work / batch / 1e9:.1f} GFLOP an image; '
        f'{size}^3 products: {limits}'
    )
    if 'bfloat16' not in rates:
        text += '; bfloat16 is left out: this CPU has no instructions for it'
    return text


def main():
    parser = arguments(__doc__, repeats=4)
    parser.add_argument('--batch', type=int, help='batch size (default: 8 on a CPU, 512 on a GPU)')
    parser.add_argument(
        '--compile', action='store_true', help='also measure compiled networks (default on a GPU)'
    )
    args = parse_args(parser, repeats=1, batch=2)
    gpu, known = args.device.startswith('cuda'), dtypes(args.device)
    args.batch = args.batch or (512 if gpu else 8)
    products = Products(args.device, known.values(), args.quick)
    networks = {setting: forward(setting, args) for setting in settings(known, args.compile or gpu)}
    work = flops(networks[PLAIN._replace(channels_last=False)])
    times = interleaved(products.ways | networks, args.device, args.repeats, warmup=1)
    rates = {name: products.rate(times, dtype) for name, dtype in known.items()}
    best = {setting: min(times[setting]) for setting in networks}
    show(
        args,
        title(work, args.batch, products.size, rates),
        [row(setting, best, work, rates, args.batch) for setting in networks],
        {
            'precision': ('precision', '{}'),
            'layout': ('layout', '{}'),
            'compiled': ('compile', '{}'),
            'seconds': ('seconds', '{:.4f}'),
            'images/s': ('images_per_second', '{:.1f}'),
            'of products': ('of_products', '{:.2f}'),
            'time, of float32 eager': ('of_float32', '{:.2f}'),
        },
        limits={name: rate / 1e12 for name, rate in rates.items()},
    )


if __name__ == '__main__':
    main()
