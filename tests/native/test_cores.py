from __future__ import annotations

from pathlib import Path

from mlx_serving.native.cores import usable_cores


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def two_threads_a_core(root: Path, cpus: int) -> None:
    for cpu in range(cpus):
        first = cpu - cpu % 2
        write(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{first}-{first + 1}\n")


def test_threads_of_one_core_count_once(tmp_path: Path) -> None:
    two_threads_a_core(tmp_path, 8)
    assert usable_cores(tmp_path, range(8)) == 4


def test_only_cores_of_the_affinity_count(tmp_path: Path) -> None:
    two_threads_a_core(tmp_path, 8)
    assert usable_cores(tmp_path, [0, 1, 2]) == 2


def test_unknown_topology_counts_every_processor(tmp_path: Path) -> None:
    assert usable_cores(tmp_path, range(6)) == 6


def test_the_tightest_quota_of_the_groups_path_holds(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/pod/container\n")
    write(tmp_path / "sys/fs/cgroup/pod/container/cpu.max", "max 100000\n")
    write(tmp_path / "sys/fs/cgroup/pod/cpu.max", "250000 100000\n")
    assert usable_cores(tmp_path, range(8)) == 3


def test_a_quota_of_version_one_holds(tmp_path: Path) -> None:
    write(tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n")
    write(tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert usable_cores(tmp_path, range(8)) == 1


def test_no_quota_of_version_one_limits_nothing(tmp_path: Path) -> None:
    write(tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    write(tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert usable_cores(tmp_path, range(8)) == 8


def test_this_machine_has_a_core() -> None:
    assert usable_cores() >= 1
