"""Registries: named implementations of one idea, one file each, found without a list of imports.

A room such as ``server/centroids`` keeps one `Registry`. Each of its files registers what it holds by a decorator:

    @RULES.register("median", summary="middle of the sites' rows", facts=RuleFacts(robust=True))
    def merge_median(...): ...

A new file in the folder is enough. Other code asks for the facts and compares no names.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from common.errors import UserError

_T = TypeVar("_T")
_F = TypeVar("_F")
_V = TypeVar("_V")


@dataclass(frozen=True)
class Registered(Generic[_T, _F]):
    """One registered implementation: its name in settings, a line about it, what others may ask, and itself."""

    name: str
    summary: str
    facts: _F
    value: _T


class Registry(Generic[_T, _F]):
    """The implementations of one ``kind`` (singular, for messages) in the modules of one ``package``.

    ``_T`` is what is registered, a function or a class. ``_F`` is the type of its facts, None if nobody asks for any.
    The modules of the package are imported on the first question, subfolders are not searched.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._entries: dict[str, Registered[_T, _F]] = {}
        self._complete = False
        # threads of one process may ask at the same time; reentrant, as a module may ask while it is imported
        self._lock = threading.RLock()

    def register(self, name: str, *, summary: str, facts: _F) -> Callable[[_V], _V]:
        """Return a decorator that registers a function or class under a name; it gives it back unchanged.

        Raises `ValueError` for a name that another module holds already.
        """

        def decorate(value: _V) -> _V:
            held = self._entries.get(name)
            if held is not None and _origin(held.value) != _origin(value):
                raise ValueError(
                    f"{self.kind} '{name}' stands in {_origin(held.value)} and in {_origin(value)}; rename one."
                )
            self._entries[name] = Registered(name, summary, facts, value)  # type: ignore[arg-type]  # _V is a _T
            return value

        return decorate

    def names(self) -> tuple[str, ...]:
        """Return all names in alphabetic order."""
        self._discover()
        return tuple(sorted(self._entries))

    def entries(self) -> list[Registered[_T, _F]]:
        """Return everything registered in the order of the names."""
        return [self._entries[name] for name in self.names()]

    def entry(self, name: str) -> Registered[_T, _F]:
        """Return what is registered under a name; raises `UserError` with the known names for another."""
        if name not in self._entries:
            self._import_namesake(name)
        if name not in self._entries:
            names = self.names()
            if name in self._entries:
                return self._entries[name]
            close = difflib.get_close_matches(name, names, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise UserError(f"Unknown {self.kind} '{name}'; known are {', '.join(names)}.{hint}")
        return self._entries[name]

    def get(self, name: str) -> _T:
        """Return the implementation of a name; raises `UserError` as `entry` does."""
        return self.entry(name).value

    def facts(self, name: str) -> _F:
        """Return the facts of a name; raises `UserError` as `entry` does."""
        return self.entry(name).facts

    def _import_namesake(self, name: str) -> None:
        """Import the module that is called like the entry, if there is one: to import all may take seconds."""
        module = name.replace("-", "_")
        if module.isidentifier() and importlib.util.find_spec(f"{self.package}.{module}"):
            importlib.import_module(f"{self.package}.{module}")

    def _discover(self) -> None:
        with self._lock:
            if self._complete:
                return
            self._complete = (
                True  # before the imports: a module that asks meanwhile sees what is there so far
            )
            try:
                for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
                    importlib.import_module(f"{self.package}.{module.name}")
            except BaseException:
                self._complete = False
                raise


def _origin(value: object) -> str:
    """Return where a function, class or value was written, for messages."""
    return f"{getattr(value, '__module__', '?')}.{getattr(value, '__qualname__', repr(value))}"
