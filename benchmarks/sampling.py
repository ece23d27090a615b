"""The time that the predictor-corrector sampler adds to its network evaluations.

    python benchmarks/sampling.py                       # a minute on two cores
    python benchmarks/sampling.py --batch 64 --steps 20 --json sampling.json

A round draws images with NCSN++ on CIFAR-10 (reverse diffusion and Langevin) in two ways: with
random numbers for the whole batch, as in the 2021 release, and with separate ones for each image.
It also times the same number of network evaluations alone on the same batch. The table has the
minimum time over the rounds, and the median over the rounds of sampler time / evaluation time. The
part of this ratio above 1 is the cost of the sampler's formulas.
"""

import statistics

import torch
from timing import Products, arguments, flops, inputs, interleaved, ncsnpp, parse_args, show

import sampling
import sde_lib
from models.utils import create_model
from runtime.randomness import per_image


def main():
    parser = arguments(__doc__, repeats=3)
    parser.add_argument('--batch', type=int, help='batch size (default: 4 on a CPU, 256 on a GPU)')
    parser.add_argument(
        '--steps', type=int, help='sampler steps (default: 2 on a CPU, 20 on a GPU)'
    )
    args = parse_args(parser, repeats=1, batch=2, steps=2)
    gpu = args.device.startswith('cuda')
    args.batch = args.batch or (256 if gpu else 4)
    args.steps = args.steps or (20 if gpu else 2)
    show(
        args,
        f'NCSN++, {"bfloat16, compiled" if gpu else "float32"}',
        measure(args, gpu),
        {
            'sampler': ('sampler', '{}'),
            'images': ('batch', '{}'),
            'evaluations': ('evaluations', '{}'),
            'seconds': ('seconds', '{:.3f}'),
            'over the evaluations alone': ('ratio', '{:.3f}'),
            'of products': ('of_products', '{:.2f}'),
        },
    )


def measure(args, gpu: bool) -> list[dict]:
    """Return a row for each sampler."""
    torch.manual_seed(args.seed)
    fast = dict(precision='bfloat16', compile=True) if gpu else {}
    config = ncsnpp(args.device, args.quick, **fast)
    config.sampling.steps = args.steps
    model, (x, labels) = create_model(config).eval(), inputs(config, args.batch)
    samplers = ways(config, model, x.shape)
    (evaluations,) = {sampler()[1] for sampler in samplers.values()}
    bare = torch.no_grad()(lambda: [model(x, labels) for _ in range(evaluations)])
    dtype = torch.bfloat16 if gpu else torch.float32
    products = Products(args.device, [dtype], args.quick)
    every = products.ways | samplers | dict(bare=bare)
    times = interleaved(every, args.device, args.repeats, warmup=int(gpu))
    one = flops(torch.no_grad()(lambda: model.module.forward(x[:1], labels[:1])))
    work = one * args.batch * evaluations
    return [
        dict(
            sampler=name,
            batch=args.batch,
            evaluations=evaluations,
            seconds=min(times[name]),
            ratio=statistics.median(a / b for a, b in zip(times[name], times['bare'])),
            of_products=work / min(times[name]) / products.rate(times, dtype),
        )
        for name in samplers
    ]


def ways(config, model, shape) -> dict:
    """Return the sampler of a config twice: with random numbers for the batch and per image."""
    sde = sde_lib.get_sde(config)
    sample = sampling.get_sampling_fn(config, sde, shape, lambda x: x, sde.sampling_eps)

    def each():
        with per_image(range(shape[0])):
            return sample(model)

    return {'predictor-corrector': lambda: sample(model), 'random numbers for each image': each}


if __name__ == '__main__':
    main()
