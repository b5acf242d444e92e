"""What control groups leave a process, in the files that Linux shows of them."""

from __future__ import annotations

import platform
from pathlib import Path

import psutil
import pytest
import torch

from goodspeed_server import free_memory
from goodspeed_server.free_memory import free_bytes, free_in_groups

GIB = 2**30
MOUNTS = "22 1 0:20 / / rw - ext4 /dev/root rw\n31 22 0:28 {root} {at} rw,relatime - {kind} {kind} rw,{options}\n"


def process(folder: Path, groups: str, *, at: Path, kind: str = "cgroup2", root: str = "/", options: str = "x") -> Path:
    """What `/proc/self` says of a process in these groups, whose folders are mounted there."""
    folder.mkdir()
    (folder / "cgroup").write_text(groups)
    (folder / "mountinfo").write_text(MOUNTS.format(root=root, at=at, kind=kind, options=options))
    return folder


def group(folder: Path, limit: str, used: int, files: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon {used - files}\nactive_file 0\ninactive_file {files}\n")


def old_group(folder: Path, limit: int, used: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    (folder / "memory.stat").write_text("cache 0\ntotal_active_file 1\ntotal_inactive_file 2\n")


def test_the_tightest_group_around_a_process_counts(tmp_path: Path) -> None:
    at = tmp_path / "groups"
    group(at / "pod" / "server", "max", 3 * GIB)
    group(at / "pod", str(8 * GIB), 5 * GIB)
    group(at / "elsewhere", str(GIB), GIB)
    at.joinpath("memory.stat").write_text("")  # the root has no limit
    me = process(tmp_path / "me", "0::/pod/server\n", at=at)
    assert free_in_groups(me) == 3 * GIB
    group(at / "pod" / "server", str(4 * GIB), 3 * GIB)
    assert free_in_groups(me) == GIB


def test_pages_of_files_are_given_back_when_asked_for(tmp_path: Path) -> None:
    """As those of the weights are, which were read from a file."""
    group(tmp_path / "groups", str(8 * GIB), 7 * GIB, files=4 * GIB)
    assert free_in_groups(process(tmp_path / "me", "0::/\n", at=tmp_path / "groups")) == 5 * GIB


@pytest.mark.parametrize("root", ["/", "/docker/1f"])
def test_a_group_of_the_first_version(tmp_path: Path, root: str) -> None:
    """Mounted whole, or, as in a container, from the process's own group on."""
    at = tmp_path / "groups"
    old_group(at / "docker" / "1f" if root == "/" else at, 8 * GIB, 3 * GIB)
    groups = "5:cpu,cpuacct:/elsewhere\n4:memory:/docker/1f\n0::/\n"
    me = process(tmp_path / "me", groups, at=at, kind="cgroup", root=root, options="memory")
    assert free_in_groups(me) == 5 * GIB + 3
    assert free_in_groups(process(tmp_path / "cpu", groups, at=at, kind="cgroup", options="cpu")) is None


def test_no_groups_and_no_limit(tmp_path: Path) -> None:
    assert free_in_groups(tmp_path) is None
    group(tmp_path / "groups", "max", GIB)
    assert free_in_groups(process(tmp_path / "me", "0::/\n", at=tmp_path / "groups")) is None


def test_what_a_devices_allocator_keeps_for_later_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [GIB]
    monkeypatch.setattr(torch.cuda, "empty_cache", kept.clear)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (8 * GIB - sum(kept), 9 * GIB))
    assert free_bytes(torch.device("cuda", 1)) == 8 * GIB


def test_on_a_cpu_the_groups_and_the_machine_both_have_a_say(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = int(psutil.virtual_memory().available)
    monkeypatch.setattr(free_memory, "free_in_groups", lambda: 12345)
    assert free_bytes(torch.device("cpu")) == 12345
    monkeypatch.setattr(free_memory, "free_in_groups", lambda: 10**18)
    assert free_bytes(torch.device("cpu")) == pytest.approx(machine, rel=0.2)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library gives back by itself, or cannot")
def test_what_loading_has_left_behind_is_given_back_first() -> None:
    process = psutil.Process()
    blocks, between = [], []
    for _ in range(4000):  # each too small to be had from the system by itself
        blocks.append(bytearray(2**15))
        between.append(bytearray(2**10))
    del blocks
    held = process.memory_info().rss
    free_bytes(torch.device("cpu"))
    assert process.memory_info().rss < held - 2**26
    assert len(between) == 4000
