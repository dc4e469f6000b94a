"""The decorator of classes of which every token or frame makes an instance."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from attrs import frozen as hot
else:
    # Nobody changes an instance, which type checkers see to; only the pool of an engine's outputs makes one anew in its
    # place. At run time a frozen class takes three times as long to make one, for each field is set through
    # `object.__setattr__`.
    hot = partial(attrs.define, unsafe_hash=True)

__all__ = ["hot"]
