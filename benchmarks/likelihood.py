"""What an evaluation of drift and divergence costs: in one forward and one backward pass, against two forward passes and a backward one.

    python benchmarks/likelihood.py                     # under a minute on two cores
    python benchmarks/likelihood.py --batch 64 --json likelihood.json

The likelihood's ODE needs the drift F(x, t) and e^T (dF/dx) e (Song et al. 2021, Sec. D.2). 'two passes': the drift without gradients,
then the product with them, as published. Least times of the rounds, and median ratios in a round.
"""
import statistics

import torch
from timing import arguments, inputs, interleaved, ncsnpp, parse_args, show

import likelihood
import sde_lib
from models.utils import create_model, get_score_fn, times_like


def main():
    parser = arguments(__doc__, repeats=2)
    parser.add_argument('--batch', type=int, help='images (default: 8 on a CPU, 128 on a GPU)')
    args = parse_args(parser, repeats=1, batch=2)
    batch = args.batch or (128 if args.device.startswith('cuda') else 8)
    torch.manual_seed(args.seed)
    config = ncsnpp(args.device, args.quick)
    model, (x, _), sde = create_model(config).eval().requires_grad_(False), inputs(config, batch), sde_lib.get_sde(config)
    flow = sde.reverse(get_score_fn(sde, model, continuous=True), probability_flow=True)
    t, e = times_like(x, 0.5), torch.randn_like(x).sign()

    def drift(x, t):
        return flow.sde(x, t)[0]

    def two_passes():
        with torch.no_grad():
            drift(x, t)
        likelihood.get_div_fn(drift)(x, t, e)
    ways = {'one forward pass': torch.no_grad()(lambda: drift(x, t)), 'two passes': two_passes,
            'together': lambda: likelihood._value_and_products(drift, x, t, [e])}
    times = interleaved(ways, args.device, args.repeats)
    rows = [dict(way=name, seconds=min(found), ratio=statistics.median(a / b for a, b in zip(found, times['two passes'])))
            for name, found in times.items()]
    show(args, f'NCSN++, drift and divergence, float32, batch {batch}', rows, {
        'way': ('way', '{}'), 'seconds': ('seconds', '{:.3f}'), 'of two passes': ('ratio', '{:.2f}')})


if __name__ == '__main__':
    main()
