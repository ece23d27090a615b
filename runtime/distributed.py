"""Processes that share one job, one for each device, on one machine or several.

    torchrun --nproc_per_node=4 main.py --config ... --workdir ... --mode train

All functions also work in a single process, at no cost. A training batch is split by rows: every
process draws the random numbers of the whole batch and keeps those of its rows, so the numbers do
not depend on the number of processes. All other work is divided into independent items
(`in_turns`). Process 0 gathers the results, and it alone writes files.
"""

import contextlib
import datetime
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from absl import logging

from runtime import interruption
from runtime.errors import UserError
from runtime.randomness import seed_of


def size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def start(device: str, timeout_minutes: float) -> str:
    """Join the processes that torchrun started, if any, and return the device of this process.

    Args:
        device: 'cpu', 'cuda' and so on. With torchrun 'cuda' becomes the GPU of this process.
        timeout_minutes: how long a process waits for the others before all of them stop.

    Raises:
        UserError: if the machine has fewer GPUs than processes.
    """
    if int(os.environ.get('WORLD_SIZE', 1)) == 1 or dist.is_initialized():
        return device
    cuda = str(device).startswith('cuda')
    if cuda:
        local, found = int(os.environ['LOCAL_RANK']), torch.cuda.device_count()
        if local >= found:
            raise UserError(
                f'torchrun started process {local} on a machine with {found} CUDA '
                'devices: set --nproc_per_node to at most this number'
            )
        torch.cuda.set_device(local)
        device = f'cuda:{local}'
    timeout = datetime.timedelta(minutes=timeout_minutes)
    store, number, world_size = next(dist.rendezvous('env://', timeout=timeout))
    dist.init_process_group(
        'cpu:gloo,cuda:nccl' if cuda else 'gloo',
        timeout=timeout,
        store=store,
        rank=number,
        world_size=world_size,
    )
    interruption.share(dist.PrefixStore('interruption', store))
    return device


def is_loss(error: Exception) -> bool:
    """Whether an error means that another process has died, or did not respond in time."""
    words = (
        'closed by peer|connection reset|timed out|timeout|broken pipe|connection refused|'
        'remote process'
    )
    return size() > 1 and (
        isinstance(error, dist.DistError) or bool(re.search(words, str(error), re.IGNORECASE))
    )


def stop() -> None:
    """Leave the process group, so that the others no longer wait for this process."""
    interruption.share(None)
    if dist.is_initialized():
        dist.destroy_process_group()


def rows(count: int) -> slice:
    """Return the slice of rows of this process in a batch of `count` rows.

    Raises:
        UserError: if the batch cannot be split evenly among the processes.
    """
    if count % size():
        raise UserError(f'a batch of {count} cannot be split evenly among {size()} processes')
    share = count // size()
    return slice(rank() * share, (rank() + 1) * share)


def mean(value: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over the processes."""
    if size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / size()


def any_of(value: int) -> int:
    """The largest `value` over the processes.

    The processes wait for each other, but their devices do not.
    """
    if size() == 1:
        return value
    box = torch.tensor(value)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)


def broadcast(value: Any) -> Any:
    """Return the `value` of process 0 in every process."""
    if size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def gather(value: Any) -> list | None:
    """Return the values of all processes, in order of rank, in process 0; None in the others."""
    if size() == 1:
        return [value]
    found = [None] * size() if is_main() else None
    dist.gather_object(value, found)
    return found


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Let process 0 run the block before the others do.

    In the block, process 0 can download or prepare files that all processes need.
    """
    if not is_main():
        broadcast(None)
    yield
    if is_main():
        broadcast(None)


def in_turns(items: Sequence, work: Callable) -> Iterator[tuple]:
    """Share items among the processes; yield (item, work(item)) in order in process 0.

    The other processes do their part of the work and yield nothing.

    In each round every process works on one item, and the round ends when all are done. Processes
    do not wait for each other within an item, so items may differ in duration and in solver steps.
    A signal that interrupts one process interrupts all of them in the same round.
    """
    for start in range(0, len(items), size()):
        dealt = items[start : start + size()]
        stopped, found = 0, None
        try:
            interruption.look()
            found = work(dealt[rank()]) if rank() < len(dealt) else None
        except interruption.Interrupted as error:
            stopped = error.signal
        if stopped := any_of(stopped):
            raise interruption.Interrupted(stopped)
        done = gather(found)
        if is_main():
            yield from zip(dealt, done)


# Random numbers -----------------------------------------------------------------------------------

_common: dict[str, torch.Generator] = {}


def _key(device) -> str:
    return torch.device(device).type


def common_generator(device: str | torch.device) -> torch.Generator | None:
    """Return the generator on the device from which all processes draw the same numbers.

    In a single process this is None, which means PyTorch's default generator.
    """
    return _common.get(_key(device)) if size() > 1 else None


def begin_randomness(
    device: str | torch.device, seed: int, state: dict | None = None, step: int = 0
) -> None:
    """Separate the random numbers that all processes share from those of each process.

    `common_generator` takes the state of PyTorch's default generator, which must be the same in
    every process. The default generator, from which networks draw for the rows of a process, is
    then seeded by `seed`, `step` and the number of the process. A single process has one stream for
    both.

    Args:
        device: the device of the generators.
        seed: seed of the job.
        state: result of `random_state` to resume from. If the number of processes has changed, only
            the shared stream is restored.
        step: training step; after a resume the streams of the processes differ from before.
    """
    if size() > 1:
        _common[_key(device)] = torch.Generator(device)
        _common[_key(device)].set_state(_own_state(device))
        torch.manual_seed(seed_of(seed, 'process', rank(), step))
    if state is None:
        return
    if state.get('device') != _key(device):
        logging.warning(
            'Started new random numbers: the random state in the checkpoint is not for device %s.',
            _key(device),
        )
        return
    if size() > 1:
        common_generator(device).set_state(state['common'].cpu())
    own = [state['common']] if size() == 1 else state['own']
    if len(own) == size() and _key(device) == 'cuda':
        torch.cuda.set_rng_state(own[rank()].cpu(), device)
    elif len(own) == size() and _key(device) == 'mps':
        torch.mps.set_rng_state(own[rank()].cpu())
    elif len(own) == size():
        torch.set_rng_state(own[rank()].cpu())


def random_state(device: str | torch.device) -> dict | None:
    """Return, in process 0, the state from which `begin_randomness` resumes; None in the others.

    Every process must call it.
    """
    own, common = gather(_own_state(device)), common_generator(device)
    return (
        dict(device=_key(device), common=common.get_state() if common else own[0], own=own)
        if is_main()
        else None
    )


def _own_state(device) -> torch.Tensor:
    if _key(device) == 'mps':
        return torch.mps.get_rng_state()
    return torch.cuda.get_rng_state(device) if _key(device) == 'cuda' else torch.get_rng_state()
