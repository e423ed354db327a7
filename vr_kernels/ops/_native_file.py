"""What is wrong with the file of ``vr_kernels._C``, asked before it is loaded.

The loader maps a file without asking how long it is, and a process that then reads past the end dies of SIGBUS: half a
file, which an interrupted copy leaves, would be a crash and not an exception.
"""

from __future__ import annotations

import platform
import struct
import sysconfig
from importlib.machinery import ModuleSpec
from pathlib import Path

# The headers of a 64-bit little-endian ELF file, elf(5), and what they say of the processor.
FILE = struct.Struct("<16sHHIQQQIHHHHHH")
SEGMENT = struct.Struct("<IIQQQQQQ")
ELF64_LITTLE_ENDIAN = b"\x7fELF\x02\x01"
LOADED = 1
MACHINES = {62: "x86_64", 183: "aarch64"}


def defect(spec: ModuleSpec | None, folder: Path) -> str | None:
    """Why the module of ``spec``, which was looked for in ``folder``, cannot be loaded; None where nothing is seen."""
    if spec is not None and spec.origin is not None:
        return _defect_of_file(Path(spec.origin))
    others = sorted(path.name.split(".")[1] for path in folder.glob("_C.*.so"))
    if not others:
        return "was not built"
    return f"was built for {', '.join(others)}, and this Python is {sysconfig.get_config_var('SOABI')}"


def _defect_of_file(path: Path) -> str | None:
    """Of a file that is not such an ELF file, nothing: what else there may be is the importer's to judge."""
    with path.open("rb") as file:
        header = file.read(FILE.size)
        if not header.startswith(ELF64_LITTLE_ENDIAN) or len(header) < FILE.size:
            return None
        _, _, machine, _, _, segments_at, _, _, _, segment_size, segments, *_ = FILE.unpack(header)
        if segment_size != SEGMENT.size:
            return None
        file.seek(segments_at)
        table = file.read(segment_size * segments)
    if MACHINES.get(machine, platform.machine()) != platform.machine():
        return f"was built for {MACHINES[machine]}, and this machine is {platform.machine()}"
    ends = [segments_at + segment_size * segments]
    for kind, _, offset, _, _, length, _, _ in SEGMENT.iter_unpack(table[: len(table) // SEGMENT.size * SEGMENT.size]):
        if kind == LOADED:
            ends.append(offset + length)
    size = path.stat().st_size
    if size < max(ends):
        return f"is cut off: {path} has {size} bytes of at least {max(ends)}"
    return None
