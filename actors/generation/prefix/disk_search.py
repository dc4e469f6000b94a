"""Finding on disk what continues a prefix, to the token."""

from __future__ import annotations

from hashlib import blake2b

import attrs

from mlx_serving.actors.generation.prefix.disk_index import DiskIndex, Entry
from mlx_serving.actors.generation.prefix.keys import ID_BYTES, RunningKey, prefix_keys
from mlx_serving.actors.messages.values import pack_ids


@attrs.frozen
class Wanted:
    """A prompt's beginning, and what memory holds of it: `blocks` tokens of blocks, a state after `state` tokens.

    `with_blocks`, `with_states`: what the model's layers need; a state is of use only where blocks reach.
    """

    namespace: bytes
    ids: tuple[int, ...]
    with_blocks: bool
    with_states: bool
    blocks: int = 0
    state: int = 0


@attrs.frozen
class Found:
    """An entry, and the tokens [start, stop) of the prompt that it is good for."""

    entry: Entry
    start: int
    stop: int


def space_of(namespace: bytes) -> bytes:
    """A name of fixed length."""
    return blake2b(namespace, digest_size=16).digest()


def find(index: DiskIndex, model: str, wanted: Wanted) -> list[Found]:
    """The entries that lengthen what memory holds, in the order of their tokens; the state last."""
    blocks = _blocks(index, model, wanted) if wanted.with_blocks else []
    useful = [found for found in blocks if found.stop > wanted.blocks]
    if not wanted.with_states:
        return useful
    reach = max(wanted.blocks, blocks[-1].stop if blocks else 0) if wanted.with_blocks else len(wanted.ids)
    state = _state(index, model, wanted, reach)
    if state is None or state.stop <= wanted.state:
        return []
    return [*(found for found in useful if found.start < state.stop), Found(state, 0, state.stop)]


def _blocks(index: DiskIndex, model: str, wanted: Wanted) -> list[Found]:
    """Blocks that follow each other from the first token on."""
    packed = memoryview(pack_ids(wanted.ids))
    running = RunningKey(wanted.namespace)
    found: list[Found] = []
    position = 0
    while position < len(wanted.ids):
        rest = packed[position * ID_BYTES :]
        children = index.children(model, running.key, bytes(rest[:ID_BYTES]))
        shared, best = max(((_shared(child.tokens, rest), child) for child in children), key=_length, default=(0, None))
        if best is None or not shared:
            break
        found.append(Found(best, position, position + shared))
        running.grow(rest[: shared * ID_BYTES])
        position += shared
    return found


def _state(index: DiskIndex, model: str, wanted: Wanted, at_most: int) -> Entry | None:
    lengths = index.state_lengths(model, space_of(wanted.namespace), at_most)
    keys = list(prefix_keys(wanted.namespace, wanted.ids, lengths))
    return next((entry for key in reversed(keys) if (entry := index.state(model, key)) is not None), None)


def _length(pair: tuple[int, Entry]) -> int:
    return pair[0]


def _shared(tokens: bytes, ids: memoryview) -> int:
    """How many whole tokens two packed sequences share at their beginning."""
    length = min(len(tokens), len(ids))
    if tokens[:length] == ids[:length]:
        return length // ID_BYTES
    return next(at for at in range(length) if tokens[at] != ids[at]) // ID_BYTES
