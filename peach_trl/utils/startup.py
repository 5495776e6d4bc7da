"""A quick start: the first import of a recipe, which checks the keys on its command line and then loads what it needs.

A key that stands in none of the recipe's YAML files ends the program here, before torch is imported. TorchRL then comes
without what only ``torch.compile`` needs (``torch._dynamo`` is a third of the time, and loaded when something asks for
it), and without searches for garbage on the way.
"""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.util
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peach_trl.utils.cli import check_keys_of

DYNAMO = "torch._dynamo"


class LazyDynamo(types.ModuleType):
    """Stands for the module ``torch._dynamo`` until something other than its decorators is asked for.

    TensorDict and TorchRL decorate a few functions when they are imported. The decorators here do the same to them: at
    once where it is a mark, else as soon as the module itself is loaded, which ``torch.compile`` does.
    """

    def __init__(self) -> None:
        super().__init__(DYNAMO, "Stands for torch._dynamo until it is needed.")
        self._waiting: list[Callable[[types.ModuleType], Any]] = []
        self._lock = threading.RLock()
        self.__spec__ = importlib.util.find_spec(DYNAMO)
        self.__file__ = self.__spec__.origin if self.__spec__ else None  # asked for by whoever searches sys.modules

    def assume_constant_result(self, function: Any) -> Any:
        """As in ``torch._dynamo``: a mark on the function."""
        function._dynamo_marked_constant = True
        return function

    def allow_in_graph(self, function: Any) -> Any:
        """As in ``torch._dynamo``, once it is loaded."""
        self._waiting.append(lambda dynamo: dynamo.allow_in_graph(function))
        return function

    def disable(self, fn: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As in ``torch._dynamo``, once it is loaded; until then nothing is compiled, and the function just called."""
        if fn is None:
            return lambda function: self.disable(function, *args, **kwargs)
        target = [fn]

        @functools.wraps(fn)
        def outside(*inputs: Any, **named: Any) -> Any:
            return target[0](*inputs, **named)

        def replace(dynamo: types.ModuleType) -> None:
            target[0] = dynamo.disable(fn, *args, **kwargs)

        self._waiting.append(replace)
        return outside

    def __getattr__(self, name: str) -> Any:
        with self._lock:
            if sys.modules.get(DYNAMO) is self:
                del sys.modules[DYNAMO]
                dynamo = importlib.import_module(DYNAMO)
                for apply in self._waiting:
                    apply(dynamo)
                self.__class__ = types.ModuleType  # type: ignore[assignment]
                self.__dict__.update(dynamo.__dict__)  # for whoever holds this object
        return getattr(sys.modules[DYNAMO], name)


@contextmanager
def quick_imports() -> Iterator[None]:
    """Imports in this block bring no ``torch._dynamo``, and are not searched for garbage, then or later.

    TensorDict looks for pandas whenever a module writes a tensor; where there is none, it is told so once.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        importlib.import_module("torch")
        if DYNAMO not in sys.modules:
            sys.modules[DYNAMO] = LazyDynamo()
        if importlib.util.find_spec("pandas") is None:
            sys.modules["pandas"] = None  # type: ignore[assignment]
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()


_script = getattr(sys.modules["__main__"], "__file__", None)
if _script is not None:
    check_keys_of(Path(_script))
with quick_imports():
    importlib.import_module("peach_trl.report")
