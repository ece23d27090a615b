"""Sections of gpu.py: the speed of networks, training steps and samplers."""

import contextlib
import functools
import pathlib
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

ROOT = pathlib.Path(__file__).parents[1]


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
    """Bytes/s of a large copy, counting bytes read and bytes written."""
    source = torch.randn(2**20 if run.quick else 2**30, device=run.device)
    target = torch.empty_like(source)
    return (
        2
        * source.nbytes
        / min(interleaved({'copy': lambda: target.copy_(source)}, run.device, run.repeats)['copy'])
    )


def limits(run: Run) -> dict[str, float]:
    """FLOP/s of matrix products by precision, and bytes/s of a copy."""
    found = {}
    for name, dtype, tf32 in [
        ('float32', torch.float32, False),
        ('TF32', torch.float32, True),
        ('bfloat16', torch.bfloat16, False),
    ][: 1 if run.device == 'cpu' else 3]:
        with tensor_cores(tf32):
            products = Products(run.device, [dtype], run.quick)
            found[name] = products.rate(interleaved(products.ways, run.device, run.repeats), dtype)
    return found | {'copy': bandwidth(run)}


def network_row(run: Run, name: str, rates: dict, work: dict) -> dict:
    """Forward pass and training step of NCSN++ in one mode: seconds, images/s, share of products,
    peak memory.
    """
    settings, tf32, old = MODES[name]
    batch = 2 if run.quick else 128
    torch.manual_seed(run.seed)
    config = network_config(run, batch_size=batch, **settings)
    with tensor_cores(tf32), formulation_2021() if old else contextlib.nullcontext():
        state, (x, labels) = run_lib.create_state(config), inputs(config, batch)
        if old:
            state['optimizer'] = torch.optim.Adam(
                state['model'].parameters(), lr=2e-4, foreach=False
            )
        step = losses.get_step_fn(
            sde_lib.get_sde(config), True, losses.optimization_manager(config)
        )
        start = time.perf_counter()
        step(state, x)
        first = time.perf_counter() - start
        if run.device == 'cuda':
            torch.cuda.reset_peak_memory_stats()
        step(state, x)
        memory = torch.cuda.max_memory_allocated() / 2**30 if run.device == 'cuda' else None

        @torch.no_grad()
        def forward():
            state['model'].eval()(x, labels)

        def steps():
            for _ in range(1 if run.quick else 5):
                step(state, x)

        times = interleaved(dict(forward=forward, step=steps), run.device, run.repeats)
    least = dict(forward=min(times['forward']), step=min(times['step']) / (1 if run.quick else 5))
    rate = rates.get('bfloat16' if 'bfloat16' in name else 'TF32' if tf32 else 'float32')
    return dict(
        mode=name,
        batch=batch,
        first=first,
        memory=memory,
        **{f'{key}_seconds': value for key, value in least.items()},
        **{f'{key}_images': batch / value for key, value in least.items()},
        **{
            f'{key}_of_products': rate and work[key] * batch / value / rate
            for key, value in least.items()
        },
    )


def operations(run: Run) -> dict[str, int]:
    """Floating-point operations of a forward pass and of a training step, for one image."""
    config = network_config(run, batch_size=1)
    step = losses.get_step_fn(sde_lib.get_sde(config), True, losses.optimization_manager(config))
    state, (x, labels) = run_lib.create_state(config), inputs(config, 1)
    return dict(
        forward=flops(torch.no_grad()(lambda: state['model'].eval()(x, labels))),
        step=flops(lambda: step(state, x)),
    )


def networks(run: Run) -> list[Table]:
    rates, work = limits(run), operations(run)
    modes = ['2021 formulation, float32', 'float32'] if run.quick else [*MODES]
    rows = []
    for name in modes:
        rows.append(
            network_row(run, name, rates, work)
            if run.quick or run.left() > 200
            else dict(mode=f'{name} (no time left)')
        )
        print(rows[-1], flush=True)
    ceilings = [
        dict(what=f'matrix products, {name}', rate=rate / 1e12, unit='TFLOP/s')
        for name, rate in rates.items()
        if name != 'copy'
    ] + [dict(what='copy, read and write', rate=rates['copy'] / 1e12, unit='TB/s')]
    columns = {'': ('mode', '{}'), 'batch': ('batch', '{}')}
    for key in ('forward', 'step'):
        columns |= {
            f'{key}, s': (f'{key}_seconds', '{:.4f}'),
            f'{key}, images/s': (f'{key}_images', '{:.0f}'),
            f'{key}, of products': (f'{key}_of_products', '{:.2f}'),
        }
    columns |= {'memory of a step, GiB': ('memory', '{:.1f}'), 'first step, s': ('first', '{:.1f}')}
    return [
        Table(
            'Ceilings',
            {'': ('what', '{}'), 'rate': ('rate', '{:.3f}'), 'unit': ('unit', '{}')},
            ceilings,
        ),
        Table(
            f'NCSN++, {work["forward"] / 1e9:.1f} GFLOP an image forward, '
            f'{work["step"] / 1e9:.1f} a training step',
            columns,
            rows,
        ),
    ]


def samplers(run: Run) -> list[Table]:
    """Samplers against the bare network evaluations that they make; the likelihood's drift and
    divergence.
    """
    config = network_config(run, **({} if run.quick else dict(precision='bfloat16')))
    batch = 2 if run.quick else 256
    torch.manual_seed(run.seed)
    model, (x, labels) = create_model(config).eval().requires_grad_(False), inputs(config, batch)
    ways, evaluations = {}, {}
    for method, steps in (('pc', 24), ('heun', 18), ('dpmpp_2m', 18)):
        config.sampling.update(method=method, steps=steps)
        sde = sde_lib.get_sde(config)
        sample = sampling.get_sampling_fn(config, sde, x.shape, lambda x: x, sde.sampling_eps)
        ways[f'{method}, {steps} steps'] = functools.partial(sample, model)
        evaluations[f'{method}, {steps} steps'] = sample(model)[1]
    calls = max(evaluations.values())
    bare = torch.no_grad()(lambda: [model(x, labels) for _ in range(calls)])
    times = {
        name: min(found)
        for name, found in interleaved(
            ways | dict(bare=bare), run.device, min(run.repeats, 3)
        ).items()
    }
    rows = [
        dict(
            sampler=name,
            batch=batch,
            nfe=evaluations[name],
            seconds=times[name],
            images=batch / times[name],
            ratio=times[name] / (times['bare'] * evaluations[name] / calls),
        )
        for name in ways
    ]
    x = x[: max(1, batch // 2)]
    passes = divergence_ways(sde_lib.get_sde(config), model, x)
    found = {
        name: min(times) for name, times in interleaved(passes, run.device, run.repeats).items()
    }
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
            rows,
        ),
        Table(
            f'Drift and divergence, batch {len(x)}',
            {'': ('way', '{}'), 's': ('seconds', '{:.4f}'), 'of two passes': ('ratio', '{:.2f}')},
            [
                dict(way=name, seconds=value, ratio=value / found['two passes'])
                for name, value in found.items()
            ],
        ),
    ]
