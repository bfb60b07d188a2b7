"""Parts of the libraries that most runs never use: they are imported when something of them is asked for, not before.

``imports`` puts these in place before the libraries are imported. Whatever is not foreseen here leads to the real
part being imported as always: then the start is slower, and nothing else differs.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Sequence
from importlib import metadata
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any, Final, TypeVar

COMPILER: Final = "torch._dynamo"
"""A thousand modules, sympy and the whole of inductor among them, which diffusers and each optimizer import."""
STANDALONE: Final = frozenset({f"{COMPILER}._trace_wrapped_higher_order_op"})
"""Modules below it that need nothing of it."""
_Decorated = TypeVar("_Decorated")
_lock = threading.RLock()


class Package(ModuleType):
    """A package whose ``__init__`` runs when the first name is asked of it; its modules can be imported without.

    ``diffusers.models.unets`` imports a dozen models, and with them what they need of transformers, to offer one.
    """

    def __getattr__(self, name: str) -> Any:
        """Run the package's ``__init__`` and answer from what it made."""
        if name == "__version__":
            return metadata.version(self.__name__)
        if name.startswith("__"):
            raise AttributeError(name)
        with _lock:
            spec = self.__spec__
            if type(self) is Package and spec is not None and spec.loader is not None:
                self.__class__ = ModuleType  # type: ignore[assignment]  # allowed by Python for modules
                spec.loader.exec_module(self)
        return getattr(self, name)


class Compiler(ModuleType):
    """``torch._dynamo`` where nothing is compiled: its marks for functions do nothing, all else is the real one's."""

    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__(COMPILER)
        self.__spec__ = spec
        self.__path__ = list(spec.submodule_search_locations or ())

    @staticmethod
    def graph_break(*_: object, **__: object) -> None:
        """Where a compiler would end one graph and begin another."""

    @staticmethod
    def allow_in_graph(function: _Decorated) -> _Decorated:
        """Mark what a compiler need not look into."""
        return function

    assume_constant_result = allow_in_graph

    @staticmethod
    def disable(function: Any = None, *_: object, **__: object) -> Any:
        """Mark what a compiler must leave alone; with or without an argument of its own."""
        return function if function is not None else Compiler.allow_in_graph

    def __getattr__(self, name: str) -> Any:
        """Import the real one and answer from it."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_real_compiler(), name)


class _Submodules:
    """Finds the modules below ``torch._dynamo``: with them the real package must come first."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        if not name.startswith(f"{COMPILER}.") or name in STANDALONE:
            return None
        _real_compiler()
        there = sys.modules.get(name)  # the real package may have imported it meanwhile: not a second time
        return ModuleSpec(name, _Same(there), origin=there.__file__) if there is not None else None


class _Same(Loader):
    """Loads what is loaded."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, _: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


def alone() -> None:
    """Say to the libraries what is so: this process shares its training with no other. Call before they are imported.

    Else transformers imports all of torch's distributed tensors, and with them sympy, to know one when it sees it.
    """
    import torch.distributed

    torch.distributed.is_available = lambda: False


def without(name: str, answer: str) -> None:
    """Let the module *name* answer False where it is asked whether an optional part (*answer*) is there."""
    module = importlib.import_module(name)
    if hasattr(module, answer):
        setattr(module, answer, lambda: False)


def package(name: str) -> None:
    """Defer what the package's ``__init__`` does; nothing happens where it is imported already, or not installed."""
    if name in sys.modules or (spec := find_spec(name)) is None:
        return
    module = module_from_spec(spec)
    module.__class__ = Package
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)


def compiler() -> None:
    """Defer ``torch._dynamo``; call after torch has been imported, and only where nothing is compiled."""
    if COMPILER in sys.modules:
        return
    spec = PathFinder.find_spec(COMPILER, sys.modules["torch"].__path__)
    if spec is not None:
        sys.modules[COMPILER] = Compiler(spec)
        sys.meta_path.insert(0, _Submodules)


def _real_compiler() -> ModuleType:
    with _lock:
        if isinstance(sys.modules.get(COMPILER), Compiler):
            sys.meta_path.remove(_Submodules)
            del sys.modules[COMPILER]
        return importlib.import_module(COMPILER)
