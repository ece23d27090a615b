"""What samplers add to the time of their network: predictor-corrector sampling against its network
evaluations alone.

    python benchmarks/sampling.py                       # a minute on two cores
    python benchmarks/sampling.py --batch 64 --steps 20 --json sampling.json

A round draws images with NCSN++ on CIFAR-10 (reverse diffusion and Langevin, as published and with
random numbers for each image), and times as many bare network evaluations on the same batch. Least
time of the rounds, and the median over them of the ratio of the two in a round: what is over 1 are
the sampler's own formulas.
"""

import statistics

import torch

import sampling
import sde_lib
from models.utils import create_model
from runtime.randomness import per_image
from timing import Products, arguments, flops, inputs, interleaved, ncsnpp, parse_args, show


def main():
    parser = arguments(__doc__, repeats=3)
    parser.add_argument('--batch', type=int, help='images (default: 4 on a CPU, 256 on a GPU)')
    parser.add_argument(
        '--steps', type=int, help='of the sampler (default: 2 on a CPU, 20 on a GPU)'
    )
    args = parse_args(parser, repeats=1, batch=2, steps=2)
    gpu = args.device.startswith('cuda')
    batch, steps = args.batch or (256 if gpu else 4), args.steps or (20 if gpu else 2)
    torch.manual_seed(args.seed)
    config = ncsnpp(
        args.device, args.quick, **(dict(precision='bfloat16', compile=True) if gpu else {})
    )
    config.sampling.steps, dtype = steps, torch.bfloat16 if gpu else torch.float32
    model, (x, labels), sde = (
        create_model(config).eval(),
        inputs(config, batch),
        sde_lib.get_sde(config),
    )
    sample = sampling.get_sampling_fn(config, sde, x.shape, lambda x: x, sde.sampling_eps)

    def each():
        with per_image(range(batch)):
            return sample(model)

    samplers = {'predictor-corrector': lambda: sample(model), 'random numbers for each image': each}
    (evaluations,) = {sampler()[1] for sampler in samplers.values()}
    products = Products(args.device, [dtype], args.quick)
    ways = (
        products.ways
        | samplers
        | dict(bare=torch.no_grad()(lambda: [model(x, labels) for _ in range(evaluations)]))
    )
    times = interleaved(ways, args.device, args.repeats, warmup=int(gpu))
    work = (
        flops(torch.no_grad()(lambda: model.module.forward(x[:1], labels[:1])))
        * batch
        * evaluations
    )
    rows = [
        dict(
            sampler=name,
            batch=batch,
            evaluations=evaluations,
            seconds=min(times[name]),
            ratio=statistics.median(a / b for a, b in zip(times[name], times['bare'])),
            of_products=work / min(times[name]) / products.rate(times, dtype),
        )
        for name in samplers
    ]
    show(
        args,
        f'NCSN++, {"bfloat16, compiled" if gpu else "float32"}',
        rows,
        {
            'sampler': ('sampler', '{}'),
            'images': ('batch', '{}'),
            'evaluations': ('evaluations', '{}'),
            'seconds': ('seconds', '{:.3f}'),
            'over the evaluations alone': ('ratio', '{:.3f}'),
            'of products': ('of_products', '{:.2f}'),
        },
    )


if __name__ == '__main__':
    main()
