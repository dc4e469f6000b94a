"""What sampling ought to do, written plainly: exact probabilities of whole answers, and the test against them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from mlx_serving.actors.messages.values import Sampling

Floats = NDArray[np.float64]
Answer = tuple[int, ...]
_LEAST_EXPECTED = 5.0
"""Answers rarer than this many times are counted together, as the chi-square test wants."""


def distribution(logits: Floats, sampling: Sampling, prompt: Sequence[int], answer: Sequence[int]) -> Floats:
    """Probability of every next token from logits [vocabulary]."""
    scaled = _adjusted(logits, sampling, prompt, answer) / sampling.temperature
    weights = np.exp(scaled - scaled.max())
    order = np.argsort(-weights, kind="stable")
    ranked = weights[order]
    if sampling.top_k:
        ranked[sampling.top_k :] = 0
    mass = np.cumsum(ranked)
    ranked[mass - ranked >= sampling.top_p * mass[-1]] = 0
    ranked[ranked < sampling.min_p] = 0
    probabilities: Floats = np.zeros_like(weights)
    probabilities[order] = ranked / ranked.sum()
    return probabilities


def _adjusted(logits: Floats, sampling: Sampling, prompt: Sequence[int], answer: Sequence[int]) -> Floats:
    values = logits.copy()
    for token, addend in sampling.logit_bias.items():
        values[token] += addend
    for token in {*prompt, *answer}:
        factor = sampling.repetition_penalty
        values[token] = values[token] / factor if values[token] > 0 else values[token] * factor
    for token, count in Counter(answer).items():
        values[token] -= sampling.presence_penalty + sampling.frequency_penalty * count
    return values


def answers(
    logits_after: Callable[[Answer], Floats], sampling: Sampling, prompt: Sequence[int], tokens: int
) -> dict[Answer, float]:
    """The probability of each answer of so many tokens. `logits_after` gives logits [vocabulary] after an answer."""
    found: dict[Answer, float] = {(): 1.0}
    for _ in range(tokens):
        longer: dict[Answer, float] = {}
        for answer, probability in found.items():
            following = distribution(logits_after(answer), sampling, prompt, answer)
            for token in np.flatnonzero(following).tolist():
                longer[(*answer, token)] = probability * float(following[token])
        found = longer
    return found


def surprise(drawn: Iterable[Answer], expected: dict[Answer, float]) -> float:
    """How many standard deviations the chi-square statistic of the draws lies above its mean.

    Infinite if something was drawn that cannot be. By Wilson and Hilferty's approximation (1931).
    """
    counts = Counter(drawn)
    if not set(counts) <= set(expected):
        return math.inf
    pairs = _classes(counts, expected)
    statistic = sum((count - wanted) ** 2 / wanted for count, wanted in pairs)
    freedom = len(pairs) - 1
    part = 2 / (9 * freedom)
    return float(((statistic / freedom) ** (1 / 3) - (1 - part)) / math.sqrt(part))


def _classes(counts: Counter[Answer], expected: dict[Answer, float]) -> list[tuple[float, float]]:
    """Times drawn and times expected, of answers or of several rare ones together."""
    total = counts.total()
    classes: list[tuple[float, float]] = []
    found, wanted = 0.0, 0.0
    for answer in sorted(expected, key=expected.__getitem__, reverse=True):
        found, wanted = found + counts[answer], wanted + expected[answer] * total
        if wanted >= _LEAST_EXPECTED:
            classes.append((found, wanted))
            found, wanted = 0.0, 0.0
    last_found, last_wanted = classes.pop()
    return [*classes, (last_found + found, last_wanted + wanted)]
