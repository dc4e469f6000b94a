"""When reading from disk pays."""

from __future__ import annotations

from mlx_serving.actors.generation.prefix.worth import ReadingWorth

MEGABYTE = 1 << 20


def test_until_both_are_known_it_is_read() -> None:
    worth = ReadingWorth()
    assert worth.is_worth(1000, 100 * MEGABYTE)
    worth.read(100 * MEGABYTE, 10.0)
    assert worth.is_worth(1000, 100 * MEGABYTE)


def test_a_slow_disk_is_left_alone_but_for_a_trial_now_and_then() -> None:
    worth = ReadingWorth()
    worth.computed(1000, 0.05)
    worth.read(100 * MEGABYTE, 0.1)
    said = [worth.is_worth(1000, 100 * MEGABYTE) for _ in range(64)]
    assert sum(said) == 4
    assert not any(said[:10])
    assert worth.is_worth(10_000, 100 * MEGABYTE)
    for _ in range(10):
        worth.read(100 * MEGABYTE, 0.01)
    assert worth.is_worth(1000, 100 * MEGABYTE)


def test_what_it_takes_to_the_device_counts() -> None:
    worth = ReadingWorth()
    worth.computed(1000, 0.05)
    worth.read(100 * MEGABYTE, 0.03)
    assert worth.is_worth(1000, 100 * MEGABYTE)
    worth.taken(100 * MEGABYTE, 0.03)
    assert not worth.is_worth(1000, 100 * MEGABYTE)


def test_little_is_read_whatever_it_takes_and_says_nothing_about_more() -> None:
    worth = ReadingWorth()
    worth.computed(1000, 0.05)
    worth.read(1000, 0.1)
    assert worth.is_worth(1000, 100 * MEGABYTE)
    worth.read(100 * MEGABYTE, 1.0)
    assert worth.is_worth(16, MEGABYTE)


def test_few_tokens_or_none_say_nothing_about_more() -> None:
    worth = ReadingWorth()
    worth.read(100 * MEGABYTE, 0.1)
    for tokens in (0, 1, 127):
        worth.computed(tokens, 0.0)
    assert worth.is_worth(1000, 100 * MEGABYTE)
    worth.computed(128, 0.0)
    assert not worth.is_worth(1000, 100 * MEGABYTE)
