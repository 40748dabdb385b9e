"""`python -m benchmarks`: speed and memory against other libraries, side by side on this machine.

Each benchmark runs in a separate process with a separate slice cache, which is removed at the end. The exit status is 1
if a benchmark failed; a missed target is a result, not a failure.
"""

import os
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from rich.console import Console

from benchmarks import tables
from benchmarks.machine import describe, in_fresh_process, keep_bytecode, load
from benchmarks.outcome import Outcome, Row, outcome_of
from core.command_line import parse_command

Name = Literal["open", "views", "step", "evaluation", "prediction", "study", "scale", "gpu"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Measure speed and memory of fewslice against other libraries, side by side on this machine."""

    only: tuple[Name, ...] = get_args(Name)
    """Benchmarks to run, in this order."""
    rounds: int = 4
    """Number of measured rounds of each comparison, at least 1; one more round warms up."""
    out: Path = Path(__file__).parent / "results"
    """Folder of the result files: numbers (JSON), table (Markdown) and plot (SVG)."""
    name: str | None = None
    """Name of the result files, which are overwritten, without suffix; default: latest, or quick with --quick."""
    quick: bool = False
    """Use tiny sizes and one round, to check that everything runs; the numbers mean nothing."""


def run(cfg: Config) -> list[tables.Result]:
    """Run the benchmarks, then print and write the results; a failing benchmark becomes a row of the table."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    results = []
    with tempfile.TemporaryDirectory(prefix="fewslice-benchmarks-") as folder:
        keep_bytecode()
        for name in cfg.only:
            console.print(f"{name} ...")
            results.append(_measure(name, 1 if cfg.quick else cfg.rounds, cfg.quick, Path(folder) / name))
            console.print(f"{name}: {results[-1].seconds:.0f} s")
    console.print(tables.table(results))
    files = tables.write(results, describe(), cfg.out, cfg.name or ("quick" if cfg.quick else "latest"))
    console.print("wrote " + ", ".join(file.name for file in files))
    return results


def _measure(name: str, rounds: int, quick: bool, folder: Path) -> tables.Result:
    (folder / "tmp").mkdir(parents=True)
    os.environ |= {"FEWSLICE_CACHE": str(folder / "cache"), "TMPDIR": str(folder / "tmp")}
    before, began, error = load(), time.perf_counter(), ""
    try:
        outcome: Outcome = in_fresh_process(outcome_of, name, rounds=rounds, quick=quick)
    except Exception as problem:
        traceback.print_exc()
        error = f"{type(problem).__name__}: {problem}"
        for place in (folder.parent, Path(__file__).parents[1], Path.home()):  # results are committed
            error = error.replace(str(place), "...")
        row = Row(benchmark=name, what="failed", target="to end", value=error.partition("\n")[0], met=False)
        outcome = Outcome(rows=[row])
    seconds = time.perf_counter() - began
    return tables.Result(name=name, outcome=outcome, seconds=seconds, load=(before, load()), error=error)


def main() -> None:
    """Parse the command line; exit with 1 if a benchmark failed."""
    cfg = parse_command(Config, "python -m benchmarks", ("--quick", "--only open views --rounds 7"))
    sys.exit(any(result.error for result in run(cfg)))


if __name__ == "__main__":
    main()
