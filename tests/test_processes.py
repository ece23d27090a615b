"""Communication between processes, their random numbers, and the rows of a batch they read."""

import os
import signal

import numpy as np
import pytest
import torch
import torch.multiprocessing

from data.batches import Batches
from data.images import Images
from runtime import distributed, interruption
from runtime.errors import UserError


def _process(rank, check, folder):
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE='3',
        LOCAL_RANK=str(rank),
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=(folder / 'port').read_text(),
    )
    torch.set_num_threads(1)
    assert distributed.start('cpu', timeout_minutes=1) == 'cpu'
    check(rank, folder)
    distributed.stop()


def in_three_processes(check, folder):
    import socket

    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        (folder / 'port').write_text(str(probe.getsockname()[1]))
    torch.multiprocessing.spawn(_process, (check, folder), nprocs=3)


def _check_exchange(rank, folder):
    assert (
        distributed.size() == 3
        and distributed.rank() == rank
        and distributed.is_main() == (rank == 0)
    )
    assert distributed.mean(torch.tensor([1.0, rank])).tolist() == [1.0, 1.0]
    assert distributed.broadcast({'of': rank}) == {'of': 0}
    assert distributed.gather(rank) == ([0, 1, 2] if rank == 0 else None)
    assert distributed.rows(12) == slice(4 * rank, 4 * rank + 4)
    with pytest.raises(UserError, match='a batch of 13 cannot be split evenly among 3'):
        distributed.rows(13)
    done = []
    found = list(distributed.in_turns('abcdefg', lambda item: done.append(item) or (item, rank)))
    assert ''.join(done) == 'abcdefg'[rank::3]
    assert found == (
        [(item, (item, i % 3)) for i, item in enumerate('abcdefg')] if rank == 0 else []
    )
    assert list(distributed.in_turns([], done.append)) == []
    _check_interruption(rank)


def _check_interruption(rank):
    """One process is interrupted in the second round; the others notice it at their next check."""

    def work(item):
        if item == 4:
            raise interruption.Interrupted(15)
        interruption.look()
        return item

    with pytest.raises(SystemExit) as caught:
        assert list(distributed.in_turns(range(9), work)) == []
    assert caught.value.code == 143
    distributed.gather(None)
    if rank == 2:
        with interruption.interruptible(), interruption.held():
            os.kill(os.getpid(), signal.SIGTERM)
    distributed.gather(None)
    distributed.broadcast(None)
    interruption._shared.asked = 0.0
    with pytest.raises(interruption.Interrupted):
        interruption.look()


@pytest.mark.slow
def test_exchange(tmp_path):
    in_three_processes(_check_exchange, tmp_path)


def _check_randomness(rank, folder):
    torch.manual_seed(5)
    expected = torch.Generator().manual_seed(5)
    distributed.begin_randomness('cpu', 5)
    generator = distributed.common_generator(torch.device('cpu'))
    first = torch.rand(4, generator=generator)
    assert torch.equal(first, torch.rand(4, generator=expected))  # as in a single process
    own = torch.rand(4)
    everyone = distributed.gather(own)
    if rank == 0:
        assert len({tuple(values.tolist()) for values in everyone}) == 3  # all differ
    state = distributed.broadcast(distributed.random_state('cpu'))
    after = torch.rand(4, generator=generator), torch.rand(4)
    distributed.begin_randomness('cpu', 5, state)
    generator = distributed.common_generator('cpu')
    assert torch.equal(torch.rand(4, generator=generator), after[0]) and torch.equal(
        torch.rand(4), after[1]
    )


@pytest.mark.slow
def test_randomness(tmp_path):
    in_three_processes(_check_randomness, tmp_path)


def test_a_single_process_needs_no_process_group(monkeypatch):
    monkeypatch.delenv('WORLD_SIZE', raising=False)
    assert distributed.start('cpu', 1.0) == 'cpu' and not torch.distributed.is_initialized()
    assert (
        distributed.rows(5) == slice(0, 5)
        and distributed.broadcast(3) == 3
        and distributed.gather(3) == [3]
    )
    assert list(distributed.in_turns([1, 2], lambda item: 10 * item)) == [(1, 10), (2, 20)]
    assert distributed.common_generator('cpu') is None
    torch.manual_seed(3)
    distributed.begin_randomness('cpu', 0)
    state, drawn = distributed.random_state('cpu'), torch.rand(3)
    distributed.begin_randomness('cpu', 0, state)
    assert torch.equal(torch.rand(3), drawn)


def test_random_state_of_another_device_is_not_restored(caplog):
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    for state in (
        dict(device='cuda', common=torch.zeros(16, dtype=torch.uint8), own=[]),
        dict(cpu=torch.get_rng_state()),
    ):
        distributed.begin_randomness('cpu', 0, state)
    assert torch.equal(torch.rand(2), expected) and 'Started new random numbers' in caplog.text


# Data ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize('dequantize', [False, True])
def test_rows_of_the_processes_are_the_batch(dequantize):
    """Each process reads only its images, flipped and dequantized as in the whole batch."""
    rng, read = np.random.default_rng(0), []

    class Counting(Images):
        def read(self, indices):
            read.extend(indices)
            return super().read(indices)

    images = Counting(rng.integers(0, 256, (50, 6, 6, 3), np.uint8), np.arange(50))
    settings = dict(
        batch_size=12, seed=1, start=0, shuffle=True, random_flip=True, dequantize=dequantize
    )
    whole = Batches(images, **settings)
    parts = [Batches(images, **settings, rows=slice(4 * rank, 4 * rank + 4)) for rank in range(3)]
    for i in (0, 3, 4, 40):  # one batch spans two epochs
        read.clear()
        expected = whole.batch(i)
        all_read, found = sorted(read), []
        read.clear()
        for part in parts:
            found.append(part.batch(i))
            assert len(read) == 4 * len(found)
        assert sorted(read) == all_read
        for key in expected:
            np.testing.assert_array_equal(
                np.concatenate([part[key] for part in found]), expected[key]
            )
