"""The time of a training step of NCSN++, relative to forward passes and to matrix products.

    # three minutes on two cores; the first of the two rounds is the warm-up
    python benchmarks/train_step.py
    python benchmarks/train_step.py --settings precision=bfloat16,compile=True --json step.json

Each row is a step with its settings. The columns are:

- seconds: minimum time over the rounds.
- forwards: time / time of a forward pass (without gradients) with the same settings. Up to three
  forward passes are timed together, which take about as long as a step, because the minimum of
  short times is too optimistic on a busy machine.
- of products: rate (FLOP/s) of the step's convolutions and matrix products / rate of matrix
  products in the same precision. Recomputed operations do not count.
- clip, Adam, EMA: share of the step for gradient clipping, optimizer and moving average.
- memory: peak memory allocated by PyTorch, on a GPU.
"""

import functools

import torch
from timing import Products, arguments, flops, inputs, interleaved, ncsnpp, parse_args, show

import losses
import run_lib
import sde_lib

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
CPU = ['', 'batch_size=64']
SMALL = ['batch_size=2', 'batch_size=4,accumulation=2']  # for --quick
GPU = [
    '',
    'precision=bfloat16',
    'precision=bfloat16,compile=True',
    'precision=bfloat16,compile=True,recompute=True',
    'precision=bfloat16,compile=True,accumulation=4',
]


def parse(text: str) -> dict:
    """Parse 'precision=bfloat16,compile=True' as settings of `config.training`."""
    values = dict(part.split('=') for part in text.split(',') if part)
    return {key: parse_value(value) for key, value in values.items()}


def parse_value(text: str) -> bool | int | str:
    if text in ('True', 'False'):
        return text == 'True'
    return int(text) if text.isdigit() else text


@functools.cache
def operations(device, quick: bool = False) -> int:
    """Count the operations of a step for one image, without recomputation or compilation."""
    config = ncsnpp(device, quick, batch_size=1)
    step = losses.get_step_fn(sde_lib.get_sde(config), True, losses.optimization_manager(config))
    state, (x, _) = run_lib.create_state(config), inputs(config, 1)
    return flops(lambda: step(state, x))


def measure(setting: dict, args) -> dict:
    """Measure a step with one setting and return its row."""
    gpu = args.device.startswith('cuda')
    torch.manual_seed(args.seed)
    config = ncsnpp(args.device, args.quick, **(dict(batch_size=512 if gpu else 32) | setting))
    dtype, batch = DTYPES[config.training.precision], config.training.batch_size
    state, (x, labels) = run_lib.create_state(config), inputs(config, batch)
    optimize, count = losses.optimization_manager(config), 3 if gpu else max(1, 96 // batch)
    step = losses.get_step_fn(
        sde_lib.get_sde(config), True, optimize, accumulation=config.training.accumulation
    )

    @torch.no_grad()
    def forwards():
        for _ in range(count):
            state['model'].eval()(x, labels)

    def update():
        optimize(state['optimizer'], state['model'].parameters(), step=1000)
        state['ema'].update(state['model'].parameters())

    if gpu:
        step(state, x)
        torch.cuda.reset_peak_memory_stats()
        step(state, x)
    memory = torch.cuda.max_memory_allocated() / 2**30 if gpu else None
    products = Products(args.device, [dtype], args.quick)
    work = operations(args.device, args.quick) * batch
    ways = products.ways | dict(forwards=forwards, step=lambda: step(state, x), update=update)
    times = interleaved(ways, args.device, args.repeats, warmup=1 if gpu else 0)
    best = {name: min(times[name]) for name in ('forwards', 'step', 'update')}
    forward = best['forwards'] / count
    return dict(
        setting=', '.join(f'{key}={value}' for key, value in setting.items() if key != 'batch_size')
        or 'as configured',
        batch=batch,
        seconds=best['step'],
        images_per_second=batch / best['step'],
        forwards=best['step'] / forward,
        of_products=work / best['step'] / products.rate(times, dtype),
        update=best['update'] / best['step'],
        memory=memory,
        forward_seconds=forward,
        rate_tflops=products.rate(times, dtype) / 1e12,
    )


def main():
    parser = arguments(__doc__, repeats=2)
    parser.add_argument(
        '--settings',
        action='append',
        help='values of config.training, such as precision=bfloat16,batch_size=64; may be repeated',
    )
    args = parse_args(parser, repeats=1)
    usual = GPU if args.device.startswith('cuda') else CPU
    settings = args.settings or (SMALL if args.quick else usual)
    rows = [measure(parse(setting), args) for setting in settings]
    show(
        args,
        'NCSN++ training step, with dropout',
        rows,
        {
            'setting': ('setting', '{}'),
            'batch': ('batch', '{}'),
            'seconds': ('seconds', '{:.3f}'),
            'images/s': ('images_per_second', '{:.1f}'),
            'forwards': ('forwards', '{:.2f}'),
            'of products': ('of_products', '{:.2f}'),
            'clip, Adam, EMA': ('update', '{:.1%}'),
            'memory, GiB': ('memory', '{:.1f}'),
        },
    )


if __name__ == '__main__':
    main()
