"""Fetched archives on the operator's own disk, within a bound."""

import shutil
import tempfile
from collections import OrderedDict
from pathlib import Path

MAX_BYTES = 768 * 1024 * 1024


class Cache:
    """Archives by key; the one used longest ago goes first.

    It is one process's: what an earlier one left is removed. Who has opened an archive may read it
    to its end, also when it is removed meanwhile.
    """

    def __init__(self, directory: Path, max_bytes: int = MAX_BYTES) -> None:
        """`directory`: the cache's alone, made where it is not there; raises OSError."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for each in directory.iterdir():
            if each.is_dir() and not each.is_symlink():
                shutil.rmtree(each, ignore_errors=True)
            else:
                each.unlink(missing_ok=True)
        self._directory = directory
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, tuple[Path, int]] = OrderedDict()

    def get(self, key: str) -> Path | None:
        """The archive, if it is there."""
        found = self._kept.get(key)
        if found is None:
            return None
        self._kept.move_to_end(key)
        return found[0]

    def keys(self, prefix: str) -> list[str]:
        """What is there under keys of this prefix, without it."""
        return [each.removeprefix(prefix) for each in self._kept if each.startswith(prefix)]

    def scratch(self) -> Path:
        """A new directory, for one fetch; raises OSError."""
        return Path(tempfile.mkdtemp(dir=self._directory, prefix="fetch-"))

    def put(self, key: str, archive: Path) -> Path:
        """Keep an archive that was made in a scratch directory; raises OSError."""
        target = self._directory / f"{key}.tar"
        size = archive.stat().st_size
        archive.rename(target)
        self._kept.pop(key, None)
        self._kept[key] = target, size
        while (
            len(self._kept) > 1 and sum(each for _, each in self._kept.values()) > self._max_bytes
        ):
            _, (old, _) = self._kept.popitem(last=False)
            old.unlink(missing_ok=True)
        return target
