"""`python -m data.cache`: list the packed and converted data sets in the cache, remove those that are not used."""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from core.cache import cache_folder
from core.command_line import parse_command
from core.errors import UserError, user_errors
from core.files import remove_leftovers
from core.locks import Locked, file_lock
from data.dicom.cached import FORMAT as CONVERSION
from data.dicom.cached import PREFIX, conversions
from data.store import FORMAT

EXAMPLES = ("--list", "--prune", "--prune --unused-days 0")


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """List the packed data sets and converted DICOM folders in the cache, and remove those that are no longer used."""

    list: bool = False
    """Print every packed or converted data set: its folder's name, size, last use, and where its files were. The
    default."""
    prune: bool = False
    """Remove the packed and converted data sets of other versions of this software, those whose files are gone, those
    that were not used for `--unused-days`, and what killed processes left. They are made again when they are needed."""
    unused_days: float = 30
    """Days without use after which `--prune` removes a packed data set, 0 or more."""


@dataclass(frozen=True, kw_only=True)
class PackedSet:
    """One packed data set, or DICOM files that were converted."""

    folder: Path
    size: int
    """Bytes."""
    unused_days: float
    root: str
    """Folder of its files when it was packed; "" if unknown."""
    format: int | None

    def is_unused(self, days: float) -> bool:
        """Whether nothing opens it any more: of another format, of files that are gone, or not used for these days."""
        current = CONVERSION if self.folder.name.startswith(PREFIX) else FORMAT
        return self.format != current or not Path(self.root).exists() or self.unused_days >= days


def packed_sets() -> list[PackedSet]:
    """The packed and converted data sets in the cache, the most recently used last."""
    found = []
    for folder in [*conversions(), *sorted((cache_folder() / "slices").glob("*"))]:
        if not folder.is_dir() or ".tmp-" in folder.name:
            continue
        try:
            origin = json.loads((folder / "origin.json").read_text())
        except (OSError, ValueError):
            origin = {}
        files = [file for file in folder.rglob("*") if file.is_file()]
        used = max((file.stat().st_mtime for file in files), default=0.0)
        found.append(
            PackedSet(
                folder=folder,
                size=sum(file.stat().st_size for file in files),
                unused_days=max(0.0, (time.time() - used) / 86400),
                root=str(origin.get("root", "")),
                format=origin.get("format"),
            )
        )
    return sorted(found, key=lambda packed: -packed.unused_days)


def run(cfg: CacheConfig) -> int:
    """List or remove; returns the number of data sets removed.

    Raises:
        UserError: if the number of days is negative.
    """
    if not cfg.unused_days >= 0:
        raise UserError(f"--unused-days {cfg.unused_days}: must be 0 or more")
    removed = freed = 0
    for packed in packed_sets():
        line = (
            f"{packed.folder.name}  {packed.size / 1e6:.1f} MB  unused for {packed.unused_days:.0f} days  {packed.root}"
        )
        if not cfg.prune:
            print(line)
        elif packed.is_unused(cfg.unused_days) and _remove(packed.folder):
            print(f"removed {line}")
            removed, freed = removed + 1, freed + packed.size
    if cfg.prune:
        for left in (cache_folder() / "slices").glob("*.tmp-*"):
            _remove(left)
        for left in cache_folder().glob(f"{PREFIX}*.*"):  # of conversions, which `core.cache.made_once` locks so
            if left.is_dir():
                _remove(left, left.with_name(f".{left.stem}.lock"))
        remove_leftovers(cache_folder())
        print(f"removed {removed} data sets, {freed / 1e6:.1f} MB, from {cache_folder()}")
    else:
        print(f"{len(packed_sets())} data sets in {cache_folder()}")
    return removed


def _remove(folder: Path, lock: Path | None = None) -> bool:
    """Remove a folder unless a process holds its lock to fill it; False if one does."""
    try:
        with file_lock(lock or folder.with_suffix(".lock"), wait=False):
            shutil.rmtree(folder)
    except Locked:
        return False
    return True


def main() -> None:
    """Parse the command line and list or remove."""
    with user_errors():
        run(parse_command(CacheConfig, "python -m data.cache", EXAMPLES))


if __name__ == "__main__":
    main()
