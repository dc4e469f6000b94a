"""Drawing the next token of every row in one call, whatever each row's parameters are.

The parameters are arrays with one entry a row. A row's draw depends on its own logits, parameters and position
alone, never on its neighbours. The uniform number behind a draw is a hash of (seed, choice, position), made on the
host; the token is where the cumulative distribution, in the order of token ids, passes it. Nothing here waits for
the device.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import attrs
import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_serving.actors.generation.mlx_engine import draw_kernel, launched_numbers, rejection
from mlx_serving.actors.generation.mlx_engine.penalties import Adjustments, History
from mlx_serving.actors.messages.values import Sampling

_NARROW = 1024
"""Candidates that a partition keeps where top-k allows no more: cheaper than sorting the vocabulary."""
ACCEPTANCE, DRAFTING = 1, 2
"""Streams of uniform numbers: of accepting drafts and of drawing them; 0 is that of the answer."""
_UNLIMITED = 2**31 - 1
_COLDEST = 1e30
"""Inverse temperature at which nothing but the most probable tokens has any weight left."""
_MASK = (1 << 64) - 1
_FEW_ROWS = 8
"""So many are sooner hashed one by one."""
_Numbers = Sequence[float] | NDArray[np.float32]


_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""The constants of SplitMix64."""


def _mixed(value: int) -> int:
    """64 well mixed bits: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)


def _step(value: int, salt: int) -> int:
    return _mixed((value + _GOLDEN * (salt + 1)) & _MASK)


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

    def uniform(self, ahead: int = 0, stream: int = 0) -> float:
        """For the position `ahead` of the current one, in [0, 1); 23 bits, so that a float32 product stays below
        the whole. Each stream has numbers of its own."""
        key = _step(self.key, -stream) if stream else self.key
        return float(_step(key, self.position + ahead) >> 41) * 2.0**-23

    @property
    def rejects(self) -> bool:
        """Whether tokens drafted for it are accepted or rejected by chance: with a seed the answer must not change."""
        return self.parameters.temperature > 0 and self.parameters.seed is None

    def rewind(self, answer_ids: list[int]) -> None:
        """Return to just after these tokens of the answer."""
        self.position = len(answer_ids)
        self.history.restart(answer_ids)


def _uniform(rows: Sequence[RowSampling], keys: NDArray[np.uint64]) -> _Numbers:
    """What `RowSampling.uniform` gives for each row now; `keys` are theirs."""
    if len(rows) <= _FEW_ROWS:
        return [row.uniform() for row in rows]
    positions = np.array([row.position for row in rows], dtype=np.uint64)
    value = keys + np.uint64(_GOLDEN) * (positions + np.uint64(1))
    value = (value ^ (value >> np.uint64(30))) * np.uint64(_FIRST)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(_SECOND)
    bits: NDArray[np.uint64] = (value ^ (value >> np.uint64(31))) >> np.uint64(41)
    return bits.astype(np.float32) * np.float32(2.0**-23)


@attrs.frozen(eq=False)
class _Order:
    """The rows that need their candidates in order. `rows` None: all of them."""

    rows: mx.array | None
    top_k: mx.array
    top_p: mx.array
    is_narrow: bool

    def threshold(self, weights: mx.array) -> mx.array:
        """The least weight that top-k and then top-p keep, [rows, 1], 0 for rows without either."""
        chosen = weights if self.rows is None else weights[self.rows]
        values = chosen
        if self.is_narrow and chosen.shape[-1] > _NARROW:
            values = mx.topk(chosen, _NARROW, axis=-1)
        values = -mx.sort(-values, axis=-1)
        values = mx.where(mx.arange(values.shape[-1]) < self.top_k, values, 0.0)
        mass = mx.cumsum(values, axis=-1)
        is_kept = mx.logical_and(mass - values < self.top_p * mass[:, -1:], values > 0)
        least = mx.min(mx.where(is_kept, values, mx.inf), axis=-1, keepdims=True)
        if self.rows is None:
            return least
        floor = mx.zeros((weights.shape[0], 1))
        floor[self.rows] = least
        return floor


class Draw:
    """The draw of a fixed list of rows, as a function of logits and uniform numbers."""

    def __init__(self, parameters: Sequence[Sampling]) -> None:
        self._parameters = parameters
        is_random = [each.temperature > 0 for each in parameters]
        self.is_greedy = not any(is_random)
        self._greedy = None if all(is_random) else mx.array([not each for each in is_random])
        self._inverse_temperature = _column([_inverse_temperature(each) or 1.0 for each in parameters])
        self._min_p = _column([each.min_p for each in parameters]) if any(p.min_p for p in parameters) else None
        self._order = _order(parameters)
        self._limits = launched_numbers.integers([each.top_k for each in parameters])
        told = [[_inverse_temperature(each), each.top_p, each.min_p, 0.0] for each in parameters]
        self._told = np.array(told, dtype=np.float32)
        """What the kernel takes, but for the numbers of this draw."""
        self._unchanging: mx.array | None = None
        """What the kernel takes where every row is greedy."""

    def __call__(
        self,
        logits: mx.array,
        uniform: _Numbers,
        masks: mx.array | None = None,
        adjusting: draw_kernel.Adjusting | None = None,
    ) -> mx.array:
        """Token ids [rows] int32 from logits [rows, vocabulary], -1 where these are not finite.

        `uniform` is not looked at if every row is greedy.
        `masks`, if any, are [rows, ceil(vocabulary / 32)] of uint32 with a bit for each token that may be drawn.
        `adjusting` is for a GPU's kernel.
        """
        if draw_kernel.way() != "operations":
            return draw_kernel.draw(logits, masks, self._numbers(uniform), self._limits, adjusting)
        # The maximum is finite unless some logit is NaN or +inf, or all are -inf.
        is_finite = mx.isfinite(mx.max(logits, axis=-1))
        if masks is not None:
            logits = apply_masks(logits, masks)
        return mx.where(is_finite, self._drawn(logits, uniform).astype(mx.int32), -1)

    def _drawn(self, logits: mx.array, uniform: _Numbers) -> mx.array:
        """By MLX's operations."""
        if self.is_greedy:
            return mx.argmax(logits, axis=-1)
        tokens = rejection.pick(self.weights(logits), _column(uniform))
        return tokens if self._greedy is None else mx.where(self._greedy, mx.argmax(logits, axis=-1), tokens)

    def weights(self, logits: mx.array, masks: mx.array | None = None) -> mx.array:
        """What each token is drawn in proportion to, [rows, vocabulary]; of greedy rows without meaning."""
        if masks is not None:
            logits = apply_masks(logits, masks)
        scaled = logits.astype(mx.float32) * self._inverse_temperature
        return self._filtered(mx.exp(scaled - mx.max(scaled, axis=-1, keepdims=True)))

    def _numbers(self, uniform: _Numbers) -> mx.array:
        """What the kernel takes, [rows, 4]."""
        if self._unchanging is not None:
            return self._unchanging
        if len(uniform):
            self._told[:, 3] = uniform
        numbers = launched_numbers.floats(self._told)
        if self.is_greedy:
            self._unchanging = numbers
        return numbers

    def _filtered(self, weights: mx.array) -> mx.array:
        """Weights of what top-k, top-p and min-p drop become 0; the most probable token has weight 1."""
        if self._order is not None:
            weights = mx.where(weights >= self._order.threshold(weights), weights, 0.0)
        return weights if self._min_p is None else mx.where(weights >= self._min_p, weights, 0.0)


class Sampler:
    """Draws for a fixed list of rows; a batch that changes makes a new one after `release`."""

    def __init__(self, rows: Sequence[RowSampling]) -> None:
        self._rows = rows
        self._draw = Draw([row.parameters for row in rows])
        self._wide_draws: dict[int, Draw] = {}
        self._keys = np.array([row.key for row in rows], dtype=np.uint64)
        self._adjustments = Adjustments.of([(row.parameters, row.history) for row in rows])

    def __call__(self, logits: mx.array, masks: mx.array | None = None) -> mx.array:
        """Token ids [rows] int32 from logits [rows, vocabulary] and masks as `Draw` takes them; -1 where the logits are
        not finite."""
        uniform = () if self._draw.is_greedy else _uniform(self._rows, self._keys)
        if self._adjustments is None:
            tokens = self._draw(logits, uniform, masks)
        elif draw_kernel.way() == "gpu":
            tokens = self._draw(logits, uniform, masks, self._adjustments.adjusting(logits.shape[-1]))
            self._adjustments.counted(tokens)
        else:
            tokens = self._draw(self._adjustments.apply(logits), uniform, masks)
            self._adjustments.record(tokens)
        for row in self._rows:
            row.position += 1
        return tokens

    def ahead(
        self, logits: mx.array, drafts: mx.array, masks: mx.array | None = None, drafted: mx.array | None = None
    ) -> mx.array:
        """Token ids [rows, width] from logits [rows, width, vocabulary]: what each row says at each place, if what it
        says before that is drafts [rows, width - 1]. `masks` are [rows, width, vocabulary / 32].

        `drafted`: probabilities [rows, width - 1, vocabulary] that the drafts were drawn with, 0 where they were not
        drawn. Those are accepted or rejected by chance, see `rejection`. The rows stay where they are until `advance`.
        """
        rows, width, vocab_size = logits.shape
        if self._adjustments is not None:
            logits = self._adjustments.apply_ahead(logits, drafts)
        logits = logits.reshape(rows * width, vocab_size)
        if width not in self._wide_draws:
            self._wide_draws[width] = Draw([row.parameters for row in self._rows for _ in range(width)])
        draw = self._wide_draws[width]
        uniform = () if draw.is_greedy else [row.uniform(place) for row in self._rows for place in range(width)]
        flat = None if masks is None else masks.reshape(rows * width, -1)
        tokens = draw(logits, uniform, flat).reshape(rows, width)
        if drafted is None:
            return tokens
        drafted = mx.pad(drafted, [(0, 0), (0, 0), (0, vocab_size - drafted.shape[2])])
        weights = draw.weights(logits, flat).reshape(rows, width, vocab_size)
        chances = [[row.uniform(place, ACCEPTANCE) for place in range(width - 1)] for row in self._rows]
        rest = [[row.uniform(place) for place in range(width - 1)] for row in self._rows]
        numbers = (launched_numbers.floats(np.array(each, dtype=np.float32)) for each in (chances, rest))
        judged = rejection.judged(weights[:, :-1], drafts, drafted, *numbers)
        is_drawn = mx.any(drafted > 0, axis=-1)
        said = mx.where(is_drawn, judged, tokens[:, :-1])
        return mx.concatenate([said, tokens[:, -1:]], axis=1)

    def advance(self, tokens: mx.array, counts: Sequence[int]) -> None:
        """The rows have said the first `counts` [rows] of tokens [rows, width]."""
        if self._adjustments is not None:
            self._adjustments.record_ahead(tokens, counts)
        for row, count in zip(self._rows, counts, strict=True):
            row.position += count

    def release(self) -> None:
        """Hand the state of penalties back to the rows."""
        if self._adjustments is not None:
            self._adjustments.release()


def apply_masks(logits: mx.array, masks: mx.array) -> mx.array:
    """Logits [rows, vocabulary], -inf where the bit of packed masks [rows, ceil(vocabulary / 32)] is 0."""
    bits = masks[:, :, None] & (mx.array(1, dtype=mx.uint32) << mx.arange(32, dtype=mx.uint32))
    may_come = bits.astype(mx.bool_).reshape(masks.shape[0], -1)[:, : logits.shape[-1]]
    return mx.where(may_come, logits, mx.array(-mx.inf, dtype=logits.dtype))


def _order(parameters: Sequence[Sampling]) -> _Order | None:
    ordered = [
        index for index, each in enumerate(parameters) if each.temperature > 0 and (each.top_k > 0 or each.top_p < 1)
    ]
    if not ordered:
        return None
    members = [parameters[index] for index in ordered]
    return _Order(
        rows=None if len(ordered) == len(parameters) else mx.array(ordered),
        top_k=mx.array([[each.top_k or _UNLIMITED] for each in members]),
        top_p=_column([each.top_p for each in members]),
        is_narrow=all(0 < each.top_k <= _NARROW for each in members),
    )


def _inverse_temperature(parameters: Sampling) -> float:
    """0 for greedy. Logits times this stay finite."""
    return min(1.0 / parameters.temperature, _COLDEST) if parameters.temperature else 0.0


def _column(values: _Numbers) -> mx.array:
    return mx.array(np.asarray(values, dtype=np.float32))[:, None]
