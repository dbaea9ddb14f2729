"""What a training consists of between two of its steps, as tensors and numbers, and the way back.

Objects are taken as they are: no method has to say what it keeps. A tuple (kind, number, ...) stands for an object; the
number is that of its first occurrence, so that two references to one object stay that. The way back makes no module, no
optimizer and no object: it fills those that the same code has made again.
"""

from __future__ import annotations

import inspect
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from copyreg import __newobj__  # type: ignore[attr-defined]
from enum import Enum
from functools import cache, partial
from pathlib import PurePath
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from harness.lazy import np, torch

PLAIN = (type(None), bool, int, float, str, bytes)
FOREIGN = tuple(f"harness.{name}." for name in ("config", "data", "learning.checkpoints", "learning.cycle", "results"))
"""Modules whose objects no training changes: the cycle, its images and labels, the clock."""
MISSING = object()


class Unstorable(Exception):
    """An object that can't be stored; the message names it, and its type."""


class Unlike(Exception):
    """The live objects are not those that were taken; nothing has been changed."""


def holds(value: Any) -> bool:
    """Return whether a value can be filled in place; numbers, texts, tensors and tuples are replaced instead."""
    fixed = tuple | frozenset | range | torch.Tensor | np.ndarray | np.generic
    return type(value) not in PLAIN and not isinstance(value, fixed)


def _constant(value: Any) -> bool:
    """Return whether nothing changes within an object; an attribute may refer to another such object later."""
    fixed = (ModuleType, BaseModel, PurePath, type, partial, torch.dtype, torch.device)
    if isinstance(value, fixed) or inspect.isroutine(value):
        return True
    return f"{type(value).__module__}.".startswith(FOREIGN)


def _said(value: Any) -> str:
    """Return what tells a constant object from others, in any process."""
    if isinstance(value, partial):
        given = [*enumerate(value.args), *value.keywords.items()]
        return f"{_said(value.func)} {[(key, each if type(each) in PLAIN else _said(each)) for key, each in given]}"
    if isinstance(value, PurePath | torch.dtype | torch.device):
        return repr(value)
    if isinstance(value, ModuleType):
        return value.__name__
    return _qualified(value) if isinstance(value, type) or inspect.isroutine(value) else _name(value)


def _qualified(value: Any) -> str:
    return f"{getattr(value, '__module__', None)}.{value.__qualname__}"


def _name(value: Any) -> str:
    return _qualified(type(value))


def _has_tensors(value: Any, depth: int = 3) -> bool:
    """Return whether an object has tensors, in its attributes or in containers of them."""
    if isinstance(value, torch.Tensor | torch.nn.Module):
        return True
    within = vars(value) if hasattr(value, "__dict__") else value
    parts = within.values() if isinstance(within, dict) else within
    return depth > 0 and isinstance(parts, Collection) and any(_has_tensors(part, depth - 1) for part in parts)


def _trained(tensor: torch.Tensor) -> bool:
    return tensor.requires_grad and tensor.is_leaf


def _tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _own(module: torch.nn.Module) -> dict[str, Any]:
    """Return the attributes of a module without those that torch gives to every one, but with its mode."""
    of_torch = vars(torch.nn.Module()).keys() - {"training"}
    return {key: value for key, value in vars(module).items() if key not in of_torch}


def _attributes(value: Any, name: str) -> dict[str, Any]:
    """Return the attributes of an object that consists of nothing else. Raises Unstorable."""
    try:
        make, arguments, attributes, *items = value.__reduce_ex__(2)
    except Exception:  # files, locks and generators raise many kinds
        make, arguments, attributes, items = None, (), None, []
    whole = make is __newobj__ and arguments == (type(value),) and items == [None, None]
    if not whole or not isinstance(attributes, dict | None):
        raise Unstorable(f"{name} is a {type(value).__name__}")
    return attributes or {}


def _empty(name: str, kind: type[Any]) -> Any:
    """Return an empty container for one that is not there. Raises Unlike if it was of another class."""
    if name != _qualified(kind):
        raise Unlike
    return kind()


@cache
def _kinds() -> list[tuple[Any, str, Any]]:
    """Return (classes, kind, what takes them), in the order in which they are tried."""
    return [
        (torch.Tensor, "tensor", Taker._tensor),
        (torch.Generator, "generator", Taker._generator),
        (torch.nn.Module, "module", Taker._module),
        (np.ndarray, "array", Taker._array),
        (np.generic, "number", Taker._number),
        (np.random.Generator, "numpys", Taker._numpys),
        (random.Random, "pythons", Taker._pythons),
        (dict, "dict", Taker._mapping),
        (list, "list", Taker._sequence),
        (deque, "deque", Taker._sequence),
        (set, "set", Taker._sequence),
        (frozenset, "frozenset", Taker._sequence),
        (tuple, "tuple", Taker._sequence),
        (range, "range", Taker._range),
    ]


class Taker:
    """Takes objects; one that several refer to, also in several calls, is taken once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, Any]] = {}  # with the object, so that no other one gets its id
        self._in_module = False
        self.left_out: list[str] = []
        """Names of objects within modules that have tensors and can't be stored."""

    def take(self, value: Any, name: str) -> Any:
        """Return a value as tensors and numbers. Raises Unstorable, which calls the value ``name``."""
        if type(value) in PLAIN:
            return value
        if id(value) in self._known:
            return "again", self._known[id(value)][0]
        if isinstance(value, Enum):
            return "enum", _name(value), value.name
        stateful = not isinstance(value, type) and hasattr(value, "state_dict") and hasattr(value, "load_state_dict")
        found = next(((kind, take) for classes, kind, take in _kinds() if isinstance(value, classes)), None)
        if _constant(value) and not stateful:
            return "same", _said(value)
        if found is None and not stateful and self._in_module and _name(value).startswith("torch."):
            return "same", None  # of compiled code and the like, which torch makes when it needs it
        number = self._enter(value)
        if found is not None:
            return (found[0], number, *found[1](self, value, name))
        if stateful:
            return "stateful", number, self.take(value.state_dict(), name)
        return "object", number, _name(value), self._pairs(_attributes(value, name), name)

    def _pairs(self, values: dict[Any, Any], name: str) -> list[tuple[Any, Any]]:
        for key in values:
            if type(key) not in PLAIN:
                raise Unstorable(f"{name} has a key that is a {type(key).__name__}")
        return [(key, self.take(value, f"{name}.{key}" if name else str(key))) for key, value in values.items()]

    def _tensor(self, value: torch.Tensor, name: str) -> tuple[Any, ...]:
        if value.layout != torch.strided or value.device.type == "meta":
            raise Unstorable(f"{name} is a tensor without a storage of its own")
        return value.detach(), value.device.type, _trained(value)

    def _generator(self, value: torch.Generator, name: str) -> tuple[Any, ...]:
        return value.get_state(), value.device.type

    def _array(self, value: Any, name: str) -> tuple[Any, ...]:
        try:
            return (torch.from_numpy(value.copy()),)
        except TypeError:
            raise Unstorable(f"{name} is an array of type {value.dtype}") from None

    def _number(self, value: Any, name: str) -> tuple[Any, ...]:
        return value.dtype.str, value.item()

    def _numpys(self, value: Any, name: str) -> tuple[Any, ...]:
        return (self.take(value.bit_generator.state, name),)

    def _pythons(self, value: random.Random, name: str) -> tuple[Any, ...]:
        return (self.take(value.getstate(), name),)

    def _sequence(self, value: Any, name: str) -> tuple[Any, ...]:
        return _name(value), [self.take(each, f"{name}[{at}]") for at, each in enumerate(value)]

    def _range(self, value: range, name: str) -> tuple[Any, ...]:
        return value.start, value.stop, value.step

    def _mapping(self, value: dict[Any, Any], name: str) -> tuple[Any, ...]:
        return _name(value), self._pairs(value, name)

    def _module(self, value: torch.nn.Module, name: str) -> tuple[Any, ...]:
        parts = dict(value.named_modules())
        numbers = {path: self._enter(part) for path, part in parts.items()}
        tensors = [(path, self._enter(t), t.detach(), _trained(t)) for path, t in _tensors(value).items()]
        names = {path: f"{name}.{path}" if path else name for path in parts}
        around, self._in_module = self._in_module, True
        try:
            own = {
                path: [(key, self._attribute(each, f"{names[path]}.{key}")) for key, each in _own(part).items()]
                for path, part in parts.items()
            }
        finally:
            self._in_module = around
        return tensors, [(path, numbers[path], own[path]) for path in parts]

    def _enter(self, value: Any) -> int:
        """Return the number of an object, which a reference to it names."""
        return self._known.setdefault(id(value), (len(self._known), value))[0]

    def _attribute(self, value: Any, name: str) -> Any:
        """Return an attribute of a module; what can't be stored is left out, and named if it has tensors."""
        known = len(self._known)
        try:
            return self.take(value, name)
        except Exception:  # Unstorable, or what the object's own code raises
            while len(self._known) > known:
                self._known.popitem()
            if _has_tensors(value):
                self.left_out.append(f"{name}, a {type(value).__name__}")
            return "same", None


def copied(taken: Any) -> Any:
    """Return what a Taker has taken with copies of its tensors, on the CPU: the live ones may change."""
    if isinstance(taken, torch.Tensor):
        return taken.to("cpu", copy=True)
    if isinstance(taken, dict):
        return {key: copied(value) for key, value in taken.items()}
    return type(taken)(map(copied, taken)) if isinstance(taken, list | tuple) else taken


def versions(found: Any) -> list[int]:
    """Return how often each tensor in dictionaries and lists was written in place."""
    if isinstance(found, torch.Tensor):
        return [found._version]
    parts = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    return [count for part in parts for count in versions(part)]


class Restorer:
    """Puts back what one Taker has taken, in the same order; ``apply`` does it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        """Where tensors go that were not on the CPU."""
        self._live: dict[int, Any] = {}
        self._actions: list[Callable[[], object]] = []

    def apply(self) -> None:
        """Change the live objects; until then nothing is changed."""
        with torch.no_grad():
            for action in self._actions:
                action()

    def put(self, live: Any, taken: Any) -> Any:
        """Return what stands in the place of ``live`` once ``apply`` was called. Raises Unlike.

        Modules, optimizers, random streams, lists, dictionaries and objects stay the objects that they are.
        """
        if type(taken) in PLAIN:
            return taken
        kind, *rest = taken
        if kind == "same":
            if live is MISSING or (rest[0] is not None and _said(live) != rest[0]):
                raise Unlike
            return live
        if kind == "enum":
            if not isinstance(live, Enum) or _name(live) != rest[0]:
                raise Unlike
            return type(live)[rest[1]]
        if kind == "again":
            return self._live[rest[0]]
        number, *content = rest
        found = getattr(self, f"_{kind}")(number, live, *content)
        self._live[number] = found
        return found

    def _there(self, live: Any, kinds: Any) -> Any:
        if live is MISSING or not isinstance(live, kinds):
            raise Unlike
        return live

    def _later(self, action: Callable[[], object]) -> None:
        self._actions.append(action)

    def _place(self, kind: str) -> torch.device:
        return torch.device("cpu") if kind == "cpu" else self.device

    def _tensor(self, number: int, live: Any, tensor: torch.Tensor, kind: str, trained: bool) -> Any:
        alike = isinstance(live, torch.Tensor) and (live.shape, live.dtype) == (tensor.shape, tensor.dtype)
        if trained and alike and live.requires_grad and live.is_leaf:  # an optimizer may refer to it
            self._later(lambda: live.copy_(tensor))
            return live
        return tensor.to(self._place(kind), copy=True).requires_grad_(trained)

    def _generator(self, number: int, live: Any, state: torch.Tensor, kind: str) -> Any:
        found = live if isinstance(live, torch.Generator) else torch.Generator(self._place(kind))
        self._later(lambda: found.set_state(state))
        return found

    def _module(self, number: int, live: Any, tensors: list[Any], parts: list[Any]) -> Any:
        there, its_parts = _tensors(self._there(live, torch.nn.Module)), dict(live.named_modules())
        shapes = [(path, tensor.shape) for path, _, tensor, _ in tensors]
        if shapes != [(path, t.shape) for path, t in there.items()] or [*its_parts] != [path for path, *_ in parts]:
            raise Unlike
        self._live |= {number: its_parts[path] for path, number, _ in parts}
        self._live |= {number: there[path] for path, number, *_ in tensors}
        for path, _, tensor, trained in tensors:
            self._later(partial(there[path].copy_, tensor))
            if there[path].is_leaf:
                self._later(partial(there[path].requires_grad_, trained))
        for path, _, attributes in parts:
            self._give(its_parts[path], _own(its_parts[path]), attributes)
        return live

    def _array(self, number: int, live: Any, tensor: torch.Tensor) -> Any:
        return tensor.numpy().copy()

    def _number(self, number: int, live: Any, dtype: str, value: Any) -> Any:
        return np.dtype(dtype).type(value)

    def _numpys(self, number: int, live: Any, state: Any) -> Any:
        bits, new = self._there(live, np.random.Generator).bit_generator, self.put(None, state)
        self._later(lambda: setattr(bits, "state", new))
        return live

    def _pythons(self, number: int, live: Any, state: Any) -> Any:
        stream, new = self._there(live, random.Random), self.put(None, state)
        self._later(lambda: stream.setstate(new))
        return live

    def _dict(self, number: int, live: Any, kind: str, items: list[tuple[Any, Any]]) -> Any:
        if not isinstance(live, dict) and kind in ("builtins.dict", "collections.OrderedDict"):
            live = {} if kind == "builtins.dict" else OrderedDict()
        found = self._live[number] = self._there(live, dict)
        new = {key: self.put(found.get(key, MISSING), item) for key, item in items}
        self._later(lambda: (found.clear(), found.update(new)))
        return found

    def _list(self, number: int, live: Any, name: str, items: list[Any]) -> Any:
        found = self._live[number] = live if _name(live) == name else _empty(name, list)
        new = self._items(found, items)
        self._later(lambda: found.__setitem__(slice(None), new))
        return found

    def _deque(self, number: int, live: Any, name: str, items: list[Any]) -> Any:
        found = self._live[number] = self._there(live, deque)
        new = self._items([*found], items)
        self._later(lambda: (found.clear(), found.extend(new)))
        return found

    def _set(self, number: int, live: Any, name: str, items: list[Any]) -> Any:
        found: Any = live if _name(live) == name else _empty(name, set)
        new = self._items([], items)
        self._later(lambda: (found.clear(), found.update(new)))
        return found

    def _frozenset(self, number: int, live: Any, name: str, items: list[Any]) -> Any:
        _empty(name, frozenset)
        return frozenset(self._items([], items))

    def _tuple(self, number: int, live: Any, name: str, items: list[Any]) -> Any:
        new = self._items(live if isinstance(live, tuple) else (), items)
        if hasattr(live, "_make") and _name(live) == name:
            return type(live)._make(new)
        return torch.Size(new) if name == _qualified(torch.Size) else (*_empty(name, tuple), *new)

    def _range(self, number: int, live: Any, *ends: int) -> Any:
        return range(*ends)

    def _items(self, live: Any, items: list[Any]) -> list[Any]:
        return [self.put(live[at] if at < len(live) else MISSING, item) for at, item in enumerate(items)]

    def _stateful(self, number: int, live: Any, state: Any) -> Any:
        if not hasattr(live, "load_state_dict"):
            raise Unlike
        new = self.put(live.state_dict(), state)
        self._later(lambda: live.load_state_dict(new))
        return live

    def _object(self, number: int, live: Any, name: str, attributes: list[tuple[Any, Any]]) -> Any:
        if live is MISSING or _name(live) != name:
            raise Unlike
        self._live[number] = live
        now = _attributes(live, name)  # without what an object's own __getstate__ leaves out
        if attributes and hasattr(live, "__setstate__"):
            new = self._new(now, attributes)
            self._later(lambda: live.__setstate__(new))
        else:
            self._give(live, now, attributes)
        return live

    def _new(self, now: dict[str, Any], attributes: list[tuple[Any, Any]]) -> dict[str, Any]:
        return {key: self.put(now.get(key, MISSING), value) for key, value in attributes}

    def _give(self, live: Any, now: dict[str, Any], attributes: list[tuple[Any, Any]]) -> None:
        """Give an object these attributes instead of those that it has ``now``."""
        new = self._new(now, attributes)

        def change() -> None:
            for name in now.keys() - new.keys():
                del vars(live)[name]
            vars(live).update(new)

        self._later(change)
