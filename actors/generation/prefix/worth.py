"""Whether what is on disk is sooner read than computed anew, by what both took before. Pure."""

from __future__ import annotations

import attrs

_NEWEST = 0.3
"""Weight of what was seen last."""
_LEAST_BYTES = 4 << 20
"""Less is read whatever it takes, for that is little, and says nothing about more."""
_LEAST_TOKENS = 128
"""So few take as long as a pass takes whatever goes through it, which says nothing about more."""
_TRIAL = 16
"""Of so many that are not worth reading one is read: a disk, or what the system keeps of it, may have become fast."""


@attrs.define
class ReadingWorth:
    """Seconds of a byte from disk to where it is used, and of a token that is computed while nothing else is."""

    _byte: float | None = None
    _taken_byte: float = 0.0
    _token: float | None = None
    _left: int = 0

    def read(self, nbytes: int, seconds: float) -> None:
        """Files of so many bytes were found, read and checked."""
        if nbytes >= _LEAST_BYTES:
            self._byte = _smoothed(self._byte, seconds / nbytes)

    def taken(self, nbytes: int, seconds: float) -> None:
        """What was read was brought to the device."""
        if nbytes >= _LEAST_BYTES:
            self._taken_byte = _smoothed(self._taken_byte or None, seconds / nbytes)

    def computed(self, tokens: int, seconds: float) -> None:
        """So many tokens of a prompt went through the model."""
        if tokens >= _LEAST_TOKENS:
            self._token = _smoothed(self._token, seconds / tokens)

    def is_worth(self, tokens: int, nbytes: int) -> bool:
        """Whether to read so many bytes in place of computing the tokens; while either is not known, it is."""
        if self._byte is None or self._token is None or nbytes < _LEAST_BYTES:
            return True
        if (self._byte + self._taken_byte) * nbytes <= self._token * tokens:
            return True
        self._left += 1
        return self._left % _TRIAL == 0


def _smoothed(before: float | None, now: float) -> float:
    return now if before is None else before + _NEWEST * (now - before)
