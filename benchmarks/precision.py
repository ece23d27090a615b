"""Does training in bfloat16 reach the same loss as in float32? Compares losses after 300 steps.

    python benchmarks/precision.py                      # the quickstart's network
    python benchmarks/precision.py --network cifar10    # NCSN++ on CIFAR-10's shape, for a GPU

Every run uses the same images in the same order. The seed determines weights, times and noise,
which are the same for the bfloat16 run and the float32 run of a seed. The loss is the mean over the
last third of the steps. z is the mean difference between the precisions, divided by the standard
deviation of the float32 losses over the seeds.
"""

import itertools
import statistics

import torch
from timing import arguments, ncsnpp, parse_args, show, shrink

import datasets
import losses
import run_lib
import sde_lib
from configs.vp import digits_ddpmpp_continuous
from data.tensors import to_tensor


def final_loss(config, seed: int, precision: str, steps: int) -> float:
    """Train a network and return the mean loss of the last third of the steps."""
    config.training.precision = precision
    torch.manual_seed(seed)
    state, scaler = run_lib.create_state(config), datasets.get_data_scaler(config)
    settings = config.training
    step = losses.get_step_fn(
        sde_lib.get_sde(config),
        True,
        losses.optimization_manager(config),
        settings.reduce_mean,
        settings.continuous,
        settings.likelihood_weighting,
    )
    batches = datasets.get_dataset(config, config.data.uniform_dequantization)[0]
    found = [
        step(state, to_tensor(batch, config, scaler)) for batch in itertools.islice(batches, steps)
    ]
    return torch.stack(found[-(steps // 3) :]).mean().item()


def main():
    parser = arguments(__doc__)
    parser.add_argument('--network', default='digits', choices=['digits', 'cifar10'])
    parser.add_argument(
        '--seeds', type=int, default=5, help='runs in each precision (default: %(default)s)'
    )
    parser.add_argument('--steps', type=int, default=300)
    parser.add_argument(
        '--tfds_dir', default='', help='folder of TensorFlow Datasets with CIFAR-10'
    )
    args = parse_args(parser, seeds=2, steps=3)
    args.repeats = args.seeds
    config = (
        digits_ddpmpp_continuous.get_config() if args.network == 'digits' else ncsnpp(args.device)
    )
    if args.quick:
        shrink(config)
    config.device, config.data.tfds_dir = args.device, args.tfds_dir
    config.optim.warmup = min(config.optim.warmup, args.steps // 3)
    rows = [
        dict(
            seed=seed,
            **{
                precision: final_loss(config, seed, precision, args.steps)
                for precision in ('float32', 'bfloat16')
            },
        )
        for seed in range(args.seed, args.seed + args.seeds)
    ]
    spread = statistics.stdev(row['float32'] for row in rows)
    shift = statistics.mean(row['bfloat16'] - row['float32'] for row in rows)
    rows.append(
        dict(
            seed='mean',
            **{key: statistics.mean(row[key] for row in rows) for key in ('float32', 'bfloat16')},
        )
    )
    show(
        args,
        f'{args.network}, mean loss of the last {args.steps // 3} of {args.steps} steps; '
        f'standard deviation over seeds {spread:.5f}, '
        f'bfloat16 minus float32 {shift:+.5f}, z = {shift / spread:+.2f}',
        rows,
        {
            'seed': ('seed', '{}'),
            'float32': ('float32', '{:.5f}'),
            'bfloat16': ('bfloat16', '{:.5f}'),
        },
        spread=spread,
        shift=shift,
    )


if __name__ == '__main__':
    main()
