"""Several processes that share one job, one for each device: those that torchrun starts, on one
machine or on several.

    torchrun --nproc_per_node=4 main.py --config ... --workdir ... --mode train

Everything here is right in a single process too, and costs nothing there. A batch of training is
split by rows, and every process draws the random numbers of the whole batch and keeps its own rows,
so that the numbers are those of a single process. All else is shared out as pieces of work that do
not depend on each other (`in_turns`); process 0 gathers what came of them and is the only one that
writes.
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
    """Joins the processes that torchrun started, if it did, and returns the device of this one: of
    CUDA, that of its number on its machine.

    `timeout_minutes`: how long one waits for the others before all of them give up.
    """
    if int(os.environ.get('WORLD_SIZE', 1)) == 1 or dist.is_initialized():
        return device
    cuda = str(device).startswith('cuda')
    if cuda:
        local, found = int(os.environ['LOCAL_RANK']), torch.cuda.device_count()
        if local >= found:
            raise UserError(
                f'torchrun started process {local} on a machine with {found} CUDA '
                'devices: --nproc_per_node must not be more'
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
    """Whether an error says that another process has died, or has not answered in time."""
    words = (
        'closed by peer|connection reset|timed out|timeout|broken pipe|connection refused|'
        'remote process'
    )
    return size() > 1 and (
        isinstance(error, dist.DistError) or bool(re.search(words, str(error), re.IGNORECASE))
    )


def stop() -> None:
    """Leaves the others, who need no longer wait."""
    interruption.share(None)
    if dist.is_initialized():
        dist.destroy_process_group()


def rows(count: int) -> slice:
    """Of a whole batch of `count` rows those of this process; UserError where they cannot be shared
    out evenly.
    """
    if count % size():
        raise UserError(f'a batch of {count} cannot be shared evenly by {size()} processes')
    share = count // size()
    return slice(rank() * share, (rank() + 1) * share)


def mean(value: torch.Tensor) -> torch.Tensor:
    """The mean over the processes of a tensor that each of them has."""
    if size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / size()


def any_of(value: int) -> int:
    """The largest of the numbers of all processes; the hosts wait for each other, their devices do
    not.
    """
    if size() == 1:
        return value
    box = torch.tensor(value)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)


def broadcast(value: Any) -> Any:
    """What process 0 calls `value`, for every process."""
    if size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def gather(value: Any) -> list | None:
    """The values of all processes, in their order, for process 0; None for the others."""
    if size() == 1:
        return [value]
    found = [None] * size() if is_main() else None
    dist.gather_object(value, found)
    return found


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Process 0 goes through the block, in which it may fetch or prepare what all of them need,
    before the others do.
    """
    if not is_main():
        broadcast(None)
    yield
    if is_main():
        broadcast(None)


def in_turns(items: Sequence, work: Callable) -> Iterator[tuple]:
    """(item, work(item)) of all items, in order, for process 0; the others do their part of the
    work and get nothing.

    Items are dealt out round by round, one to each process, and a round ends when all have done
    theirs: no process waits within its work, so that it may take as long, and as many steps of a
    solver, as it needs. A signal that interrupts the work of one process interrupts all of them, in
    the same round.
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
    """The generator on the device from which all processes draw the same numbers; None, PyTorch's
    own, for a single process.
    """
    return _common.get(_key(device)) if size() > 1 else None


def begin_randomness(
    device: str | torch.device, seed: int, state: dict | None = None, step: int = 0
) -> None:
    """Separates what processes draw together from what each draws of its own rows within the
    network.

    `common_generator` begins where PyTorch's own generator of the device stands, which must be the
    same in every process, and that begins a stream of the process, from `seed` and `step`. A single
    process has one stream for both. `state`: of `random_state`, to go on from there; with another
    number of processes than there were, what they draw together goes on, and their own streams are
    new.
    """
    if size() > 1:
        _common[_key(device)] = torch.Generator(device)
        _common[_key(device)].set_state(_own_state(device))
        torch.manual_seed(seed_of(seed, 'process', rank(), step))
    if state is None:
        return
    if state.get('device') != _key(device):
        logging.warning(
            'The random numbers of the checkpoint are not those of a %s: they begin anew.',
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
    """What `begin_randomness` needs to go on, for process 0; the others help to gather it."""
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
