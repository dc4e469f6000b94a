"""The processes of a running server: what they use of processor and memory."""

from __future__ import annotations

import attrs
import psutil


@attrs.frozen
class Member:
    """One process. Seconds of processor time so far, bytes of resident and of unshared memory."""

    role: str
    pid: int
    cpu_seconds: float
    rss: int
    uss: int


def members(process: psutil.Process) -> list[Member]:
    """The host process and its working descendants, host first; a process that ends meanwhile is left out."""
    found = [_member(process, "host")]
    found += [_member(child, "replica") for child in process.children(recursive=True) if not _is_bookkeeping(child)]
    return [member for member in found if member is not None]


def cpu_seconds(process: psutil.Process) -> dict[str, float]:
    """Processor seconds so far, summed by role."""
    totals: dict[str, float] = {}
    for member in members(process):
        totals[member.role] = totals.get(member.role, 0.0) + member.cpu_seconds
    return totals


def _member(process: psutil.Process, role: str) -> Member | None:
    try:
        memory, times = process.memory_full_info(), process.cpu_times()
    except psutil.NoSuchProcess:
        return None
    return Member(role, process.pid, times.user + times.system, memory.rss, memory.uss)


def _is_bookkeeping(process: psutil.Process) -> bool:
    """multiprocessing's resource tracker does none of the work."""
    try:
        return any("resource_tracker" in part for part in process.cmdline())
    except psutil.NoSuchProcess:
        return True
