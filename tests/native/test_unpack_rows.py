"""One body for both twins: rows of the plain form become what the general way makes of them, and others go that way."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st


@attrs.frozen
class Said:
    number: int
    text: str
    ids: tuple[int, ...]
    extras: tuple[Any, ...]
    end: str | None


FORM = "isten"
_KINDS: tuple[tuple[type, ...], ...] = ((int,), (str,), (list,), (list,), (str, type(None)))


def unpack(row: Any) -> Said:
    """The general way: other types are refused, extras and ends are taken."""
    number, text, ids, extras, end = row
    if type(row) is not list or any(type(each) is not int for each in ids):
        raise TypeError("no row")
    for value, kind in zip(row, _KINDS, strict=True):
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError("no such field")
    return Said(number, text, tuple(ids), tuple(extras), end)


def outcome(make: Any) -> Any:
    try:
        return make()
    except (TypeError, ValueError) as error:
        return type(error)


PLAIN: st.SearchStrategy[tuple[Any, ...]] = st.tuples(
    st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=3), st.just([]), st.none()
)
OTHER = st.one_of(st.integers(), st.booleans(), st.none(), st.text(max_size=2), st.lists(st.booleans(), max_size=2))
ROWS = st.lists(st.one_of(PLAIN.map(list), st.lists(OTHER, min_size=4, max_size=6), OTHER), max_size=5)


@given(ROWS)
def test_rows_become_what_the_general_way_makes_of_them(twin: ModuleType, rows: list[Any]) -> None:
    found = outcome(lambda: twin.unpack_rows(Said, FORM, rows, unpack))
    assert found == outcome(lambda: tuple(map(unpack, rows)))


@given(st.lists(PLAIN.map(list), max_size=4), st.integers(0, 4), st.sampled_from(["x", [1, 2]]))
def test_a_row_with_more_in_it_keeps_its_place(twin: ModuleType, rows: list[Any], place: int, more: Any) -> None:
    special = [1, "a", [2], more, None] if isinstance(more, list) else [1, "a", [2], [], more]
    rows.insert(place, special)
    assert twin.unpack_rows(Said, FORM, rows, unpack) == tuple(map(unpack, rows))


def test_the_first_row_that_is_refused_is_the_error(twin: ModuleType) -> None:
    with pytest.raises(TypeError, match="no such field"):
        twin.unpack_rows(Said, FORM, [[1, "a", [], [], None], [True, "a", [], [], None], [1]], unpack)


def test_rows_must_be_a_list_and_letters_known(twin: ModuleType) -> None:
    with pytest.raises(TypeError):
        twin.unpack_rows(Said, FORM, ({},), unpack)
    with pytest.raises(ValueError, match="letter"):
        twin.unpack_rows(Said, "istex", [], unpack)
