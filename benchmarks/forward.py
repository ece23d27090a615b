"""How near the forward pass of NCSN++ comes to the speed of matrix products on the same machine.

    python benchmarks/forward.py                        # under a minute on two cores
    python benchmarks/forward.py --compile --json forward.json

Each time is the least of the rounds. 'of products': floating-point operations of the network's
convolutions and products over its time, as a share of the rate of square matrix products in the
same precision, measured in the same rounds.
"""

import torch

from models.utils import create_model
from timing import Products, arguments, dtypes, flops, inputs, interleaved, ncsnpp, parse_args, show


def main():
    parser = arguments(__doc__, repeats=4)
    parser.add_argument('--batch', type=int, help='images (default: 8 on a CPU, 512 on a GPU)')
    parser.add_argument(
        '--compile', action='store_true', help='compiled networks too; always on a GPU'
    )
    args = parse_args(parser, repeats=1, batch=2)
    gpu, known = args.device.startswith('cuda'), dtypes(args.device)
    batch = args.batch or (512 if gpu else 8)
    settings = [
        dict(precision=precision, channels_last=channels_last, compile=compiled)
        for precision in known
        for channels_last in (False, True)
        for compiled in (False, True)[: 1 + (args.compile or gpu) * channels_last]
    ]
    products, ways = Products(args.device, known.values(), args.quick), {}
    for setting in settings:
        torch.manual_seed(args.seed)
        config = ncsnpp(args.device, args.quick, **setting)
        model, (x, labels) = create_model(config).eval(), inputs(config, batch)
        ways[tuple(setting.values())] = torch.no_grad()(
            lambda model=model, x=x, labels=labels: model(x, labels)
        )
    work = flops(ways['float32', False, False])
    times = interleaved(products.ways | ways, args.device, args.repeats, warmup=1)
    rows = []
    for setting in settings:
        best = min(times[tuple(setting.values())])
        plain = min(times['float32', True, False])
        rows.append(
            setting
            | dict(
                layout='channels last' if setting['channels_last'] else 'channels first',
                batch=batch,
                seconds=best,
                images_per_second=batch / best,
                tflops=work / best / 1e12,
                of_float32=best / plain,
                of_products=work / best / products.rate(times, known[setting['precision']]),
            )
        )
    limits = {name: products.rate(times, dtype) / 1e12 for name, dtype in known.items()}
    title = (
        f'NCSN++ forward, batch {batch}, {work / batch / 1e9:.1f} GFLOP an image; '
        f'{products.size}^3 products: '
        + ', '.join(f'{rate:.3f} TFLOP/s in {name}' for name, rate in limits.items())
        + (
            ''
            if 'bfloat16' in known
            else '; no bfloat16: this processor has no instructions for it'
        )
    )
    show(
        args,
        title,
        rows,
        {
            'precision': ('precision', '{}'),
            'layout': ('layout', '{}'),
            'compiled': ('compile', '{}'),
            'seconds': ('seconds', '{:.4f}'),
            'images/s': ('images_per_second', '{:.1f}'),
            'of products': ('of_products', '{:.2f}'),
            'time, of float32 eager': ('of_float32', '{:.2f}'),
        },
        limits=limits,
    )


if __name__ == '__main__':
    main()
