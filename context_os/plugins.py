"""The whole plugin system: a seam is a folder, a plugin is a file in it, its class is a ``Plugin``.

Another distribution adds one with an entry point in the group ``context_os.<seam>`` whose name is the
plugin's name and whose value is the class.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from importlib.metadata import entry_points
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from context_os.errors import ConfigurationError


class Plugin(BaseModel):
    """Fields are the plugin's configuration, methods its contract. ``name`` is its file's name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str] = ""


def names(seam: str) -> list[str]:
    """The plugins of a seam (``"stores"``, ``"connectors"``, ...), sorted, built-in and installed."""
    package = importlib.import_module(f"context_os.{seam}")
    built_in = {module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")}
    return sorted(built_in | {point.name for point in entry_points(group=f"context_os.{seam}")})


def load(seam: str, name: str) -> type[Any]:
    """The class of one plugin. Raises ConfigurationError naming those that exist."""
    package = importlib.import_module(f"context_os.{seam}")
    if name.isidentifier() and name in {module.name for module in pkgutil.iter_modules(package.__path__)}:
        return _class_in(f"context_os.{seam}.{name}")
    for point in entry_points(group=f"context_os.{seam}"):
        if point.name == name:
            loaded: type[Any] = point.load()
            return loaded
    raise ConfigurationError(f"no {seam.rstrip('s')} is called {name!r}; there are: {', '.join(names(seam))}")


def _class_in(module_name: str) -> type[Any]:
    module = importlib.import_module(module_name)
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Plugin) and value.__module__ == module_name and value.name
    ]
    if len(found) != 1:
        raise ConfigurationError(f"{module_name} must hold exactly one named Plugin, it holds {len(found)}")
    return found[0]
