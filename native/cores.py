"""How many cores this process may really use: physical, within its affinity and its container's quota."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path


def usable_cores(root: Path = Path("/"), cpus: Iterable[int] | None = None) -> int:
    """At least 1. `root` holds `sys` and `proc`; `cpus`: logical processors, by default the affinity's."""
    allowed = set(_affinity() if cpus is None else cpus)
    cores = {_core(root, cpu) for cpu in allowed}
    return max(1, math.ceil(min(len(cores), _quota(root))))


def _affinity() -> Iterable[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def _core(root: Path, cpu: int) -> str:
    """A name that hardware threads of one core share; unknown topology counts every processor as a core."""
    siblings = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
    return _read(siblings) or f"cpu{cpu}"


def _quota(root: Path) -> float:
    """Processors' worth of time the control group (version 2 or 1) grants; infinite without a limit."""
    group = root / "sys/fs/cgroup"
    limits = [_read(folder / "cpu.max").split() for folder in _own_groups(root, group)]
    limits.append([_read(group / "cpu/cpu.cfs_quota_us"), _read(group / "cpu/cpu.cfs_period_us")])
    shares = [int(limit[0]) / int(limit[1]) for limit in limits if len(limit) == 2 and limit[0].isdecimal()]
    return min(shares, default=math.inf)


def _own_groups(root: Path, group: Path) -> list[Path]:
    """This process's group and all above it: the tightest limit of the path holds."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        if line.startswith("0::/"):
            own = group / line.removeprefix("0::/")
            return [own, *(parent for parent in own.parents if parent.is_relative_to(group))]
    return [group]


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
