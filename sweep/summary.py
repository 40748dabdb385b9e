"""What a study found, in five sentences made from its numbers, and what to keep in mind about them.

Nothing is claimed beyond an interval: a difference whose 95 % interval holds 0, or a ratio whose interval holds 1, is
undecided, and so is everything that has no interval.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sweep.figures import LEVEL, oriented

Tables = Mapping[str, pd.DataFrame]
"""As `sweep.analysis.analyse` returns them."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the sentences need to know about a study besides its tables."""

    pipelines: tuple[str, ...]
    """In the order of the study."""
    score: str
    """Name of the score: Dice, Jaccard, AUC."""
    unit: str
    """What labels count, in the plural."""
    split: str
    """validation or test."""
    people: str
    """Who was scored: patients or exams."""
    seeds: int
    """Repetitions."""
    dataset: str
    """Name of the data set."""
    synthetic: bool
    """Whether it is the phantom."""
    settings: str
    """The main settings of the runs, in words."""
    partial: tuple[str, ...] = ()
    """Files of pretrained weights that say of themselves that they are partial."""
    missing: int = 0
    """Cells without a result."""
    cells: int = 0
    """Cells of the plan."""

    def labels(self, count: int) -> str:
        """A number of labels in words."""
        return f"{count:,} {self.unit if count != 1 else self.unit.removesuffix('s')}"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and its interval, NaN where there is none."""

    value: float
    low: float
    high: float

    def excludes(self, nothing: float) -> bool:
        """Whether the interval is there and leaves out the value that means no effect."""
        return self.low > nothing or self.high < nothing

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval."""
        return not np.isnan(self.low)


def sentences(tables: Tables, facts: Facts) -> list[str]:
    """Five sentences: the primary endpoint, the fewest and the most labels, labels saved, speed, forecasts.

    Those in the middle compare the best pipeline with random; where random is the best, the runner-up; where there is
    no random, the best with the last.
    """
    ranked = ranking(tables, facts.pipelines)
    other = "random" if "random" in ranked else ranked[-1]
    best = next((name for name in ranked if name != other), ranked[0])
    said = [
        _overall(tables, ranked, facts),
        _ends(tables, best, other, facts),
        _labels_saved(tables["multipliers"], best, other, facts),
        _speed(tables["speedups"], best, other, facts),
        _forecasts(tables["backtest"]),
    ]
    return [sentence[0].upper() + sentence[1:] for sentence in said]


def ranking(tables: Tables, pipelines: Sequence[str]) -> list[str]:
    """Pipelines that have scores, the best first, by their mean paired difference to the others.

    Without gaps this is the order of the areas under the error curve; with gaps only what two pipelines share counts.
    """
    scored = set(tables["by_size"].dropna(subset=["mean"])["pipeline"])
    rows = oriented(tables["primary"], pipelines).dropna(subset=["difference"])
    if rows.empty:
        rows = oriented(tables["pairs"], pipelines).dropna(subset=["difference"])
    lead = pd.concat([rows.set_index("pipeline")["difference"], -rows.set_index("baseline")["difference"]])
    lead = lead.groupby(level=0).mean()
    return sorted((name for name in pipelines if name in scored), key=lambda name: -lead.get(name, -np.inf))


def _overall(tables: Tables, ranked: Sequence[str], facts: Facts) -> str:
    """The primary endpoint."""
    where = "on the synthetic phantom, over all sizes together" if facts.synthetic else "over all sizes together"
    best, wins, open_, losses = ranked[0], [], [], []
    for name in ranked[1:]:
        lead, p = _of_pair(oriented(tables["primary"], facts.pipelines), best, name)
        if np.isnan(lead.value):
            continue
        if not lead.has_interval:
            open_.append(f"{name} ({_signed(lead.value)}, no interval)")
        elif lead.excludes(0) and p >= 0.05:
            open_.append(f"{name} ({_signed(lead.value)} {_between(lead)}, but Holm's p is {p:.2g})")
        elif lead.low > 0:
            wins.append(f"{name} by {lead.value:.3f} {_between(lead)}")
        elif lead.high < 0:
            losses.append(f"{name} by {-lead.value:.3f}")
        else:
            open_.append(f"{name} ({_signed(lead.value)} {_between(lead)})")
    if not (wins or open_ or losses):
        return f"{where} nothing can be compared: that takes scores of two pipelines at two sizes or more."
    said = f"{where} {best} had the best mean {facts.score}"
    parts = [f"it beat {_list(wins)}"] if wins else []
    parts += [f"it was worse than {_list(losses)} in the runs that both have"] if losses else []
    parts += [f"whether it is better than {_list(open_, 'or')} is undecided"] if open_ else []
    return f"{said}{': ' if wins else ', but '}{'; '.join(parts)}."


def _ends(tables: Tables, best: str, other: str, facts: Facts) -> str:
    """Scores and difference with the fewest and with the most labels."""
    by_size = tables["by_size"].dropna(subset=["mean"]).set_index(["pipeline", "labels"])
    pairs = oriented(tables["pairs"], facts.pipelines)
    sizes = sorted(set(tables["by_size"]["labels"]))
    shared = [n for n in sizes if (best, n) in by_size.index and (other, n) in by_size.index]
    said = []
    for labels in dict.fromkeys(shared[:1] + shared[-1:]):
        scores = {name: _estimate(by_size.loc[(name, labels)], "mean") for name in dict.fromkeys((best, other))}
        shown = [f"{name} scored {s.value:.3f}{_between_if(s)}" for name, s in scores.items()]
        if best != other:
            lead, _ = _of_pair(pairs[pairs["labels"] == labels], best, other)
            verdict = "" if lead.excludes(0) else ", undecided" if lead.has_interval else ", without an interval"
            shown.append(f"a difference of {_signed(lead.value)}{_between_if(lead)}{verdict}")
        said.append(f"with {facts.labels(labels)} " + ", ".join([" and ".join(shown[:2]), *shown[2:]]))
    return ("; ".join(said) or f"no size has scores of both {best} and {other}") + "."


def _labels_saved(table: pd.DataFrame, best: str, other: str, facts: Facts) -> str:
    """The label multiplier at the largest size."""
    rows = table[(table["pipeline"] == best) & (table["baseline"] == other)].dropna(subset=["multiplier"])
    if rows.empty:
        return "how many labels pretraining saves cannot be said from these runs."
    row = rows.sort_values("labels").iloc[-1]
    factor, size = _estimate(row, "multiplier"), row["labels"]
    needed = size / factor.value
    if row["bound"] == ">=":
        found = f"{best} needed no more than {needed:,.0f}, the fewest tried"
    elif row["bound"] == "<=":
        found = f"{best} would need more than {needed:,.0f}, the most tried"
    elif f"{factor.value:.2g}" == "1":
        found = f"{best} needed about as many"
    elif factor.value > 1:
        found = f"{best} needed {needed:,.0f}, {factor.value:.2g} times fewer"
    else:
        found = f"{best} needed {needed:,.0f}, {1 / factor.value:.2g} times as many"
    said = f"to equal {other} at {facts.labels(size)} {found}"
    return said + _verdict(factor, "the factor", "whether it saves labels")


def _speed(table: pd.DataFrame, best: str, other: str, facts: Facts) -> str:
    """Steps to the common reference at the largest size."""
    unknown = (
        f"which start gets to {100 * LEVEL:.0f} % of the common reference score sooner cannot be said from these runs"
    )
    own = table["first"].isin([best, other]) & table["second"].isin([best, other]) & (table["level"] == LEVEL)
    if not own.any():
        return unknown + "."
    row = table[own].sort_values("labels").iloc[-1]
    ratio, bound = _estimate(row, "ratio"), row["bound"]
    if np.isnan(ratio.value):
        return f"{unknown} with {facts.labels(row['labels'])}: {row['note'] or 'no run reached it'}."
    if row["first"] != best:
        inverse = [1 / end if end else np.inf for end in (ratio.value, ratio.high, ratio.low)]
        ratio = Estimate(value=inverse[0], low=inverse[1], high=inverse[2])
        bound = {">=": "<=", "<=": ">="}.get(bound, "")
    if ratio.value >= 1:
        times = {">=": "at least ", "<=": "at most "}.get(bound, "") + f"{ratio.value:.2g} times fewer steps than"
    else:
        times = {">=": "at most ", "<=": "at least "}.get(bound, "") + f"{1 / ratio.value:.2g} times as many steps as"
    if not bound and f"{ratio.value:.2g}" == "1":
        times = "about as many steps as"
    task = f"to reach {100 * LEVEL:.0f} % of the common reference score with {facts.labels(row['labels'])}"
    said = f"{task} {best} took {times} {other}"
    return said + _verdict(ratio, "the speed-up, over seeds,", "which is faster")


def _verdict(factor: Estimate, what: str, question: str) -> str:
    """The end of a sentence on a factor: its interval, and whether that decides the question."""
    if not factor.has_interval:
        return f"; there is no interval, so {question} is undecided."
    between = f"95 % interval of {what} {_factor_range(factor)}"
    return f" ({between})." if factor.excludes(1) else f", but {question} is undecided ({between})."


def _forecasts(table: pd.DataFrame) -> str:
    """The back-test."""
    known = table.dropna(subset=["low", "high"])
    if known.empty:
        why = "that takes 4 sizes or more" if table.empty else "that takes 2 seeds or more"
        return f"forecasts were not tested on larger sizes, for {why}, so take them as untested."
    inside = int(known["inside"].astype(bool).sum())
    said = (
        f"fitted to the smaller sizes alone, the curves made {len(known)} forecast{'s' if len(known) > 1 else ''} of "
        f"the error at a larger one, and what was then observed lay inside the 95 % interval {inside} of {len(known)} "
        "times"
    )
    if len(known) < 4:
        return f"{said}, too few to judge them by."
    if inside < 0.7 * len(known):
        return f"{said}, far fewer than promised, so do not rely on forecasts."
    if inside < 0.9 * len(known):
        return f"{said}, fewer than promised, so take forecasts as rough."
    return f"{said}: forecasts held within the sizes tried; beyond these nothing was tested."


def caveats(tables: Tables, facts: Facts) -> list[str]:
    """What limits the sentences, one thing each, the weightiest first."""
    patients = int(tables["by_size"]["patients"].max())
    data = facts.dataset if facts.synthetic else f"{facts.dataset}, real images"
    said = []
    if facts.synthetic:
        said.append(
            "The patients are synthetic: this shows that the plumbing works, nothing about a method or about patients."
        )
    said.append(
        f"One data set ({data}), {patients} {facts.people} of the {facts.split} split and one set of "
        f"settings ({facts.settings}): other data and other settings may give another order."
    )
    if facts.missing:
        said.append(
            f"{facts.missing} of {facts.cells} runs are missing: pipelines are compared on the runs that both have, "
            "but their means stand on different runs."
        )
    if facts.seeds == 1:
        said.append("One seed: no interval, so nothing here is decided.")
    elif facts.seeds < 5:
        said.append(f"{facts.seeds} seeds are few: the intervals are rough themselves.")
    for source in facts.partial:
        said.append(
            f"The natural-image start is partial ({source}): part of its layers hold no pretrained weights, so take it "
            "for less than a full ImageNet encoder."
        )
    if facts.split == "validation":
        said.append("Scored on the validation split, no test split was touched; settings may have been chosen on it.")
    said.append(
        "Only the comparison over all sizes was declared beforehand and is corrected for the number of pairs (Holm); "
        "the other intervals are not."
    )
    return said


def _estimate(row: pd.Series, name: str) -> Estimate:
    return Estimate(value=float(row[name]), low=float(row["low"]), high=float(row["high"]))


def _of_pair(rows: pd.DataFrame, best: str, other: str) -> tuple[Estimate, float]:
    """Difference of the best less the other from rows of `oriented`, and Holm's p where there is one."""
    both = rows["pipeline"].isin([best, other]) & rows["baseline"].isin([best, other])
    row = rows[both].iloc[0]
    found = _estimate(row, "difference")
    if row["pipeline"] != best:
        found = Estimate(value=-found.value, low=-found.high, high=-found.low)
    return found, float(row.get("p_holm", np.nan))


def _between(estimate: Estimate) -> str:
    low, high = (round(end, 3) + 0.0 for end in (estimate.low, estimate.high))
    return _minus(f"[{low:.3f}, {high:.3f}]")


def _between_if(estimate: Estimate) -> str:
    return f" {_between(estimate)}" if estimate.has_interval else ""


def _factor_range(factor: Estimate) -> str:
    """An interval of a factor in words: its ends are open where the sizes or steps tried do not bound it."""
    if factor.low == np.inf:
        return "above all that was tried"
    if factor.high == 0:
        return "below all that was tried"
    if factor.high == np.inf:
        return "open at both ends" if factor.low == 0 else f"from {factor.low:.2g} up"
    return f"up to {factor.high:.2g}" if factor.low == 0 else f"{factor.low:.2g} to {factor.high:.2g}"


def _signed(value: float) -> str:
    return _minus(f"{round(value, 3) + 0.0:+.3f}")  # + 0.0: no negative zero


def _minus(number: str) -> str:
    return number.replace("-", "−")


def _list(parts: Sequence[str], word: str = "and") -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {word} {parts[-1]}"
