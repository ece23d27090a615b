"""The CUDA kernels of upfirdn2d on a GPU."""

import numpy as np
import pytest
import torch

from models import up_or_down_sampling as resampling
from op import upfirdn2d
from op.upfirdn2d import SCALARS, resample
from resampling_cases import (
    FIR,
    FORMATS,
    RESAMPLINGS,
    check,
    check_compiled_is_eager,
    definition,
    fast_cases,
    filters,
    module,
    numbers,
    settings,
)

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize('layout', FORMATS)
@pytest.mark.parametrize('dtype', SCALARS, ids=str)
def test_gpu_kernels(dtype, layout):
    for _, shape, setting in fast_cases(128 // torch.finfo(dtype).bits):
        check(
            resample, numbers(shape, dtype, layout, 'cuda'), filters((4, 4), dtype, 'cuda'), setting
        )
    for shape, taps_shape, setting in settings(0, 60, meet=False):
        check(
            resample,
            numbers(shape, dtype, layout, 'cuda'),
            filters(taps_shape, dtype, 'cuda'),
            setting,
        )


def test_gpu_has_kernels():
    assert all(module._has_kernels(torch.device('cuda', 0), dtype) for dtype in SCALARS), (
        module._reasons
    )


@pytest.mark.parametrize(
    'setting',
    [(2, 1, (2, 2), (8, 16), True), (1, 2, (1, 1), (2, 4), True), (3, 2, (-1, 4), (5, 7), False)],
    ids=str,
)
@pytest.mark.parametrize('layout', FORMATS)
def test_gpu_derivatives(layout, setting):
    x = numbers((1, 2, 4, 8), torch.float64, layout, 'cuda').requires_grad_()
    taps = filters((4, 4), torch.float64, 'cuda')
    assert torch.autograd.gradcheck(lambda x: resample(x, taps, *setting), x)
    assert torch.autograd.gradgradcheck(lambda x: resample(x, taps, *setting), x)
    torch.library.opcheck(resample, (x, taps, *setting))


@pytest.mark.parametrize('layout', FORMATS)
@pytest.mark.parametrize('way', RESAMPLINGS)
def test_gpu_compiled_is_eager(way, layout):
    check_compiled_is_eager(way, layout, 'cuda')


def test_gpu_graph():
    """Forward and backward passes are recorded as a CUDA graph and replayed with other inputs."""
    x = torch.randn(2, 8, 8, 8, device='cuda', requires_grad=True)
    # created first, because a copy from the CPU cannot be recorded
    enlarging, shrinking = (resampling.fir_filter(FIR, gain=gain).cuda() for gain in (4, 1))

    def step():
        out = resampling.shrink(resampling.enlarge(x, enlarging), shrinking)
        return out, *torch.autograd.grad(out.square().sum(), x)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, grad = step()
    with torch.no_grad():
        x.normal_()
    graph.replay()
    for value, expected in zip((out, grad), step()):
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize('stream', [True, False])
def test_gpu_order(stream):
    """A kernel runs after earlier work of its stream, also in threads without a CUDA context."""
    from concurrent.futures import ThreadPoolExecutor

    taps, x = torch.ones(4, 4, device='cuda'), torch.zeros(8, 8, 256, 256, device='cuda')
    resample(x, taps, 2, 1, (2, 2), (512, 512), True)
    torch.cuda.synchronize()

    def work():
        with torch.cuda.stream(torch.cuda.Stream() if stream else torch.cuda.default_stream()):
            torch.cuda._sleep(10**7)
            y = torch.ones_like(x)
            out = resample(y, taps, 2, 1, (2, 2), (512, 512), True)
            assert out[..., 2:-2, 2:-2].eq(4).all()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()
    work()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two CUDA devices')
def test_gpu_second_device():
    """Kernels run on the device of their input, which may not be the current device."""
    for device in ('cuda:1', 'cuda:0', 'cuda:1'):
        x, taps = torch.randn(2, 8, 8, 8, device=device), torch.ones(4, 4, device=device)
        check(resample, x, taps, (2, 1, (2, 2), (16, 16), True))


def test_gpu_filter_from_the_cpu_and_its_gradient():
    x = torch.randn(2, 3, 8, 8, device='cuda', dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(4, 4, dtype=torch.float64)
    setting = 2, 1, (2, 2), (16, 16), True
    out = upfirdn2d(x, kernel, up=2, pad=(2, 1))
    np.testing.assert_allclose(
        out.detach().cpu(), definition(x.detach(), kernel, *setting), atol=1e-12
    )
    kernel = kernel.cuda().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda kernel: upfirdn2d(x[:1, :1, :3, :3].detach(), kernel, up=2, pad=(2, 1)), kernel
    )
