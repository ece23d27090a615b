"""Names for classes, so that a config can choose them: networks, predictors, correctors."""

from collections.abc import Callable
from typing import Any

from runtime.errors import UserError


class Registry:
    """A table of classes by name (case is ignored); an unknown name raises UserError.

    `register` is a decorator, plain (`@register`, by the name of the class) or with a name
    (`@register(name='ddpm')`).

    Args:
        kind: the kind of the classes, for errors, such as 'predictor'.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._classes: dict[str, Any] = {}

    def register(self, cls: Callable | None = None, *, name: str | None = None) -> Any:
        """Register `cls` under `name`, by default its own name, and return it.

        A class that is defined again, by a notebook cell or a reloaded module, replaces the earlier
        one.

        Raises:
            UserError: if another class has the name.
        """
        if cls is None:
            return lambda cls: self.register(cls, name=name)
        key = name or cls.__name__
        taken = self.find(key)
        if taken is not None and (taken.__module__, taken.__qualname__) != (
            cls.__module__,
            cls.__qualname__,
        ):
            raise UserError(
                f'the {self.kind} name {key!r} is taken by '
                f'{taken.__module__}.{taken.__qualname__}: choose another'
            )
        self._classes[
            next((known for known in self._classes if known.lower() == key.lower()), key)
        ] = cls
        return cls

    def get(self, name: str) -> Any:
        """Return the class called `name`; raise UserError with the known names if there is none."""
        found = self.find(name)
        if found is None:
            raise UserError(
                f'{self.kind} must be one of {", ".join(map(repr, self.names()))}, got {name!r}'
            )
        return found

    def find(self, name: str) -> Any:
        """The class called `name`, or None."""
        return next(
            (cls for known, cls in self._classes.items() if known.lower() == name.lower()), None
        )

    def names(self) -> list[str]:
        """The known names, sorted."""
        return sorted(self._classes)
