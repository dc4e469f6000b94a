"""Numbers as people read them."""

from __future__ import annotations

import time

from mlx_serving.actors.messages.frontend import RequestFinished, ServedModel
from mlx_serving.frontends.cli.console import note

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size(count: float) -> str:
    """Bytes with a binary unit, three significant digits: 1.46 GiB."""
    for unit in _UNITS[:-1]:
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} {_UNITS[-1]}"


def quantity(count: int) -> str:
    """A large count of parameters: 135M, 7.6B."""
    for bound, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= bound:
            return f"{count / bound:.3g}{letter}"
    return str(count)


def duration(seconds: float) -> str:
    """350 µs, 12.3 ms, 4.56 s, 3 min 20 s, 2 h 5 min."""
    if 0 < seconds < 0.001:
        return f"{seconds * 1e6:.3g} µs"
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def last_use(model: ServedModel) -> str:
    """How long ago a request used the model; empty for never."""
    return f"{duration(max(0.0, time.time() - model.last_used))} ago" if model.last_used else ""


def print_stats(result: RequestFinished) -> None:
    """One line on stderr with a request's token counts and timings."""
    usage, timings = result.usage, result.timings
    rate = f", {usage.completion_tokens / timings.decode:.1f} tokens/s" if timings.decode > 0 else ""
    note(
        f"prompt {usage.prompt_tokens} tokens ({usage.cached_tokens} cached), "
        f"answer {usage.completion_tokens} tokens; first token after {duration(timings.first_token)}, "
        f"decode {duration(timings.decode)}{rate}, total {duration(timings.total)}"
    )
