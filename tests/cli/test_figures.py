import pytest

from mlx_serving.frontends.cli.figures import duration, quantity, size


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1024, "1 KiB"), (1 << 30, "1 GiB"), (3 << 40, "3 TiB")]
)
def test_sizes_have_binary_units(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(("count", "text"), [(12, "12"), (134_515_008, "135M"), (7_615_616_512, "7.62B")])
def test_parameters_are_counted_in_millions_and_billions(count: int, text: str) -> None:
    assert quantity(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.00035, "350 µs"),
        (0.0123, "12.3 ms"),
        (4.56, "4.56 s"),
        (59.96, "60 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_read_naturally(seconds: float, text: str) -> None:
    assert duration(seconds) == text
