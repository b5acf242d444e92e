"""How much memory is left where a server would take it: the device's, or this machine's as far as it may have that.

A container's limit is not in `/proc/meminfo`, which shows the whole machine; who goes beyond it is killed without a
word. So every control group that this process is in has a say, and all groups around each.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

__all__ = ["free_bytes", "free_in_groups"]

_FILES = {
    "cgroup2": ("memory.max", "memory.current", ("active_file", "inactive_file")),
    "cgroup": ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
}
"""Of each version: the limit, what is used, and which of that are files' pages, given back as soon as asked for."""


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device, with all that its allocator has kept for later, which is given back."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    # A target that was converted or quantised while it was loaded was there twice in part.
    with contextlib.suppress(OSError, AttributeError, TypeError):  # only glibc has the call
        ctypes.CDLL(None).malloc_trim(0)
    free = int(psutil.virtual_memory().available)
    in_groups = free_in_groups()
    return free if in_groups is None else min(free, in_groups)


def free_in_groups(process: Path = Path("/proc/self")) -> int | None:
    """What the control groups of a process leave it, bytes; None if none sets a limit, or there are none here."""
    left = (_left(kind, folder) for kind, folder in _groups(process))
    return min((bytes_ for bytes_ in left if bytes_ is not None), default=None)


def _groups(process: Path) -> Iterator[tuple[str, Path]]:
    """The version and the folder of each group that limits a process's memory, from the innermost outwards."""
    try:
        memberships = [line.split(":", 2) for line in (process / "cgroup").read_text().splitlines()]
        mounts = [line.split(" ") for line in (process / "mountinfo").read_text().splitlines()]
    except OSError:  # not on Linux
        return
    paths = {name: path for _, controllers, path in memberships for name in controllers.split(",")}
    for _, _, _, root, mount_point, *rest in mounts:
        kind, _, options = rest[rest.index("-") + 1 :]
        path = {"cgroup2": paths.get(""), "cgroup": paths.get("memory")}.get(kind)
        if path is None or (kind == "cgroup" and "memory" not in options.split(",")):
            continue
        # In a container the mount may begin at its own group, whose path is still the whole machine's.
        inside = path.removeprefix(root).strip("/")
        top = Path(mount_point)
        folder = top / inside
        while folder.is_relative_to(top):
            yield kind, folder
            folder = folder.parent


def _left(kind: str, folder: Path) -> int | None:
    limit, used, pages = _FILES[kind]
    try:
        most = (folder / limit).read_text().strip()
        if most == "max":
            return None
        counts = dict(line.split(" ", 1) for line in (folder / "memory.stat").read_text().splitlines())
        return int(most) - int((folder / used).read_text()) + sum(int(counts.get(page, 0)) for page in pages)
    except OSError:  # the root group has no limit, and no file for one; and some may not be looked at
        return None
