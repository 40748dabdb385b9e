"""Progress of a running study: a table of pipelines and sizes."""

import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from core.terminal import terminal
from sweep.study.grid import Job
from sweep.study.jobs import is_done

MARKS = {"running": ("▶", "yellow"), "failed": ("✗", "red"), "blocked": ("✗", "red")}


class Board:
    """Live table of the grid on a terminal; elsewhere a line for each finished job. `unit` is what the labels are."""

    def __init__(self, jobs: Sequence[Job], unit: str) -> None:
        self.jobs, self.unit = jobs, unit
        self.states = {job.name: "done" if is_done(job) else "waiting" for job in jobs}
        self.done_before = self._count("done")
        self.start_time = time.monotonic()
        self.said = False
        """Whether a job was said to be running."""
        self.console = terminal()
        self.live = Live(self.table(), console=self.console, refresh_per_second=2) if self.console.is_terminal else None

    def __enter__(self) -> "Board":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.live.update(self.table())
            self.live.stop()

    def note(self, job: Job, state: str) -> None:
        """Record a job's new state."""
        self.states[job.name] = state
        if self.live:
            self.live.update(self.table())
        elif state != "running":
            self.console.print(f"{job.name} {state}; {self.summary()}", soft_wrap=True, highlight=False)
        elif not self.said:  # the first may take minutes
            self.said = True
            self.console.print(f"{job.name} is running; a line follows for each that ends", highlight=False)

    def summary(self) -> str:
        """How far the study is, and how long the rest will take at the pace so far."""
        done = self._count("done")
        failed = self._count("failed") + self._count("blocked")
        left = len(self.jobs) - done - failed
        text = f"{done} of {len(self.jobs)} done" + (f", {failed} failed" if failed else "")
        if left and done > self.done_before:
            minutes = (time.monotonic() - self.start_time) / (done - self.done_before) * left / 60
            text += f", about {minutes:.0f} min left" if minutes >= 1 else ", less than a minute left"
        return text

    def table(self) -> Group:
        """Rows are pipelines, columns numbers of labels; each entry says how many cells are done of how many."""
        cells = [job for job in self.jobs if job.is_cell]
        sizes = sorted({job.key["labels"] for job in cells})
        table = Table(title=f"cells done by pipeline and number of labelled {self.unit}")
        table.add_column("pipeline")
        for size in sizes:
            table.add_column(str(size), justify="right")
        for pipeline in dict.fromkeys(job.key["pipeline"] for job in cells):
            row = [job for job in cells if job.key["pipeline"] == pipeline]
            table.add_row(pipeline, *(self._counts([job for job in row if job.key["labels"] == n]) for n in sizes))
        encoders, trials = Text("encoders: "), Text("learning rates: ")
        for job in self.jobs:
            if not job.is_cell:
                mark, colour = MARKS.get(self.states[job.name], ("✓" if self.states[job.name] == "done" else "·", ""))
                line = trials if job.is_trial else encoders
                line.append(f"{job.name.partition('/')[2]} {mark}  ", style=colour)
        tried = any(job.is_trial for job in self.jobs)
        return Group(table, encoders, *([trials] if tried else []), Text(self.summary()))

    def _counts(self, jobs: Sequence[Job]) -> Text:
        counts = Counter(self.states[job.name] for job in jobs)
        text = Text(f"{counts['done']}/{len(jobs)}", style="green" if counts["done"] == len(jobs) else "")
        for state, (mark, colour) in MARKS.items():
            if counts[state]:
                text.append(f" {mark}{counts[state]}", style=colour)
        return text

    def _count(self, state: str) -> int:
        return sum(each == state for each in self.states.values())
