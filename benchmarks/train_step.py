"""The cost of a training step of NCSN++ in forward passes, and the share outside the network.

    # three minutes on two cores, of whose two rounds the first warms up
    python benchmarks/train_step.py
    python benchmarks/train_step.py --settings precision=bfloat16,compile=True --json step.json

A row is a step with its settings: least time of the rounds; its time over that of a forward pass
(without gradients) with the same settings, of which up to three are timed together, about as long
as a step, for the least of short times is too good on a busy machine; the share of the rate of
matrix products in the same precision that the operations of convolutions and products make,
forwards and backwards, without what is computed twice; the share of the step that clipping,
optimizer and moving average take; on a GPU the memory that PyTorch had allocated at most.
"""

import functools

import torch
from timing import Products, arguments, flops, inputs, interleaved, ncsnpp, parse_args, show

import losses
import run_lib
import sde_lib

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
CPU = ['', 'batch_size=64']
SMALL = ['batch_size=2', 'batch_size=4,accumulation=2']  # of --quick
GPU = [
    '',
    'precision=bfloat16',
    'precision=bfloat16,compile=True',
    'precision=bfloat16,compile=True,recompute=True',
    'precision=bfloat16,compile=True,accumulation=4',
]


def parse(text: str) -> dict:
    """'precision=bfloat16,compile=True' as settings of `config.training`."""
    values = dict(part.split('=') for part in text.split(',') if part)
    return {key: parse_value(value) for key, value in values.items()}


def parse_value(text: str) -> bool | int | str:
    if text in ('True', 'False'):
        return text == 'True'
    return int(text) if text.isdigit() else text


@functools.cache
def operations(device, quick: bool = False) -> int:
    """The operations of a step for one image, without recomputation or compilation."""
    config = ncsnpp(device, quick, batch_size=1)
    step = losses.get_step_fn(sde_lib.get_sde(config), True, losses.optimization_manager(config))
    state, (x, _) = run_lib.create_state(config), inputs(config, 1)
    return flops(lambda: step(state, x))


def measure(setting: dict, args) -> dict:
    """The row of one setting."""
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
        help='of config.training, such as precision=bfloat16,batch_size=64; may be repeated',
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
            'of it clip, Adam, EMA': ('update', '{:.1%}'),
            'memory, GiB': ('memory', '{:.1f}'),
        },
    )


if __name__ == '__main__':
    main()
