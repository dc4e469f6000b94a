"""From results of the kernels benchmark to the lines of the table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from tools.bench.report import Row

_FORMS = {"1": "decode, one row", "8": "decode, 8 rows", "prompt": "a prompt of 512"}
_STOCK = "MLX as its wheel is"
_LEAST_OF_STOCK, _LEAST_OF_BANDWIDTH = 15.0, 0.8
_LEAST_OF_LLAMA = {"smollm2-135m": {"1": 1.0, "prompt": 1.0}}
_LEAST_OF_LLAMA_ELSE = {"1": 0.9}


def kernels_rows(result: dict[str, Any]) -> list[Row]:
    """Rates with the native kernels, and in units of everybody else's; the share of the memory bandwidth."""
    model, rates = result["model"], result["rates"]
    rows = []
    for form, what in _FORMS.items():
        ours = [entry[form] for entry in rates["native"]]
        name = f"{model}: {what}"
        rows.append(Row(f"{name}, native kernels ({rates['native'][0]['instructions']})", _span(ours, "tokens/s")))
        if "stock" in rates:
            theirs = rates["stock"][0][form]
            rows.append(_ratio(f"{name}: in units of {_STOCK}", ours, [theirs] * len(ours), _LEAST_OF_STOCK))
        if "pure" in rates:
            without = [each[form] for each in rates["pure"]]
            rows.append(_ratio(f"{name}: in units of no native kernels", ours, without))
        if "llama.cpp" in rates and form in rates["llama.cpp"][0]:
            least = _LEAST_OF_LLAMA.get(model, _LEAST_OF_LLAMA_ELSE).get(form)
            rivals = [each[form] for each in rates["llama.cpp"]]
            rows.append(_ratio(f"{name}: in units of llama.cpp on {result['gguf']}", ours, rivals, least))
    return [*rows, _bandwidth(result)]


def _bandwidth(result: dict[str, Any]) -> Row:
    weights = result["bytes_a_token"]
    pairs = [pair for each in result["rates"]["native"] for pair in each["bandwidth"]]
    shares = [pair["rate"] * weights / pair["bandwidth"] for pair in pairs]
    limit = _span([pair["bandwidth"] / 1e9 for pair in pairs], "GB/s", 0)
    figure = f"{statistics.median(shares):.0%} ({min(shares):.0%} to {max(shares):.0%}) of {limit}"
    is_dense = result["is_dense"]
    met = statistics.median(shares) >= _LEAST_OF_BANDWIDTH if is_dense else None
    what = f"{result['model']}: memory bandwidth, one row, {weights / 1e6:,.0f} MB a token, {result['cores']} cores"
    return Row(what, figure, f"≥ {_LEAST_OF_BANDWIDTH:.0%}" if is_dense else "", met)


def _ratio(what: str, ours: Sequence[float], theirs: Sequence[float], least: float | None = None) -> Row:
    ratios = [own / other for own, other in zip(ours, theirs, strict=True)]
    met = None if least is None else statistics.median(ratios) >= least
    figure = f"{_span(ratios, 'times', 2)}, theirs {_span(theirs, 'tokens/s')}"
    return Row(what, figure, f"≥ {least}" if least else "", met)


def _span(values: Sequence[float], unit: str, digits: int = 1) -> str:
    middle = f"{statistics.median(values):,.{digits}f} {unit}"
    return middle if len(set(values)) == 1 else f"{middle} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"
