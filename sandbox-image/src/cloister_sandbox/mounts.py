"""Single files that the Environment mounts read-only at paths of their own.

They lie outside the permitted directories, and users expect `read` to show them all the same: any
command can. Which there are is told by the kernel's table of mounts.
"""

import re
from pathlib import Path

_HIDDEN = ("/proc/", "/sys/", "/dev/", "/run/cloister/")
_ESCAPE = re.compile(r"\\([0-7]{3})")


def mounted_files(table: Path) -> frozenset[str]:
    """The regular files that are read-only mount points, by a mountinfo file (proc(5)).

    The server's own files and the kernel's file systems are left out. A table that cannot be read
    names none.
    """
    try:
        lines = table.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return frozenset()
    found = set()
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 6 or "ro" not in fields[5].split(","):
            continue
        point = _ESCAPE.sub(lambda code: chr(int(code[1], 8)), fields[4])
        if not point.startswith(_HIDDEN) and Path(point).is_file():
            found.add(point)
    return frozenset(found)
