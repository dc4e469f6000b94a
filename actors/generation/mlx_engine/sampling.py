"""Drawing the next token of every row at once.

A row's draw depends on its own logits, parameters and position alone, never on its neighbours: rows are
grouped by what they need, each group is computed in one go, and each operation works row by row. The
uniform number behind a draw is a hash of (seed, choice, position), made on the host; the token is where the
cumulative distribution passes it. Nothing here waits for the device.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import attrs
import mlx.core as mx

from mlx_serving.actors.generation.mlx_engine.penalties import Adjustments, History
from mlx_serving.actors.messages.values import Sampling

_NARROW = 1024
"""Candidates kept by a partition when top-k allows no more: cheap to sort."""
_MASK = (1 << 64) - 1


def _mixed(value: int) -> int:
    """64 well mixed bits: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _step(value: int, salt: int) -> int:
    return _mixed((value + 0x9E3779B97F4A7C15 * (salt + 1)) & _MASK)


@attrs.define(eq=False)
class RowSampling:
    """How one row's tokens are drawn, and how far it has come. `position` counts the tokens drawn."""

    parameters: Sampling
    key: int
    history: History
    position: int = 0

    @classmethod
    def begin(cls, parameters: Sampling, choice: int, prompt_ids: list[int]) -> RowSampling:
        """Without a seed the row gets a key of its own."""
        seeded = parameters.seed is not None
        seed = _step(parameters.seed or 0, choice) if seeded else secrets.randbits(64)
        return cls(parameters, seed & _MASK, History(prompt_ids))

    def uniform(self) -> float:
        """For the current position, in [0, 1); 23 bits, so that a float32 product stays below the whole."""
        return float(_step(self.key, self.position) >> 41) * 2.0**-23

    def rewind(self, answer_ids: list[int]) -> None:
        """Return to just after these tokens of the answer."""
        self.position = len(answer_ids)
        self.history.restart(answer_ids)


class Sampler:
    """Draws for a fixed list of rows; a batch that changes makes a new one after `release`."""

    def __init__(self, rows: Sequence[RowSampling]) -> None:
        self._rows = rows
        self._adjustments = Adjustments.of([(row.parameters, row.history) for row in rows])
        self._groups = _groups([row.parameters for row in rows])
        order = [index for group in self._groups for index in group.indices]
        self._inverse = None
        if order != sorted(order):
            self._inverse = mx.array(sorted(range(len(order)), key=order.__getitem__))

    def __call__(self, logits: mx.array) -> mx.array:
        """Token ids [rows] from logits [rows, vocabulary]."""
        if self._adjustments is not None:
            logits = self._adjustments.apply(logits)
        drawn = [group.draw(logits, [self._rows[index] for index in group.indices]) for group in self._groups]
        tokens = drawn[0] if len(drawn) == 1 else mx.concatenate(drawn)
        if self._inverse is not None:
            tokens = tokens[self._inverse]
        if self._adjustments is not None:
            self._adjustments.record(tokens)
        for row in self._rows:
            row.position += 1
        return tokens

    def release(self) -> None:
        """Hand the state of penalties back to the rows."""
        if self._adjustments is not None:
            self._adjustments.release()


class _Group:
    """Rows that are drawn alike; `indices` are their places in the batch. This one is greedy."""

    def __init__(self, indices: list[int], is_whole: bool) -> None:
        self.indices = indices
        self._selection = None if is_whole else mx.array(indices)

    def draw(self, logits: mx.array, rows: Sequence[RowSampling]) -> mx.array:
        return mx.argmax(self._select(logits), axis=-1)

    def _select(self, logits: mx.array) -> mx.array:
        return logits if self._selection is None else logits[self._selection]


class _RandomGroup(_Group):
    """Rows without top-k and top-p: no order of the candidates is needed."""

    def __init__(self, indices: list[int], is_whole: bool, parameters: Sequence[Sampling]) -> None:
        super().__init__(indices, is_whole)
        self._inverse_temperature = _column([1.0 / each.temperature for each in parameters])
        self._min_p = _column([each.min_p for each in parameters]) if any(p.min_p for p in parameters) else None

    def draw(self, logits: mx.array, rows: Sequence[RowSampling]) -> mx.array:
        scaled = self._select(logits).astype(mx.float32) * self._inverse_temperature
        return self._draw(scaled, _column([row.uniform() for row in rows]))

    def _draw(self, scaled: mx.array, uniform: mx.array) -> mx.array:
        weights = mx.exp(scaled - mx.max(scaled, axis=-1, keepdims=True))
        return _pick(self._without_improbable(weights), uniform)

    def _without_improbable(self, weights: mx.array) -> mx.array:
        """Min-p; the most probable token has weight 1."""
        return weights if self._min_p is None else mx.where(weights >= self._min_p, weights, 0.0)


class _OrderedGroup(_RandomGroup):
    """Rows with top-k or top-p. `is_narrow`: few enough candidates for a partition to find all."""

    def __init__(self, indices: list[int], is_whole: bool, parameters: Sequence[Sampling], is_narrow: bool) -> None:
        super().__init__(indices, is_whole, parameters)
        self._is_narrow = is_narrow
        self._top_k = mx.array([[each.top_k or 2**31 - 1] for each in parameters])
        self._top_p = _column([each.top_p for each in parameters])

    def _draw(self, scaled: mx.array, uniform: mx.array) -> mx.array:
        candidates, values = self._ordered(scaled)
        weights = mx.exp(values - values[:, :1])
        weights = mx.where(mx.arange(weights.shape[-1]) < self._top_k, weights, 0.0)
        mass = mx.cumsum(weights, axis=-1)
        weights = mx.where(mass - weights < self._top_p * mass[:, -1:], weights, 0.0)
        ranks = _pick(self._without_improbable(weights), uniform)
        return mx.take_along_axis(candidates, ranks[:, None], axis=-1)[:, 0]

    def _ordered(self, scaled: mx.array) -> tuple[mx.array, mx.array]:
        """Candidates and their values, most probable first."""
        if not self._is_narrow or scaled.shape[-1] <= _NARROW:
            candidates = mx.argsort(-scaled, axis=-1)
            return candidates, mx.take_along_axis(scaled, candidates, axis=-1)
        candidates = mx.argpartition(-scaled, _NARROW - 1, axis=-1)[:, :_NARROW]
        values = mx.take_along_axis(scaled, candidates, axis=-1)
        order = mx.argsort(-values, axis=-1)
        return mx.take_along_axis(candidates, order, axis=-1), mx.take_along_axis(values, order, axis=-1)


def _groups(parameters: Sequence[Sampling]) -> list[_Group]:
    kinds = [_kind(each) for each in parameters]
    groups: list[_Group] = []
    for kind in sorted(set(kinds)):
        indices = [index for index, each in enumerate(kinds) if each == kind]
        members = [parameters[index] for index in indices]
        is_whole = len(indices) == len(kinds)
        if kind == "greedy":
            groups.append(_Group(indices, is_whole))
        elif kind == "plain":
            groups.append(_RandomGroup(indices, is_whole, members))
        else:
            groups.append(_OrderedGroup(indices, is_whole, members, is_narrow=kind == "narrow"))
    return groups


def _kind(parameters: Sampling) -> str:
    if parameters.temperature == 0:
        return "greedy"
    if 0 < parameters.top_k <= _NARROW:
        return "narrow"
    return "wide" if parameters.top_k > 0 or parameters.top_p < 1 else "plain"


def _column(values: list[float]) -> mx.array:
    return mx.array(values, dtype=mx.float32)[:, None]


def _pick(weights: mx.array, uniform: mx.array) -> mx.array:
    """Each row's first index where the cumulative weight passes `uniform` of the whole, never of weight 0."""
    mass = mx.cumsum(weights, axis=-1)
    target = uniform * mx.max(mass, axis=-1, keepdims=True)
    return mx.argmax(mx.logical_and(mass > target, weights > 0), axis=-1)
