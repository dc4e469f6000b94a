"""The disk tier: what is put is found again, and nothing that happens to the files reaches a caller."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from support.wait import until

from mlx_serving.actors.generation.prefix import disk as disk_module
from mlx_serving.actors.generation.prefix.disk import DiskTier
from mlx_serving.actors.generation.prefix.disk_arrival import Fetched
from mlx_serving.actors.generation.prefix.disk_index import FILES
from mlx_serving.actors.generation.prefix.disk_record import (
    PART_BYTES,
    BrokenFile,
    Checksum,
    Reading,
    Record,
    Stored,
    Tensor,
    fresh_memory,
    write_record,
)
from mlx_serving.actors.generation.prefix.disk_search import Wanted
from mlx_serving.actors.generation.prefix.keys import prefix_key
from mlx_serving.actors.messages.values import pack_ids

SPACE = b"space"
IDS = tuple(range(100, 130))


def block(ids: tuple[int, ...], start: int, stop: int, size: int = 64) -> Record:
    """Its one tensor says which tokens it is for."""
    data = bytes(random.Random(repr((ids[:stop], start))).randbytes(size))
    key, parent = prefix_key(SPACE, ids[:stop]), prefix_key(SPACE, ids[:start])
    tensors = (Tensor("U8", (size,), memoryview(data)), Tensor("F32", (2, 2), memoryview(bytes(16))))
    return Record(key, parent, start, stop, pack_ids(ids[start:stop]), tensors, note=f"{start}-{stop}")


def state(ids: tuple[int, ...], stop: int) -> Record:
    return attrs.evolve(block(ids, 0, stop), tokens=b"", note=f"state {stop}")


@attrs.define
class Tiers:
    """Tiers on one folder, closed at the end; what they warned of."""

    folder: Path
    opened: list[DiskTier] = attrs.field(factory=list)
    warnings: list[str] = attrs.field(factory=list)

    def open(self, model: str = "model", limit: int = 1 << 20) -> DiskTier:
        tier = DiskTier(self.folder, model, limit, self.warnings.append)
        self.opened.append(tier)
        assert tier.flush()
        return tier

    def files(self, model: str = "model") -> list[Path]:
        return sorted((self.folder / model).iterdir())


@pytest.fixture
def tiers(tmp_path: Path) -> Iterator[Tiers]:
    tiers = Tiers(tmp_path / "prefix")
    yield tiers
    for tier in tiers.opened:
        tier.close()


def keep(tier: DiskTier, *records: Record) -> None:
    assert all(tier.put(SPACE, record) for record in records)
    assert tier.flush()


def fetch(tier: DiskTier, ids: tuple[int, ...], **held: int) -> list[Fetched]:
    return list(tier.fetch(Wanted(SPACE, ids, with_blocks=True, with_states=False, **held)))


def notes(fetched: list[Fetched]) -> list[tuple[str, int, int]]:
    return [(each.content.note, each.start, each.stop) for each in fetched]


def modes_of_index(tiers: Tiers) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in tiers.folder.glob("index.sqlite*")}


def test_blocks_are_found_again_to_the_token_after_a_restart(tiers: Tiers) -> None:
    first = tiers.open()
    records = [block(IDS, start, start + 10) for start in (0, 10, 20)]
    keep(first, *records)
    first.close()
    second = tiers.open()
    found = fetch(second, (*IDS[:25], 7, 7))
    assert notes(found) == [("0-10", 0, 10), ("10-20", 10, 20), ("20-30", 20, 25)]
    for each, record in zip(found, records, strict=True):
        assert [(t.dtype, t.shape, bytes(t.data)) for t in each.content.tensors] == [
            (t.dtype, t.shape, bytes(t.data)) for t in record.tensors
        ]
    assert notes(fetch(second, IDS, blocks=20)) == [("20-30", 20, 30)]
    assert fetch(second, IDS, blocks=30) == []
    assert fetch(second, (1, *IDS)) == []
    assert (second.figures.entries, second.figures.tokens, second.dropped) == (3, 30, 0)


def test_a_sequence_that_leaves_a_block_in_its_middle_goes_on_in_another(tiers: Tiers) -> None:
    tier = tiers.open()
    branch = (*IDS[:14], *range(20))
    keep(tier, block(IDS, 0, 10), block(IDS, 10, 20), block(branch, 14, 20))
    assert notes(fetch(tier, branch)) == [("0-10", 0, 10), ("10-20", 10, 14), ("14-20", 14, 20)]


def test_a_block_replaces_its_own_beginning_and_is_not_kept_twice(tiers: Tiers) -> None:
    tier = tiers.open()
    keep(tier, block(IDS, 0, 6), block(IDS, 0, 10), block(IDS, 0, 10), block(IDS, 0, 4))
    assert notes(fetch(tier, IDS)) == [("0-10", 0, 10)]
    assert len(tiers.files()) == 1


def test_states_are_found_by_the_longest_exact_prefix_that_blocks_reach(tiers: Tiers) -> None:
    tier = tiers.open()
    keep(tier, block(IDS, 0, 10), block(IDS, 10, 20), state(IDS, 8), state(IDS, 15), state(IDS, 28))

    def found(ids: tuple[int, ...], with_blocks: bool, held_state: int = 0) -> list[tuple[str, int, int]]:
        wanted = Wanted(SPACE, ids, with_blocks=with_blocks, with_states=True, state=held_state)
        return notes(list(tier.fetch(wanted)))

    assert found(IDS, with_blocks=False) == [("state 28", 0, 28)]
    assert found(IDS, with_blocks=True) == [("0-10", 0, 10), ("10-20", 10, 20), ("state 15", 0, 15)]
    assert found((*IDS[:14], 1, 1), with_blocks=True) == [("0-10", 0, 10), ("state 8", 0, 8)]
    assert found(IDS, with_blocks=True, held_state=15) == []


def test_a_state_is_worth_the_tokens_behind_the_one_in_memory_however_far_blocks_reach(tiers: Tiers) -> None:
    tier = tiers.open(limit=1 << 30)
    keep(tier, attrs.evolve(block(IDS, 0, 15, 8 << 20), tokens=b""))
    tier.worth.computed(1000, 10.0)
    tier.worth.read(100 << 20, 1.0)

    def found(held_state: int) -> int:
        wanted = Wanted(SPACE, IDS, with_blocks=True, with_states=True, blocks=20, state=held_state)
        return len(list(tier.fetch(wanted)))

    assert found(held_state=14) == 0
    assert found(held_state=0) == 1


@pytest.mark.parametrize(
    ("is_apart", "cores", "readers"), [(False, 12, 4), (True, 2, 4), (True, 12, 12), (True, 64, 16)]
)
def test_more_than_a_few_threads_read_only_where_no_core_computes(
    tiers: Tiers, monkeypatch: pytest.MonkeyPatch, is_apart: bool, cores: int, readers: int
) -> None:
    together, names = threading.Barrier(readers), set()

    class ReadTogether(Reading):
        def read(self, part: int) -> None:
            together.wait(10)
            names.add(threading.current_thread().name)
            super().read(part)

    monkeypatch.setattr(disk_module, "usable_cores", lambda: cores)
    monkeypatch.setattr(disk_module, "Reading", ReadTogether)
    tier = tiers.open()
    if is_apart:
        tier.read_to(fresh_memory)
    ids = tuple(range(2 * readers))
    keep(tier, *(block(ids, start, start + 1) for start in ids))
    assert len(fetch(tier, ids)) == 2 * readers
    assert len(names) == readers


def test_what_is_read_is_there_while_what_follows_it_is_on_its_way(
    tiers: Tiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()

    class SecondWaits(Reading):
        def read(self, part: int) -> None:
            if self._stored.name == late.name:
                assert goes_on.wait(60)
            super().read(part)

    tier = tiers.open()
    keep(tier, block(IDS, 0, 10))
    keep(tier, block(IDS, 10, 20))
    late = max(tiers.files(), key=lambda each: each.stat().st_mtime_ns)
    monkeypatch.setattr(disk_module, "Reading", SecondWaits)
    fetching = tier.fetch(Wanted(SPACE, IDS, with_blocks=True, with_states=False))
    arriving = iter(fetching)
    assert notes([next(arriving)]) == [("0-10", 0, 10)]
    assert not fetching.done()
    goes_on.set()
    assert notes(list(arriving)) == [("10-20", 10, 20)]
    assert fetching.done()


def test_without_threads_to_be_had_the_searching_one_reads(tiers: Tiers, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    tier = tiers.open()
    keep(tier, block(IDS, 0, 10))
    keep(tier, block(IDS, 10, 20))
    monkeypatch.setattr(tier._readers, "submit", none_left)
    assert notes(fetch(tier, IDS)) == [("0-10", 0, 10), ("10-20", 10, 20)]


def test_an_error_that_is_not_the_disks_reaches_who_waits(tiers: Tiers, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(nbytes: int) -> memoryview:
        raise MemoryError(nbytes)

    tier = tiers.open()
    keep(tier, block(IDS, 0, 10))
    tier.read_to(no_memory)
    fetching = tier.fetch(Wanted(SPACE, IDS, with_blocks=True, with_states=False))
    with pytest.raises(MemoryError):
        list(fetching)
    assert fetching.done()


@pytest.mark.parametrize("pieces", [[0, 1, 4095, 4096, 4097, 9000, 8192], [30_381]])
def test_a_checksum_hangs_on_the_bytes_and_not_on_how_they_come(pieces: list[int]) -> None:
    data = random.Random(1).randbytes(sum(pieces))

    def checksum(content: bytes) -> int:
        found, begin = Checksum(), 0
        for size in pieces:
            found.add(memoryview(content)[begin : begin + size])
            begin += size
        return found.value

    whole = Checksum()
    whole.add(memoryview(data))
    assert checksum(data) == whole.value
    changed = [data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :] for at in range(0, len(data), 997)]
    swapped = data[4096:8192] + data[:4096] + data[8192:]
    assert whole.value not in {checksum(each) for each in (*changed, swapped)}


def test_a_file_of_many_parts_is_read_in_any_order(tmp_path: Path) -> None:
    content = block(IDS, 0, 10, 2 * PART_BYTES + 5000)
    stored = write_record(tmp_path, content)
    reading = Reading(tmp_path, stored)
    assert len(reading.parts) == 3
    for part in reversed(reading.parts):
        reading.read(part)
    assert bytes(reading.content().tensors[0].data) == bytes(content.tensors[0].data)
    path = tmp_path / stored.name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BrokenFile, match="shorter"):
        reading.read(2)
    reading.close()
    with pytest.raises(BrokenFile, match="size"):
        Reading(tmp_path, stored)


@pytest.mark.parametrize("damage", ["truncated", "changed", "emptied", "header", "removed"])
def test_a_broken_file_is_dropped_and_counted_and_the_rest_still_serves(tiers: Tiers, damage: str) -> None:
    tier = tiers.open()
    keep(tier, block(IDS, 0, 10))
    keep(tier, block(IDS, 10, 20))
    path = max(tiers.files(), key=lambda each: each.stat().st_mtime_ns)
    content = bytearray(path.read_bytes())
    if damage == "removed":
        path.unlink()
    elif damage in ("truncated", "emptied"):
        path.write_bytes(content[: len(content) // 2 if damage == "truncated" else 0])
    else:
        content[3 if damage == "header" else -5] ^= 1
        path.write_bytes(content)
    assert notes(fetch(tier, IDS)) == [("0-10", 0, 10)]
    assert tier.dropped == 1
    assert tier.flush()
    assert len(tiers.files()) == 1
    assert notes(fetch(tier, IDS)) == [("0-10", 0, 10)]
    assert tier.dropped == 1


def test_an_index_that_is_no_database_is_begun_again(tiers: Tiers) -> None:
    first = tiers.open()
    keep(first, block(IDS, 0, 10))
    first.close()
    for path in tiers.folder.glob("index.sqlite*"):
        path.write_bytes(b"not a database, certainly not one" * 100)
    second = tiers.open()
    assert fetch(second, IDS) == []
    keep(second, block(IDS, 0, 10))
    assert notes(fetch(second, IDS)) == [("0-10", 0, 10)]
    assert (second.dropped, tiers.warnings) == (1, [])


def test_the_bound_holds_for_all_models_together_and_the_least_recently_used_goes(tiers: Tiers) -> None:
    size = 1000
    one, other = tiers.open("one", 5 * size), tiers.open("other", 5 * size)
    kept = [(number, *IDS) for number in range(6)]
    keep(one, block(kept[0], 0, 5, size // 2))
    keep(one, block(kept[1], 0, 5, size // 2))
    for ids in kept[2:5]:
        keep(other, block(ids, 0, 5, size // 2))
    assert fetch(one, kept[0])
    assert one.flush()
    keep(other, block(kept[5], 0, 5, 2 * size))
    assert [bool(fetch(one, ids)) for ids in kept[:2]] == [True, False]
    assert sum(path.stat().st_size for path in tiers.folder.rglob("*.safetensors")) <= 5 * size
    assert fetch(other, kept[5])


def test_a_record_above_the_bound_is_not_kept(tiers: Tiers) -> None:
    tier = tiers.open(limit=100)
    keep(tier, block(IDS, 0, 10, 200))
    assert (fetch(tier, IDS), tiers.files(), tiers.warnings) == ([], [], [])


def test_what_does_not_fit_into_the_queue_is_not_kept(tiers: Tiers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_module, "_QUEUE_BYTES", 100)
    tier = tiers.open()
    assert not tier.put(SPACE, block(IDS, 0, 10, 200))


def test_what_closing_leaves_unwritten_is_a_warning(tiers: Tiers, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()

    def write_late(folder: Path, record: Record) -> Stored:
        assert goes_on.wait(60)
        return write_record(folder, record)

    monkeypatch.setattr(disk_module, "write_record", write_late)
    tier = tiers.open()
    assert tier.put(SPACE, block(IDS, 0, 10))
    monkeypatch.setattr(disk_module, "_CLOSE_SECONDS", 0.0)
    tier.close()
    assert len(tiers.warnings) == 1
    assert "MiB" in tiers.warnings[0]
    goes_on.set()
    monkeypatch.undo()
    tier.close()
    assert len(tiers.warnings) == len(tiers.files()) == 1


def test_a_full_disk_ends_writing_with_one_warning_and_reading_goes_on(
    tiers: Tiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = tiers.open()
    keep(tier, block(IDS, 0, 10))
    usage = shutil.disk_usage(tiers.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    keep(tier, block(IDS, 10, 20), block(IDS, 20, 30))
    assert not tier.is_on
    assert not tier.put(SPACE, block(IDS, 10, 20))
    assert len(tiers.warnings) == 1
    assert "MiB" in tiers.warnings[0]
    assert notes(fetch(tier, IDS)) == [("0-10", 0, 10)]


def test_a_folder_that_cannot_be_made_is_a_warning_and_a_tier_that_is_off(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    tiers = Tiers(tmp_path / "file" / "prefix")
    tier = tiers.open()
    assert not tier.is_on
    assert len(tiers.warnings) == 1
    assert fetch(tier, IDS) == []
    assert tier.clear()
    tier.close()


def test_clearing_deletes_what_is_of_this_model(tiers: Tiers) -> None:
    one, other = tiers.open("one"), tiers.open("other")
    keep(one, block(IDS, 0, 10), state(IDS, 10))
    keep(other, block(IDS, 0, 10))
    assert one.clear()
    assert (tiers.files("one"), one.figures.entries) == ([], 0)
    assert (fetch(one, IDS), len(fetch(other, IDS))) == ([], 1)


def test_the_folders_and_files_are_for_their_owner_alone(tiers: Tiers) -> None:
    keep(tiers.open(), block(IDS, 0, 10))
    assert tiers.folder.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o077 for path in tiers.files()] == [0]
    assert modes_of_index(tiers) == dict.fromkeys(FILES, 0o600)


def test_an_index_that_others_could_read_is_closed_to_them(tiers: Tiers) -> None:
    keep(tiers.open(), block(IDS, 0, 10))
    for name in FILES:
        (tiers.folder / name).chmod(0o644)
    keep(tiers.open(), block(IDS, 10, 20))
    assert modes_of_index(tiers) == dict.fromkeys(FILES, 0o600)
    assert tiers.warnings == []


def test_two_tiers_on_one_folder_share_and_keep_nothing_twice(tiers: Tiers) -> None:
    first, second = tiers.open(), tiers.open()
    records = [block((number, *IDS), 0, 10) for number in range(20)]
    for record in records:
        assert first.put(SPACE, record)
        assert second.put(SPACE, record)
    assert first.flush()
    assert second.flush()
    assert len(tiers.files()) == 20
    for number in range(20):
        assert fetch(first, (number, *IDS[:9]))
        assert fetch(second, (number, *IDS[:9]))
    assert (first.dropped, second.dropped, tiers.warnings) == (0, 0, [])


def test_what_a_writer_that_was_killed_left_is_whole_or_swept(tiers: Tiers) -> None:
    script = textwrap.dedent(
        f"""
        import sys
        from pathlib import Path
        sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[2])]!r}
        from test_disk import IDS, SPACE, block
        from mlx_serving.actors.generation.prefix.disk import DiskTier
        tier = DiskTier(Path(sys.argv[1]), "model", 1 << 30, print)
        for number in range(10_000):
            tier.put(SPACE, block((number, *IDS), 0, 10, 50_000))
        tier.flush()
        """
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tiers.folder)], stderr=subprocess.DEVNULL) as writer:
        written = tiers.folder / "model"
        until(lambda: written.is_dir() and len(list(written.glob("*.safetensors"))) > 20, seconds=60, what="files")
        writer.send_signal(signal.SIGKILL)
    for path in tiers.files():
        os.utime(path, (0, 0))
    tier = tiers.open()
    found = list(itertools.takewhile(bool, (fetch(tier, (number, *IDS[:9])) for number in range(10_000))))
    assert len(found) == len(tiers.files()) == tier.figures.entries >= 20
    assert (tier.dropped, tiers.warnings) == (0, [])
    keep(tier, block(IDS, 0, 10))
