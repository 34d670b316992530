"""A hash of the behaviour of a function or a network: of its code, and of the values to which it refers."""

from __future__ import annotations

import hashlib
import types
from collections.abc import Collection
from typing import Any

import torch

from art_defenses_ext.evaluation.run.code_graph import array_digest, is_array, parts_of_value, text_of

ROUNDS = 8
"""The depth to which a value's parts enter its own label. **Convention**: deeper parts have labels of their own."""

Place = tuple[int, str]
"""The identity of a value, and the name of a part of it."""


def code_hash(value: Any, changing: Collection[Place] = ()) -> str:
    """Return a hash of the behaviour of a function, an object or a network, the same in every process.

    It covers the compiled code, defaults, closures, attributes of objects, tensors, arrays, hooks, the globals that the
    code names, and functions and classes that do not belong to a released package. A comment does not change it;
    another version of Python does. It cannot see other influences, such as a file that an object reads or compiled
    extensions. Two equal objects have the same hash as one object that is used twice.

    Args:
        value: a function, or any other value.
        changing: places to which each pass writes, from :meth:`Snapshot.changes`; they are left out.

    Returns:
        64 hexadecimal digits.
    """
    graph = _Graph(changing)
    root = graph.reached_from(value)
    labels = [_digest(kind) for kind, _ in graph.nodes]
    for _ in range(ROUNDS):
        labels = [
            _digest(kind, *(labels[part] if isinstance(part, int) else part for part in parts))
            for kind, parts in graph.nodes
        ]
    return _digest(labels[root] if isinstance(root, int) else root, *sorted(set(labels)))


class Snapshot:
    """The contents of each place reached from a value, kept alive so that no other object gets the same ``id``."""

    def __init__(self, value: Any) -> None:
        self._graph = _Graph(only_tokens=True)
        self._graph.reached_from(value)

    def changes(self, later: Snapshot) -> set[Place]:
        """Return the places whose contents changed until a later snapshot: caches, counters, kept activations."""
        before, after = self._graph.tokens, later._graph.tokens
        return {place for place in before.keys() | after.keys() if before.get(place) != after.get(place)}


class _Graph:
    """The graph of all values reached from a root. A node refers to other nodes by number.

    Args:
        changing: places to leave out.
        only_tokens: leave out the contents of tensors, which take longest.

    Attributes:
        nodes: description and parts of each value.
        tokens: contents of each place by identity, for comparisons within a process.
    """

    def __init__(self, changing: Collection[Place] = (), only_tokens: bool = False) -> None:
        self.nodes: list[tuple[str, list[int | str]]] = []
        self.tokens: dict[Place, list[Any]] = {}
        self._changing, self._only_tokens = changing, only_tokens
        self._numbers: dict[int, int] = {}
        self._held: list[Any] = []
        self._arrays: dict[int, tuple[Any, str]] = {}

    def reached_from(self, value: Any) -> int | str:
        """Add a value and all values reached from it; return its reference."""
        root = self._reference(value)
        while len(self.nodes) < len(self._held):
            self.nodes.append(self._read(self._held[len(self.nodes)]))
        return root

    def _read(self, value: Any) -> tuple[str, list[int | str]]:
        kind, parts = parts_of_value(value)
        references: list[int | str] = []
        for name, part in parts:
            if self._only_tokens:
                self.tokens.setdefault((id(value), name), []).append(_token(part))
            if (id(value), name) not in self._changing:
                references += [name, self._reference(part)]
        return kind, references

    def _reference(self, value: Any) -> int | str:
        text = text_of(value)
        if text is not None:
            return f"={text}"
        if is_array(value):
            if id(value) not in self._arrays:
                self._arrays[id(value)] = value, "" if self._only_tokens else array_digest(value)
            return self._arrays[id(value)][1]
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._held)
            self._held.append(value)
        return self._numbers[id(value)]


def _token(value: Any) -> Any:
    """Return a token that changes, within a process, if a value is replaced or written to."""
    if isinstance(value, tuple):
        return tuple(_token(part) for part in value)
    if isinstance(value, torch.Tensor):
        return id(value), None if value.is_inference() else value._version
    if isinstance(value, types.CodeType | types.MethodType):
        return type(value).__name__  # created anew at each access
    text = text_of(value)
    if text is not None:
        return text
    return array_digest(value) if is_array(value) else id(value)


def _digest(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode(errors="surrogatepass")).hexdigest()
