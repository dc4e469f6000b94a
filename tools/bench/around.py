"""CPU work around the model, in this process: each thing as it is, and as it would be without what makes it fast.

The ways take turns in every repetition; a figure is the time of one repetition over what it worked on. Text is that of
the product's own sources, and everything has been done once before it is timed: the tokenizer knows the words.
"""

from __future__ import annotations

import gc
import importlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import msgpack
import numpy as np

from mlx_serving.actors import codec
from mlx_serving.actors.generation.answer import Answer
from mlx_serving.actors.generation.pooling import OutputPool
from mlx_serving.actors.generation.text import IncrementalDecoder, TextDecoder, text_decoder
from mlx_serving.actors.messages.admission import SequenceOutput, TokensGenerated
from mlx_serving.actors.messages.envelope import Envelope
from mlx_serving.actors.messages.values import Stopping
from mlx_serving.actors.models.tokenizer import TextTokenizer
from mlx_serving.actors.prefix_digests import BLOCK_TOKENS
from mlx_serving.native import pure
from tools.bench.allocations import allocations

Ways = Mapping[str, Callable[[], object]]
Seconds = dict[str, list[float]]

_TEXTS, _TEXT_LENGTH, _LONG = 64, 4_000, 100_000
_NAP = 0.0002
"""Seconds between two looks at the clock: a thread that never rests would slow down what it watches."""
_DIGEST_IDS = 100_000
_STOPS = ("\n\nHuman:", "<|end_of_answer|>", "```\n\n\n", "END OF FILE")
_ROWS = (1, 32)
_STEPS = 2_000
_MASK_STEPS = 200
_VOCABULARY = 151_936


def around(folder: Path, repetitions: int) -> dict[str, Any]:
    """Times in seconds, of what each key says. `folder`: a model's, for its tokenizer."""
    source = _source()
    tokenizer = TextTokenizer.load(folder)
    ids = tokenizer.encode(source[:_LONG])
    return {
        "model": folder.name,
        "tokenizer": _tokenizing(folder, source, repetitions),
        "decoder": _decoding(tokenizer, ids, repetitions),
        "stops": _stopping(tokenizer, ids, repetitions),
        "digests": _digesting(repetitions),
        "frames": {str(rows): _frames(rows, repetitions) for rows in _ROWS},
        "pooling": {str(rows): _pooling(tokenizer, ids, rows, repetitions) for rows in _ROWS},
        "masks": _mask_buffers(repetitions),
    }


def _twins() -> dict[str, ModuleType]:
    """The native one where it is built."""
    try:
        return {"pure": pure, "native": importlib.import_module("mlx_serving.native._accelerator")}
    except ImportError:
        return {"pure": pure}


def _source() -> str:
    """Python and Markdown of the repository, long enough for every measurement."""
    root = Path(__file__).resolve().parents[2]
    paths = [*sorted((root / "actors").rglob("*.py")), *sorted((root / "docs").rglob("*.md"))]
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    return text * (1 + _TEXTS * _TEXT_LENGTH // len(text))


def _in_turns(ways: Ways, repetitions: int, parts: int = 1) -> Seconds:
    """Seconds of each repetition of each way, over the `parts` that it worked on."""
    seconds: Seconds = {name: [] for name in ways}
    for repetition in range(repetitions + 1):
        for name, run in ways.items():
            gc.collect()
            began = time.perf_counter()
            run()
            if repetition:  # the first one is for warmth
                seconds[name].append((time.perf_counter() - began) / parts)
    return seconds


def _tokenizing(folder: Path, source: str, repetitions: int) -> dict[str, Any]:
    """RuntimeError when the two ways give different ids."""
    tokenizers = {name: TextTokenizer.load(folder, is_on) for name, is_on in (("off", False), ("on", True))}
    texts = [source[at : at + _TEXT_LENGTH] for at in range(0, _TEXTS * _TEXT_LENGTH, _TEXT_LENGTH)]
    found: dict[str, Any] = {"is_cut": tokenizers["on"].seams is not None}
    for name, batch in (("batch", texts), ("long", [source[:_LONG]])):
        one, other = (tokenizer.encode_batch(batch) for tokenizer in tokenizers.values())
        if one != other:
            raise RuntimeError(f"the parallel tokenizer of {folder.name} gives other ids")
        ways = {key: _bound(tokenizer.encode_batch, batch) for key, tokenizer in tokenizers.items()}
        found[name] = {"tokens": sum(map(len, one)), "seconds": _in_turns(ways, repetitions)}
    text = source[:_LONG]
    ways = {
        "by Tokenizer.encode": lambda: tokenizers["on"].backend.encode(text),
        "as here": lambda: tokenizers["on"].encode(text),
    }
    found["standstill"] = {name: [_standstill(run) for _ in range(repetitions)] for name, run in ways.items()}
    return found


def _standstill(run: Callable[[], object]) -> float:
    """Seconds that another thread of the process, which wants to run all the time, stood still at most."""
    began, is_over = threading.Event(), threading.Event()
    longest = 0.0

    def watch() -> None:
        nonlocal longest
        last = time.perf_counter()
        began.set()
        while not is_over.is_set():
            time.sleep(_NAP)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    watcher = threading.Thread(target=watch)
    watcher.start()
    began.wait()
    run()
    is_over.set()
    watcher.join()
    return longest


def _bound(run: Callable[[Any], object], value: object) -> Callable[[], object]:
    return lambda: run(value)


def _again(times: int, run: Callable[[], object]) -> Callable[[], object]:
    """Keeps nothing of what `run` gives."""

    def run_all() -> None:
        for _ in range(times):
            run()

    return run_all


def _decoding(tokenizer: TextTokenizer, ids: Sequence[int], repetitions: int) -> Seconds:
    """Seconds a token. RuntimeError when a way shows another text. Of a vocabulary that is no byte-level one the window
    alone."""
    backend, hidden = tokenizer.backend, tokenizer.special_ids
    makers: dict[str, Callable[[], TextDecoder]] = {"window": lambda: IncrementalDecoder(backend, hidden)}
    if tokenizer.texts is not None:
        for name, twin in _twins().items():
            makers[name] = _maker(twin, twin.TokenTexts(backend.id_to_token), hidden)
    expected = tokenizer.decode(ids)
    if any(_text(make(), ids) != expected for make in makers.values()):
        raise RuntimeError("a decoder shows another text than the tokenizer")
    ways = {name: _bound(lambda make: _text(make(), ids), make) for name, make in makers.items()}
    return _in_turns(ways, repetitions, len(ids))


def _maker(twin: ModuleType, texts: Any, hidden: frozenset[int]) -> Callable[[], TextDecoder]:
    return lambda: twin.ByteDecoder(texts, hidden)


def _text(decoder: TextDecoder, ids: Sequence[int]) -> str:
    return "".join([*map(decoder.add, ids), decoder.flush()])


def _stopping(tokenizer: TextTokenizer, ids: Sequence[int], repetitions: int) -> Seconds:
    """Seconds a piece of one token's text. RuntimeError when a stop string occurs, for it ends the work."""
    pieces = [tokenizer.text_of(each) for each in ids]

    def run(twin: ModuleType) -> None:
        matcher = twin.StopMatcher(_STOPS)
        for piece in pieces:
            matcher.feed(piece)
        if matcher.matched is not None:
            raise RuntimeError(f"the text of the benchmark holds {matcher.matched!r}")

    return _in_turns({name: _bound(run, twin) for name, twin in _twins().items()}, repetitions, len(ids))


def _digesting(repetitions: int) -> Seconds:
    """Seconds for the digests of a prompt."""
    packed = np.arange(_DIGEST_IDS, dtype=np.uint32).tobytes()

    def run(twin: ModuleType) -> None:
        twin.chained_digests(b"8 bytes.", packed, 4 * BLOCK_TOKENS)

    return _in_turns({name: _bound(run, twin) for name, twin in _twins().items()}, repetitions)


def _frames(rows: int, repetitions: int) -> Seconds:
    """Seconds a row, of frames of one token a row: msgpack alone, and everything between message and bytes."""
    outputs = tuple(SequenceOutput(1000 + row, " token", (1000 + row,)) for row in range(rows))
    envelope = Envelope(TokensGenerated("replica", outputs), "replica")
    frame = codec.encode(envelope)
    plain = msgpack.unpackb(frame, strict_map_key=False)
    kept, steps = msgpack.Packer(), _STEPS // rows

    def decode(twin: ModuleType) -> None:
        with mock.patch.object(codec, "unpack_rows", twin.unpack_rows):
            _again(steps, lambda: codec.decode(frame))()

    ways = {
        "packed by msgpack": _again(steps, lambda: msgpack.packb(plain)),
        "packed by a packer that is kept": _again(steps, lambda: kept.pack(plain)),
        "encoded": _again(steps, lambda: codec.encode(envelope)),
        "unpacked by msgpack": _again(steps, lambda: msgpack.unpackb(frame, strict_map_key=False)),
        **{f"decoded, {name}": _bound(decode, twin) for name, twin in _twins().items()},
    }
    return _in_turns(ways, repetitions, steps * rows)


def _pooling(tokenizer: TextTokenizer, ids: Sequence[int], rows: int, repetitions: int) -> dict[str, Any]:
    """From a token to its frame: seconds and allocations a token, with new outputs and with pooled ones."""
    said = ids[: _STEPS // rows]
    runs = {name: _from_token_to_frame(tokenizer, said, rows, is_on) for name, is_on in (("off", False), ("on", True))}
    tokens = len(said) * rows
    seconds = _in_turns(runs, repetitions, tokens)
    counted = {name: allocations(run) for name, run in runs.items()}
    return {
        "seconds": seconds,
        "allocations": {name: each and each.calls / tokens for name, each in counted.items()},
        "bytes": {name: each and each.bytes / tokens for name, each in counted.items()},
    }


def _from_token_to_frame(tokenizer: TextTokenizer, ids: Sequence[int], rows: int, is_on: bool) -> Callable[[], object]:
    answers = [
        Answer(Stopping(), 1 << 30, frozenset(), text_decoder(tokenizer, tokenizer.special_ids)) for _ in range(rows)
    ]
    pool = OutputPool(is_on)

    def run() -> None:
        for token_id in ids:
            pool.begin()
            outputs = tuple([pool.output(row, answer.add(token_id)) for row, answer in enumerate(answers)])
            codec.encode(Envelope(TokensGenerated("replica", outputs), "replica"))

    return run


def _mask_buffers(repetitions: int) -> Seconds:
    """Seconds for a buffer of the masks of 32 rows, new for a step and kept from the last one."""
    words, everything = (_VOCABULARY + 31) // 32, 0xFFFFFFFF
    kept = np.empty((32, words), np.uint32)
    ways = {
        "new": _again(_MASK_STEPS, lambda: np.full((32, words), everything, np.uint32)),
        "kept": _again(_MASK_STEPS, lambda: np.copyto(kept, everything, casting="unsafe")),
    }
    return _in_turns(ways, repetitions, _MASK_STEPS)
