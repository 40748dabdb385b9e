"""`python -m benchmarks.packing DATA`: pack the slices of a folder into the cache, for the fault campaign."""

import sys
from pathlib import Path

from core.errors import user_errors
from data.sources import FolderSource, open_slices


def main() -> None:
    """Open the store of a folder."""
    with user_errors():
        print(open_slices(FolderSource(data_root=Path(sys.argv[1]))).store.key)


if __name__ == "__main__":
    main()
