"""Compile CUDA C++ at run time and launch its kernels on PyTorch's current stream.

NVRTC is NVIDIA's compiler as a library. The package cuda-bindings calls NVRTC and the driver from
Python. Both come with PyTorch's CUDA packages, so nothing else has to be installed. They are
imported at the first use. Compiling needs no GPU.
"""

import ctypes
import re

import torch


def architecture(capability: tuple[int, int]) -> str:
    """The compilation target for a GPU of this compute capability.

    It is the machine code of the GPU or, if NVRTC does not know the GPU, the newest older PTX that
    NVRTC knows.

    Raises:
        RuntimeError: if the GPU is older than all GPUs that NVRTC supports.
    """
    from cuda.bindings import nvrtc

    wanted = 10 * capability[0] + capability[1]
    known = [number for number in _checked(nvrtc.nvrtcGetSupportedArchs()) if number <= wanted]
    if not known:
        raise RuntimeError(
            f'NVRTC {".".join(map(str, _checked(nvrtc.nvrtcVersion())))} does not '
            'support compute capability '
            f'{capability[0]}.{capability[1]}'
        )
    return f'sm_{wanted}' if wanted in known else f'compute_{max(known)}'


def compile(source: str, target: str, **macros) -> tuple[bytes, str]:
    """Compile CUDA C++ and return the binary image and the compiler's log.

    Args:
        source: the source code.
        target: 'sm_90' (machine code), 'compute_90' (PTX) or the like.
        **macros: macros to define.

    Returns:
        The image, and the log. For machine code the log contains the registers and spills of each
        kernel (see `resources`).

    Raises:
        RuntimeError: with the compiler's message if the source does not compile.
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
    """The resources of each kernel, by name, from the log of `compile`.

    These are registers per thread, bytes of shared memory per block, and bytes of stack and of
    spills per thread.
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
    """The kernels of a compiled image on one device; `device` is the device's index in PyTorch."""

    def __init__(self, image: bytes, device: int):
        from cuda.bindings import driver

        torch.cuda.init()
        self.driver, self.device = driver, device
        self.functions: dict = {}  # by name
        # the context that PyTorch uses
        self.context = _checked(
            driver.cuDevicePrimaryCtxRetain(_checked(driver.cuDeviceGet(device)))
        )
        self.module = self._in_context(driver.cuModuleLoadData, image)

    def launch(
        self, name: str, blocks: int, threads: int, arguments: bytes, offsets: tuple[int, ...]
    ) -> None:
        """Launch the kernel `name`; `arguments` are packed as in C, each at one of `offsets`."""
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
        del buffer  # must exist until here; now the driver has copied it

    def _in_context(self, call, *arguments):
        """Return call(*arguments) in the context of the device.

        The current context of a thread may be that of another device, or none.
        """
        _checked(self.driver.cuCtxPushCurrent(self.context))
        try:
            return _checked(call(*arguments))
        finally:
            _checked(self.driver.cuCtxPopCurrent())


def _checked(result: tuple):
    """The value or values after the status of a call; raise RuntimeError if the call failed."""
    status, *values = result
    if status:
        raise RuntimeError(status.name)
    return values[0] if len(values) == 1 else values


def _read(size, content, program) -> bytes:
    buffer = bytearray(_checked(size(program)))  # Python shares bytes of length 1
    _checked(content(program, buffer))
    return bytes(buffer)
