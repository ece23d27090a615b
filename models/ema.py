"""An exponential moving average of parameters (Polyak & Juditsky 1992), used for sampling."""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


class ExponentialMovingAverage:
    """The average shadow <- d shadow + (1 - d) parameter, computed at each `update`.

    d is `decay`, or with `use_num_updates` the smaller of `decay` and (1 + n) / (10 + n) at the
    n-th update, so that the average forgets the initial values. `shadow_params` are the averages
    of the parameters that require a gradient, in their order. `untrained` are the averages of the
    other parameters; only JAX checkpoints contain them, because JAX averages every parameter.
    """

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], decay: float, use_num_updates: bool = True
    ):
        if not 0 <= decay <= 1:
            raise ValueError(f'decay must lie in [0, 1], got {decay}')
        self.decay = decay
        self.num_updates = 0 if use_num_updates else None
        self.shadow_params = [p.detach().clone() for p in parameters if p.requires_grad]
        self.untrained: list[Tensor] = []
        self.collected_params: list[Tensor] = []
        self.collected_untrained: list[Tensor] = []

    def _paired(self, parameters, own, trained=True):
        theirs = [p for p in parameters if p.requires_grad == trained]
        if [p.shape for p in theirs] != [s.shape for s in own]:
            raise ValueError(
                f'expected the {len(own)} parameters that the average was made for, got '
                f'{len(theirs)} parameters: their number or shapes differ'
            )
        return theirs

    @torch.no_grad()
    def update(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Take one step of the average towards `parameters`."""
        kept = self.decay
        if self.num_updates is not None:
            n = self.num_updates = self.num_updates + 1
            kept = min(kept, (1 + n) / (10 + n))
        torch._foreach_lerp_(
            self.shadow_params, self._paired(parameters, self.shadow_params), 1 - kept
        )

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Overwrite `parameters` with the average."""
        parameters = list(parameters)
        torch._foreach_copy_(self._paired(parameters, self.shadow_params), self.shadow_params)
        if self.untrained:
            torch._foreach_copy_(
                self._paired(parameters, self.untrained, trained=False), self.untrained
            )

    def store(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Keep a copy of `parameters` for `restore`."""
        parameters = list(parameters)
        self.collected_params = [p.detach().clone() for p in parameters if p.requires_grad]
        self.collected_untrained = (
            [p.detach().clone() for p in parameters if not p.requires_grad]
            if self.untrained
            else []
        )

    @torch.no_grad()
    def restore(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Copy the values that `store` kept back to `parameters`."""
        parameters = list(parameters)
        torch._foreach_copy_(self._paired(parameters, self.collected_params), self.collected_params)
        if self.collected_untrained:
            torch._foreach_copy_(
                self._paired(parameters, self.collected_untrained, trained=False),
                self.collected_untrained,
            )
        self.collected_params, self.collected_untrained = [], []

    @contextlib.contextmanager
    def applied_to(self, parameters: Iterable[torch.nn.Parameter]) -> Iterator[None]:
        """Replace `parameters` by the average within the block."""
        parameters = list(parameters)
        self.store(parameters)
        self.copy_to(parameters)
        try:
            yield
        finally:
            self.restore(parameters)

    def state_dict(self) -> dict:
        return dict(
            decay=self.decay, num_updates=self.num_updates, shadow_params=self.shadow_params
        ) | (dict(untrained=self.untrained) if self.untrained else {})

    def load_state_dict(self, state_dict: dict) -> None:
        """Load an average of the same parameters.

        Raises:
            ValueError: if the number of tensors or a shape differs; nothing is changed then.
        """
        loaded = [torch.as_tensor(p) for p in state_dict['shadow_params']]
        for i, (own, new) in enumerate(zip(self.shadow_params, loaded)):
            if own.shape != new.shape:
                raise ValueError(
                    f'tensor {i} of the moving average in the state has shape '
                    f'{tuple(new.shape)}, expected {tuple(own.shape)}'
                )
        if len(loaded) != len(self.shadow_params):
            raise ValueError(
                f'the moving average in the state has {len(loaded)} tensors, expected '
                f'{len(self.shadow_params)} as in this network'
            )
        self.decay, self.num_updates = state_dict['decay'], state_dict['num_updates']
        self.shadow_params = [
            torch.empty_like(own).copy_(new) for own, new in zip(self.shadow_params, loaded)
        ]
        self.untrained = [
            torch.as_tensor(p).to(self.shadow_params[0].device)
            for p in state_dict.get('untrained', ())
        ]
