"""Which replica holds the longest prefix of a prompt, and whether it is worth its queue. Pure.

Rules:
1. A replica tells the digests of the prefixes that its cache holds; a prompt's cached tokens on it are those of the
   longest prefix whose digest is among them. What the sequences that it runs will leave there counts as well, so that
   requests that come together and share a prompt stay together.
2. Every sequence that a replica runs outweighs `load_tokens` cached tokens: many requests with one prompt spread over
   the replicas once the busy one would make them wait longer than computing the prefix again takes.
3. Between equals the longer prefix decides, then the number of free slots.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import attrs

from mlx_serving.actors.messages.batching import PrefixesHeld, SequenceQueued
from mlx_serving.actors.prefix_digests import (
    BLOCK_TOKENS,
    namespace,
    packed_block_digests,
    unpack_digests,
)


@attrs.define
class Prefixes:
    """The prefixes of one replica. `base` is None until it has told of any."""

    base: bytes | None = None
    held: set[int] = attrs.field(factory=set)
    coming: Counter[int] = attrs.field(factory=Counter)

    def told(self, message: PrefixesHeld) -> None:
        if message.is_whole:
            self.held.clear()
        self.base = message.namespace
        self.held.difference_update(unpack_digests(message.dropped))
        self.held.update(unpack_digests(message.added))

    def expect(self, digests: Iterable[int]) -> None:
        """A sequence of such a prompt was given to the replica."""
        self.coming.update(digests)

    def settle(self, digests: Iterable[int]) -> None:
        """That sequence has ended; what is left of it the replica tells itself."""
        self.coming.subtract(digests)
        for digest in digests:
            if self.coming[digest] <= 0:
                del self.coming[digest]

    def digests(self, sequence: SequenceQueued) -> list[int]:
        """Of the sequence's prompt, as this replica would name them; none if it keeps no prefixes."""
        if self.base is None:
            return []
        space = namespace(self.base, sequence.cache_salt, sequence.adapter)
        return packed_block_digests(space, sequence.prompt_ids)

    def cached_tokens(self, digests: list[int]) -> int:
        """Tokens of the longest prefix with one of these digests that the replica has or will have."""
        for count in range(len(digests), 0, -1):
            if digests[count - 1] in self.held or digests[count - 1] in self.coming:
                return count * BLOCK_TOKENS
        return 0
