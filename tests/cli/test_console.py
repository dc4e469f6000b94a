import json
from collections.abc import Iterator

import attrs
import pytest
from rich.console import Console

from mlx_serving.frontends.cli import console


@attrs.frozen
class Pair:
    left: int
    right: tuple[str, ...]


def test_json_keeps_letters_and_takes_records_apart(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"one": Pair(1, ("ß",))})
    shown = capsys.readouterr().out
    assert json.loads(shown) == {"one": {"left": 1, "right": ["ß"]}}
    assert "ß" in shown


def test_json_refuses_packed_bytes() -> None:
    with pytest.raises(TypeError, match="bytes"):
        console.print_json({"ids": b"\0"})


@pytest.mark.parametrize("items", [[], [1], [1, 2, 3]])
def test_awaited_items_are_all_there(items: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert list(console.awaited(items, "reading")) == items
    assert capsys.readouterr() == ("", "")


def test_a_spinner_turns_until_the_first_item_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "err", Console(stderr=True, force_terminal=True, width=80))
    shown = []

    def items() -> Iterator[int]:
        shown.append(capsys.readouterr().err)
        yield 1
        shown.append(capsys.readouterr().err)
        yield 2

    assert list(console.awaited(items(), "reading")) == [1, 2]
    assert shown[0].startswith("\033[?25l"), "the cursor is hidden while the spinner turns"
    assert "reading" in shown[1]
    assert capsys.readouterr().err == ""
    assert "\033[?25h" in shown[1], "the cursor is back before the first item is used"


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(console, "err", Console(stderr=True, force_terminal=True, width=80))
    console.warn("careful")
    assert "\033[33m" not in capsys.readouterr().err
