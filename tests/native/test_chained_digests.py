"""One body for both twins; the oracle is hashlib, block by block."""

from __future__ import annotations

from hashlib import blake2b
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

SEEDS = st.binary(min_size=8, max_size=8)


@given(SEEDS, st.binary(max_size=2000), st.integers(1, 600))
def test_each_digest_is_of_its_block_salted_with_the_one_before(
    twin: ModuleType, seed: bytes, packed: bytes, width: int
) -> None:
    digests = twin.chained_digests(seed, packed, width)
    assert len(digests) == len(packed) // width
    for number, digest in enumerate(digests):
        block = packed[number * width : (number + 1) * width]
        seed = blake2b(block, digest_size=8, salt=seed).digest()
        assert digest.to_bytes(8, "little") == seed


@pytest.mark.parametrize("width", [127, 128, 129, 255, 256, 257, 384])
def test_blocks_may_end_anywhere_in_those_of_the_hash(twin: ModuleType, width: int) -> None:
    packed = bytes(range(256)) * 3
    (first, *_) = twin.chained_digests(b"12345678", packed, width)
    assert first.to_bytes(8, "little") == blake2b(packed[:width], digest_size=8, salt=b"12345678").digest()


@pytest.mark.parametrize(("seed", "width"), [(b"", 4), (b"123456789", 4), (b"12345678", 0), (b"12345678", -4)])
def test_another_seed_or_width_is_refused(twin: ModuleType, seed: bytes, width: int) -> None:
    with pytest.raises(ValueError, match="8 bytes"):
        twin.chained_digests(seed, b"1234", width)


@pytest.mark.parametrize("wrong", [None, "12345678", 3])
def test_what_is_no_bytes_is_a_type_error(twin: ModuleType, wrong: object) -> None:
    with pytest.raises(TypeError):
        twin.chained_digests(wrong, b"1234", 4)
    with pytest.raises(TypeError):
        twin.chained_digests(b"12345678", wrong, 4)
