"""Names for classes, so that a config can choose them: networks, predictors, correctors."""

from collections.abc import Callable
from typing import Any

from runtime.errors import UserError


class Registry:
    """A table from names to classes, in whatever case they are written, that answers an unknown
    name with the known ones.

    Used as a decorator, plain (`@register`, the class's own name) or with a name
    (`@register(name='ddpm')`).
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._classes: dict[str, Any] = {}

    def register(self, cls: Callable | None = None, *, name: str | None = None) -> Any:
        """Enters `cls` under `name` (its own name where none is given) and returns it; UserError if
        another class has the name.

        The same class again, of a notebook's cell or a module that was executed once more, takes
        the place of the earlier one.
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
        """The class called `name`; UserError with the known names where there is none."""
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
