"""CUDA C++ compiled where it is used: source -> machine code of one GPU -> kernels, launched on
PyTorch's current stream.

NVRTC, NVIDIA's compiler as a library, and cuda-bindings, which reach it and the driver from Python,
come with PyTorch's CUDA packages: nothing else has to be installed, and nothing is imported before
the first use. Compiling needs no GPU.
"""

import ctypes
import re

import torch


def architecture(capability: tuple[int, int]) -> str:
    """The target for a GPU of this compute capability: its machine code, or where NVRTC knows none
    of it, the newest older PTX.

    RuntimeError for a GPU older than all that NVRTC knows.
    """
    from cuda.bindings import nvrtc

    wanted = 10 * capability[0] + capability[1]
    known = [number for number in _checked(nvrtc.nvrtcGetSupportedArchs()) if number <= wanted]
    if not known:
        raise RuntimeError(
            f'NVRTC {".".join(map(str, _checked(nvrtc.nvrtcVersion())))} does not '
            'compile for compute capability '
            f'{capability[0]}.{capability[1]}'
        )
    return f'sm_{wanted}' if wanted in known else f'compute_{max(known)}'


def compile(source: str, target: str, **macros) -> tuple[bytes, str]:
    """(image, log) of CUDA C++ for a target such as 'sm_90' (machine code) or 'compute_90' (PTX),
    with `macros` defined.

    The log tells the registers and spills of each kernel of machine code: `resources` reads it.
    RuntimeError with the compiler's words if it refuses.
    """
    from cuda.bindings import nvrtc

    program = _checked(nvrtc.nvrtcCreateProgram(source.encode(), b'kernels.cu', 0, [], []))
    try:
        options = [
            f'--gpu-architecture={target}',
            '--std=c++17',
            '--ptxas-options=-v',
            *(f'-D{name}={value}' for name, value in macros.items()),
        ]
        (status,) = nvrtc.nvrtcCompileProgram(
            program, len(options), [option.encode() for option in options]
        )
        log = (
            _read(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
            .replace(b'\0', b'')
            .decode(errors='replace')
            .strip()
        )
        if status:
            raise RuntimeError(f'{status.name} for {target}: {log}')
        if target.startswith('sm_'):
            return _read(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program), log
        return _read(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program), log
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def resources(log: str) -> dict[str, dict]:
    """What each kernel takes, by its name: registers per thread; bytes of shared memory per block,
    of stack and spills per thread.
    """
    found = {}
    for part in re.split(r"Compiling entry function '", log)[1:]:

        def number(pattern, part=part):
            match = re.search(pattern, part)
            return int(match[1]) if match else 0

        found[part[: part.index("'")]] = dict(
            registers=number(r'Used (\d+) registers'),
            shared=number(r'(\d+) bytes smem'),
            stack=number(r'(\d+) bytes stack frame'),
            spills=number(r'(\d+) bytes spill stores') + number(r'(\d+) bytes spill loads'),
        )
    return found


class Module:
    """The kernels of an image, on one device; `device` is the index by which PyTorch knows it."""

    def __init__(self, image: bytes, device: int):
        from cuda.bindings import driver

        torch.cuda.init()
        self.driver, self.device, self.functions = driver, device, {}
        # the one that PyTorch works in
        self.context = _checked(
            driver.cuDevicePrimaryCtxRetain(_checked(driver.cuDeviceGet(device)))
        )
        self.module = self._in_context(driver.cuModuleLoadData, image)

    def launch(
        self, name: str, blocks: int, threads: int, arguments: bytes, offsets: tuple[int, ...]
    ):
        """Starts kernel `name`; its arguments lie in `arguments`, packed as in C, at `offsets`."""
        if name not in self.functions:
            self.functions[name] = self._in_context(
                self.driver.cuModuleGetFunction, self.module, name.encode()
            )
        first = ctypes.addressof(buffer := ctypes.create_string_buffer(arguments, len(arguments)))
        pointers = (ctypes.c_void_p * len(offsets))(*[first + offset for offset in offsets])
        stream = torch.cuda.current_stream(self.device).cuda_stream
        self._in_context(
            self.driver.cuLaunchKernel,
            self.functions[name],
            blocks,
            1,
            1,
            threads,
            1,
            1,
            0,
            stream,
            ctypes.addressof(pointers),
            0,
        )
        del buffer  # held until here: the driver has copied it

    def _in_context(self, call, *arguments):
        """call(*arguments) in the context of the device: a thread may be in that of another one, or
        in none yet.
        """
        _checked(self.driver.cuCtxPushCurrent(self.context))
        try:
            return _checked(call(*arguments))
        finally:
            _checked(self.driver.cuCtxPopCurrent())


def _checked(result: tuple):
    """The value or values behind the status of a call, or a RuntimeError that names the status."""
    status, *values = result
    if status:
        raise RuntimeError(status.name)
    return values[0] if len(values) == 1 else values


def _read(size, content, program) -> bytes:
    buffer = bytearray(_checked(size(program)))  # not bytes: Python shares those of length 1
    _checked(content(program, buffer))
    return bytes(buffer)
