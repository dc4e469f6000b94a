"""One row of what `doctor` says."""

from __future__ import annotations

from typing import Literal

import attrs

State = Literal["ok", "warn", "fail"]


@attrs.frozen
class Finding:
    """`subject` is what was looked at, `advice` what to do about it, empty when nothing is to be done."""

    subject: str
    state: State
    fact: str
    advice: str = ""
