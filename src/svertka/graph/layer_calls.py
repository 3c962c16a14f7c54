"""The calls of a network's layers during a forward pass: modules without children, and functions between them.

The summary, which runs a copy without values, and the inspection of activations, which runs the network itself, are
both based on `LayerCallbacks`. A layer therefore has the same name and number in both.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from svertka.graph.trace_errors import THE_NETWORK


@dataclass(eq=False)
class LayerCallKey:
    """One call of a layer.

    Attributes:
        name: The path of the module; for a function, the path of the calling module and the name of the function, such
            as "layer1.0.add". In-place variants have the same name.
        kind: The class, or the function.
        number: How often this name has been called, from 1; None for an operation that is not called from Python.
        is_module: Whether it is a module.
    """

    name: str
    kind: str
    number: int | None
    is_module: bool

    @property
    def key(self) -> tuple[str, int] | None:
        """The name and number, which identify the call in any run of the network."""
        return None if self.number is None else (self.name, self.number)


class LayerCallbacks(TorchFunctionMode):
    """Follows the layers of `network` while it is active.

    Registers hooks on `network`; `remove_hooks` removes them. Subclasses override `begin_pass`, `end_pass`,
    `enter_layer`, `leave_layer` and `call_function`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._paths: list[str] = []  # of the running modules, outermost first
        self._running: list[str | LayerCallKey] = []  # the same, with a LayerCallKey for each layer
        self._counts: Counter[str] = Counter()
        self._failed = ""  # name of the function that raised the latest exception
        self._handles: list[RemovableHandle] = []
        for path, module in network.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # does not accept hooks
                continue
            self._handles.append(module.register_forward_pre_hook(self._make_enter_hook(path), prepend=True))
            self._handles.append(module.register_forward_hook(self._leave))

    def begin_pass(self) -> None:
        """Called before each forward pass of the network."""

    def end_pass(self) -> None:
        """Called after each forward pass of the network."""

    def enter_layer(self, call: LayerCallKey) -> None:
        """Called before a layer runs."""

    def leave_layer(self, call: LayerCallKey, output: Any) -> Any:
        """Called with the output of a layer. Return it, or, for modules, its replacement."""
        return output

    def call_function(self, function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """Return the result of a PyTorch function that the network calls."""
        return function(*args, **kwargs)

    def remove_hooks(self) -> None:
        """Remove the hooks from the network."""
        for handle in self._handles:
            handle.remove()

    @property
    def module(self) -> str:
        """The path of the innermost running module; "" for the network itself."""
        return self._paths[-1] if self._paths else ""

    @property
    def layer(self) -> LayerCallKey | None:
        """The running layer; None between layers."""
        around = self._running[-1] if self._running else None
        return around if isinstance(around, LayerCallKey) else None

    @property
    def where(self) -> str:
        """The name of the running layer or module, for errors."""
        return self._failed or (self.layer.name if self.layer else self.module) or THE_NETWORK

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        around, name = self._running[-1] if self._running else None, function.__name__.strip("_")
        if not isinstance(around, str):
            return self.call_function(function, args, kwargs or {})
        self._running.append(call := self._count(f"{around}.{name}" if around else name, name, is_module=False))
        self._failed = ""
        try:
            result = self.call_function(function, args, kwargs or {})
            self.leave_layer(call, result)
        except Exception:
            self._failed = call.name
            raise
        finally:
            self._running.pop()
        return result

    def _make_enter_hook(self, path: str) -> Callable[[nn.Module, Any], None]:
        def enter(module: nn.Module, _: Any) -> None:
            if module is self.network:  # a pass begins; the previous one may have ended with an exception
                self._paths.clear()
                self._running.clear()
                self._counts.clear()
                self.begin_pass()
            self._failed = ""
            if self.layer:  # a module inside a layer
                self._running.append(self.layer)
            elif next(module.children(), None) is None:
                kind = type(module).__name__
                self._running.append(self._count(path or kind, kind, is_module=True))
            else:
                self._running.append(path)
            self._paths.append(path)

        return enter

    def _leave(self, module: nn.Module, _: Any, output: Any) -> Any:
        layer = self.layer
        if layer and layer not in self._running[:-1]:
            output = self.leave_layer(layer, output)
        self._running.pop()
        self._paths.pop()
        if module is self.network:
            self.end_pass()
        return output

    def _count(self, name: str, kind: str, *, is_module: bool) -> LayerCallKey:
        self._counts[name] += 1
        call = LayerCallKey(name, kind, self._counts[name], is_module)
        self.enter_layer(call)
        return call


def first_tensor(output: Any) -> Tensor | None:
    """Return the first tensor in the output of a layer; None if there is none."""
    return next((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), None)
