"""Two sections of gpu.py: the speed of networks and training steps, and of samplers."""

import contextlib
import functools
import time

import torch
from agreement import small_config, tensor_cores
from formulation_2021 import formulation_2021
from sections import Run, Table
from timing import Products, divergence_ways, flops, inputs, interleaved, ncsnpp

import losses
import run_lib
import sampling
import sde_lib
from models.utils import create_model

PRECISIONS = {'float32': torch.float32, 'TF32': torch.float32, 'bfloat16': torch.bfloat16}
MODES = {  # name: settings of config.training, TF32, 2021 formulation
    '2021 formulation, float32': (dict(channels_last=False), False, True),
    '2021 formulation, TF32': (dict(channels_last=False), True, True),
    'float32': ({}, False, False),
    'TF32': ({}, True, False),
    'bfloat16': (dict(precision='bfloat16'), False, False),
    'bfloat16, channels first': (dict(precision='bfloat16', channels_last=False), False, False),
    'bfloat16, recompute': (dict(precision='bfloat16', recompute=True), False, False),
    'bfloat16, compiled': (dict(precision='bfloat16', compile=True), False, False),
}


def network_config(run: Run, **training):
    if not run.quick:
        return ncsnpp(run.device, **training)
    config = small_config(run.device)
    config.training.update(training)
    return config


def bandwidth(run: Run) -> float:
    """Return the bytes/s of a large copy, counting bytes read and bytes written."""
    source = torch.randn(2**20 if run.quick else 2**30, device=run.device)
    target = torch.empty_like(source)
    ways = {'copy': lambda: target.copy_(source)}
    return 2 * source.nbytes / min(interleaved(ways, run.device, run.repeats)['copy'])


def limits(run: Run) -> dict[str, float]:
    """Return the FLOP/s of matrix products by precision, and the bytes/s of a copy."""
    found = {}
    for name, dtype in PRECISIONS.items() if run.device == 'cuda' else [('float32', torch.float32)]:
        with tensor_cores(name == 'TF32'):
            products = Products(run.device, [dtype], run.quick)
            found[name] = products.rate(interleaved(products.ways, run.device, run.repeats), dtype)
    return found | {'copy': bandwidth(run)}


def network_row(run: Run, name: str, rates: dict, work: dict) -> dict:
    """Measure a forward pass and a training step of NCSN++ in one mode.

    Args:
        name: a key of `MODES`.
        rates: FLOP/s of matrix products by precision.
        work: number of operations of a forward pass and of a step, for one image.

    Returns:
        Seconds, images/s and share of the rate of products, for the forward pass and the step;
        seconds of the first step; memory in GiB.
    """
    settings, tf32, old = MODES[name]
    batch, count = (2, 1) if run.quick else (128, 5)
    torch.manual_seed(run.seed)
    config = network_config(run, batch_size=batch, **settings)
    with tensor_cores(tf32), formulation_2021() if old else contextlib.nullcontext():
        state, (x, labels) = run_lib.create_state(config), inputs(config, batch)
        parameters = state['model'].parameters()
        if old:
            state['optimizer'] = torch.optim.Adam(parameters, lr=2e-4, foreach=False)
        optimize = losses.optimization_manager(config)
        step = losses.get_step_fn(sde_lib.get_sde(config), True, optimize)
        start = time.perf_counter()
        step(state, x)
        first = time.perf_counter() - start
        memory = peak_memory(lambda: step(state, x), run.device)

        @torch.no_grad()
        def forward():
            state['model'].eval()(x, labels)

        def steps():
            for _ in range(count):
                step(state, x)

        times = interleaved(dict(forward=forward, step=steps), run.device, run.repeats)
    row = dict(mode=name, batch=batch, first=first, memory=memory)
    rate = rates.get(precision(name))
    for key, seconds in (('forward', min(times['forward'])), ('step', min(times['step']) / count)):
        row[f'{key}_seconds'] = seconds
        row[f'{key}_images'] = batch / seconds
        row[f'{key}_of_products'] = rate and work[key] * batch / seconds / rate
    return row


def precision(mode: str) -> str:
    """Return the precision of the products in a mode, a key of `limits`."""
    return next((name for name in ('bfloat16', 'TF32') if name in mode), 'float32')


def peak_memory(work, device: str) -> float | None:
    """Return the peak GiB that PyTorch allocates on a GPU during `work()`; None on a CPU."""
    if device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() / 2**30 if device == 'cuda' else None


def operations(run: Run) -> dict[str, int]:
    """Count the operations (FLOP) of a forward pass and a training step for one image."""
    config = network_config(run, batch_size=1)
    step = losses.get_step_fn(sde_lib.get_sde(config), True, losses.optimization_manager(config))
    state, (x, labels) = run_lib.create_state(config), inputs(config, 1)
    return dict(
        forward=flops(torch.no_grad()(lambda: state['model'].eval()(x, labels))),
        step=flops(lambda: step(state, x)),
    )


def networks(run: Run) -> list[Table]:
    """Measure NCSN++ in all modes until the time is used up."""
    rates, work, rows = limits(run), operations(run), []
    for name in ['2021 formulation, float32', 'float32'] if run.quick else MODES:
        in_time = run.quick or run.left() > 200
        late = dict(mode=f'{name} (no time left)')
        rows.append(network_row(run, name, rates, work) if in_time else late)
        print(rows[-1], flush=True)
    columns = {'': ('mode', '{}'), 'batch': ('batch', '{}')}
    for key in ('forward', 'step'):
        columns |= {
            f'{key}, s': (f'{key}_seconds', '{:.4f}'),
            f'{key}, images/s': (f'{key}_images', '{:.0f}'),
            f'{key}, of products': (f'{key}_of_products', '{:.2f}'),
        }
    columns |= {'memory of a step, GiB': ('memory', '{:.1f}'), 'first step, s': ('first', '{:.1f}')}
    title = (
        f'NCSN++, GFLOP per image: {work["forward"] / 1e9:.1f} in a forward pass, '
        f'{work["step"] / 1e9:.1f} in a training step'
    )
    return [ceilings(rates), Table(title, columns, rows)]


def ceilings(rates: dict) -> Table:
    rows = [
        dict(what=f'matrix products, {name}', rate=rate / 1e12, unit='TFLOP/s')
        for name, rate in rates.items()
        if name != 'copy'
    ]
    rows.append(dict(what='copy (read + write)', rate=rates['copy'] / 1e12, unit='TB/s'))
    columns = {'': ('what', '{}'), 'rate': ('rate', '{:.3f}'), 'unit': ('unit', '{}')}
    return Table('Upper limits', columns, rows)


def samplers(run: Run) -> list[Table]:
    """Time samplers relative to their network evaluations alone; time drift and divergence."""
    config = network_config(run, **({} if run.quick else dict(precision='bfloat16')))
    torch.manual_seed(run.seed)
    model = create_model(config).eval().requires_grad_(False)
    x, labels = inputs(config, 2 if run.quick else 256)
    return [
        Table(
            'Samplers, NCSN++ ' + ('' if run.quick else 'in bfloat16'),
            {
                '': ('sampler', '{}'),
                'images': ('batch', '{}'),
                'NFE': ('nfe', '{}'),
                's': ('seconds', '{:.3f}'),
                'images/s': ('images', '{:.1f}'),
                'over its evaluations alone': ('ratio', '{:.3f}'),
            },
            sampler_rows(run, config, model, x, labels),
        ),
        divergence(run, config, model, x[: max(1, len(x) // 2)]),
    ]


def sampler_rows(run: Run, config, model, x, labels) -> list[dict]:
    ways, evaluations = {}, {}
    for method, steps in (('pc', 24), ('heun', 18), ('dpmpp_2m', 18)):
        config.sampling.update(method=method, steps=steps)
        sde = sde_lib.get_sde(config)
        sample = sampling.get_sampling_fn(config, sde, x.shape, lambda x: x, sde.sampling_eps)
        ways[f'{method}, {steps} steps'] = functools.partial(sample, model)
        evaluations[f'{method}, {steps} steps'] = sample(model)[1]
    calls = max(evaluations.values())
    bare = torch.no_grad()(lambda: [model(x, labels) for _ in range(calls)])
    times = interleaved(ways | dict(bare=bare), run.device, min(run.repeats, 3))
    best = {name: min(found) for name, found in times.items()}
    return [
        dict(
            sampler=name,
            batch=len(x),
            nfe=evaluations[name],
            seconds=best[name],
            images=len(x) / best[name],
            ratio=best[name] / (best['bare'] * evaluations[name] / calls),
        )
        for name in ways
    ]


def divergence(run: Run, config, model, x) -> Table:
    """Time the drift of the probability flow ODE, and its divergence computed in two ways."""
    passes = divergence_ways(sde_lib.get_sde(config), model, x)
    times = interleaved(passes, run.device, run.repeats)
    best = {name: min(found) for name, found in times.items()}
    return Table(
        f'Drift and divergence, batch {len(x)}',
        {'': ('way', '{}'), 's': ('seconds', '{:.4f}'), 'of two passes': ('ratio', '{:.2f}')},
        [
            dict(way=name, seconds=value, ratio=value / best['two passes'])
            for name, value in best.items()
        ],
    )
