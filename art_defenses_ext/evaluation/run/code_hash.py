"""What a function or a network does, as far as a hash can tell: its code, and the values that it refers to."""

from __future__ import annotations

import hashlib
import types
from collections.abc import Collection
from typing import Any

import torch

from art_defenses_ext.evaluation.run.code_graph import array_digest, is_array, parts_of_value, text_of

ROUNDS = 8
"""How far a value's surroundings count for its own label. **Convention**: what differs deeper differs by itself."""

Place = tuple[int, str]
"""The identity of a value, and the name of a place in it."""


def code_hash(value: Any, changing: Collection[Place] = ()) -> str:
    """A hash that changes with what a function, an object or a network does, not with where or when it was made.

    It covers the compiled code (so a comment changes nothing, another version of Python does), defaults, what closures
    hold, all attributes of objects, tensors, arrays, hooks, the globals that the code names, and functions and classes
    that come from no released package. What an object of one's own does in other ways, such as in a file that it
    reads or in compiled code, is not seen. Two objects that are equal in all this have one hash, be they one or two.

    Args:
        value: a function, or any other value.
        changing: places that each pass writes to, as :func:`changes` finds them; they count for nothing.

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
    """What stands in each place that is reached from a value; held, so that nothing else gets its identity."""

    def __init__(self, value: Any) -> None:
        self._graph = _Graph(only_tokens=True)
        self._graph.reached_from(value)

    def changes(self, later: Snapshot) -> set[Place]:
        """Return the places where something else stands later on: caches, counters, kept activations."""
        before, after = self._graph.tokens, later._graph.tokens
        return {place for place in before.keys() | after.keys() if before.get(place) != after.get(place)}


class _Graph:
    """All values that are reached from some, each with what it holds: numbers of other values, or words.

    Args:
        changing: places to leave out.
        only_tokens: leave out what tensors hold, which takes longest.

    Attributes:
        nodes: of each value what it is, in words, and what it holds.
        tokens: in each place what stands there, by identity: for comparisons within a process.
    """

    def __init__(self, changing: Collection[Place] = (), only_tokens: bool = False) -> None:
        self.nodes: list[tuple[str, list[int | str]]] = []
        self.tokens: dict[Place, list[Any]] = {}
        self._changing, self._only_tokens = changing, only_tokens
        self._numbers: dict[int, int] = {}
        self._held: list[Any] = []
        self._arrays: dict[int, tuple[Any, str]] = {}

    def reached_from(self, value: Any) -> int | str:
        """Take in a value and all that it holds."""
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
    """Return what tells, within a process, whether a value is still the same and unwritten."""
    if isinstance(value, tuple):
        return tuple(_token(part) for part in value)
    if isinstance(value, torch.Tensor):
        return id(value), None if value.is_inference() else value._version
    if isinstance(value, types.CodeType | types.MethodType):
        return type(value).__name__  # made anew each time that it is asked for
    text = text_of(value)
    if text is not None:
        return text
    return array_digest(value) if is_array(value) else id(value)


def _digest(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode(errors="surrogatepass")).hexdigest()
