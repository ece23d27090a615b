"""The cost of computing drift and divergence together instead of in two passes.

    python benchmarks/likelihood.py                     # under a minute on two cores
    python benchmarks/likelihood.py --batch 64 --json likelihood.json

The likelihood ODE needs the drift F(x, t) and e^T (dF/dx) e (Song et al. 2021, Sec. D.2). As in the
2021 release, 'two passes' computes the drift without gradients, and then the product with a second
forward and a backward pass. The table has the minimum time over the rounds and the median over the
rounds of time / time of 'two passes'.
"""

import statistics

import torch
from timing import arguments, divergence_ways, inputs, interleaved, ncsnpp, parse_args, show

import sde_lib
from models.utils import create_model


def main():
    parser = arguments(__doc__, repeats=2)
    parser.add_argument('--batch', type=int, help='batch size (default: 8 on a CPU, 128 on a GPU)')
    args = parse_args(parser, repeats=1, batch=2)
    batch = args.batch or (128 if args.device.startswith('cuda') else 8)
    torch.manual_seed(args.seed)
    config = ncsnpp(args.device, args.quick)
    model = create_model(config).eval().requires_grad_(False)
    x, _ = inputs(config, batch)
    sde = sde_lib.get_sde(config)
    times = interleaved(divergence_ways(sde, model, x), args.device, args.repeats)
    rows = [
        dict(
            way=name,
            seconds=min(found),
            ratio=statistics.median(a / b for a, b in zip(found, times['two passes'])),
        )
        for name, found in times.items()
    ]
    show(
        args,
        f'NCSN++, drift and divergence, float32, batch {batch}',
        rows,
        {
            'way': ('way', '{}'),
            'seconds': ('seconds', '{:.3f}'),
            'of two passes': ('ratio', '{:.2f}'),
        },
    )


if __name__ == '__main__':
    main()
