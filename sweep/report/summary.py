"""The results of a study in six sentences made from its numbers, and the limits of these sentences.

Nothing is claimed beyond an interval: a difference whose 95 % interval includes 0, or a ratio whose interval
includes 1, is undecided, and so is everything without an interval.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sweep.analysis.convergence import LEVEL
from sweep.analysis.statistics import oriented
from sweep.report.filters import join
from sweep.report.study_folder import Facts

Tables = Mapping[str, pd.DataFrame]
"""Tables of `sweep.analysis.tables.analyse`."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and the ends of its interval, NaN if it has none."""

    value: float
    low: float
    high: float

    def excludes(self, no_effect: float) -> bool:
        """Whether there is an interval and it excludes the value that means no effect."""
        return self.low > no_effect or self.high < no_effect

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval."""
        return not np.isnan(self.low)

    @property
    def range(self) -> str:
        """The interval after a space, in brackets; empty if there is none."""
        if not self.has_interval:
            return ""
        low, high = (round(end, 3) + 0.0 for end in (self.low, self.high))
        return f" [{low:.3f}, {high:.3f}]".replace("-", "−")

    @property
    def signed(self) -> str:
        """The value with its sign."""
        return f"{round(self.value, 3) + 0.0:+.3f}".replace("-", "−")  # + 0.0: no negative zero


def sentences(tables: Tables, facts: Facts) -> list[str]:
    """Six sentences: the worth of labels, the primary endpoint, the fewest and the most labels, labels saved, speed,
    forecasts.

    The three before the last compare the best pipeline with random; if random is the best, the second best with random;
    without random, the best with the last.
    """
    ranked = ranking(tables, facts.pipelines)
    other = "random" if "random" in ranked else ranked[-1]
    best = next((name for name in ranked if name != other), ranked[0])
    texts = [_worth_of_labels(tables["gains"], ranked[0], facts)]
    texts += [_overall(tables, ranked, facts), _smallest_and_largest(tables, best, other, facts)]
    texts += [_labels_saved(tables["multipliers"], best, other, facts)]
    texts += [_speed(tables["speedups"], best, other, facts), _forecasts(tables["backtest"])]
    return [text[0].upper() + text[1:] for text in texts]


def ranking(tables: Tables, pipelines: Sequence[str]) -> list[str]:
    """Pipelines that have scores, the best first, by their mean paired difference to the others.

    If no runs are missing this is the order of the areas under the error curve; otherwise two pipelines are compared on
    the runs that both have.
    """
    scored = set(tables["by_size"].dropna(subset=["mean"])["pipeline"])
    rows = oriented(tables["primary"], pipelines).dropna(subset=["difference"])
    if rows.empty:
        rows = oriented(tables["pairs"], pipelines).dropna(subset=["difference"])
    lead = pd.concat([rows.set_index("pipeline")["difference"], -rows.set_index("baseline")["difference"]])
    lead = lead.groupby(level=0).mean()
    return sorted((name for name in pipelines if name in scored), key=lambda name: -lead.get(name, -np.inf))


def _worth_of_labels(table: pd.DataFrame, best: str, facts: Facts) -> str:
    """What more labels brought to the best pipeline."""
    rows = table[table["pipeline"] == best]
    if rows.empty:
        return f"{best} was scored at one size only, which does not show what labels are worth."
    row = rows.iloc[0]
    gain = _estimate(row, "gain")
    text = f"from {row['fewest']} to {facts.labels(row['most'])} the {facts.score} of {best} "
    if not gain.has_interval:
        return text + f"changed by {gain.signed}, without an interval."
    if not gain.excludes(0):
        return text + f"changed by {gain.signed}{gain.range}: whether labels helped is undecided."
    return text + f"{'rose' if gain.value > 0 else 'fell'} by {abs(gain.value):.3f} ({gain.signed}{gain.range})."


def _overall(tables: Tables, ranked: Sequence[str], facts: Facts) -> str:
    """The sentence on the primary endpoint."""
    where = "on the synthetic phantom, over all sizes together" if facts.synthetic else "over all sizes together"
    best, wins, undecided, losses = ranked[0], [], [], []
    for name in ranked[1:]:
        lead, p = _lead(tables["primary"], best, name)
        if np.isnan(lead.value):
            continue
        if not lead.has_interval:
            undecided.append(f"{name} ({lead.signed}, no interval)")
        elif lead.excludes(0) and p >= 0.05:
            undecided.append(f"{name} ({lead.signed}{lead.range}, but Holm's p is {p:.2g})")
        elif lead.low > 0:
            wins.append(f"{name} by {lead.value:.3f}{lead.range}")
        elif lead.high < 0:
            losses.append(f"{name} by {-lead.value:.3f}")
        else:
            undecided.append(f"{name} ({lead.signed}{lead.range})")
    if not (wins or undecided or losses):
        return f"{where} nothing can be compared: a comparison takes scores of two pipelines at two sizes or more."
    parts = [f"it beat {join(wins)}"] if wins else []
    parts += [f"it was worse than {join(losses)} in the runs that both have"] if losses else []
    parts += [f"whether it is better than {join(undecided, 'or')} is undecided"] if undecided else []
    return f"{where} {best} had the best mean {facts.score}{': ' if wins else ', but '}{'; '.join(parts)}."


def _smallest_and_largest(tables: Tables, best: str, other: str, facts: Facts) -> str:
    """Scores and difference with the fewest and with the most labels."""
    by_size = tables["by_size"].dropna(subset=["mean"]).set_index(["pipeline", "labels"])
    sizes = sorted(set(tables["by_size"]["labels"]))
    shared = [n for n in sizes if (best, n) in by_size.index and (other, n) in by_size.index]
    texts = []
    for labels in dict.fromkeys(shared[:1] + shared[-1:]):
        scores = {name: _estimate(by_size.loc[(name, labels)], "mean") for name in dict.fromkeys((best, other))}
        text = " and ".join(f"{name} scored {score.value:.3f}{score.range}" for name, score in scores.items())
        if best != other:
            lead, _ = _lead(tables["pairs"][tables["pairs"]["labels"] == labels], best, other)
            verdict = "" if lead.excludes(0) else ", undecided" if lead.has_interval else ", without an interval"
            text += f", a difference of {lead.signed}{lead.range}{verdict}"
        texts.append(f"with {facts.labels(labels)} {text}")
    return ("; ".join(texts) or f"no size has scores of both {best} and {other}") + "."


def _labels_saved(table: pd.DataFrame, best: str, other: str, facts: Facts) -> str:
    """The label multiplier at the largest size."""
    rows = table[(table["pipeline"] == best) & (table["baseline"] == other)].dropna(subset=["multiplier"])
    if rows.empty:
        return "these runs do not show how many labels pretraining saves."
    row = rows.sort_values("labels").iloc[-1]
    factor, size = _estimate(row, "multiplier"), row["labels"]
    needed = size / factor.value
    if row["bound"] == ">=":
        result = f"{best} needed no more than {needed:,.0f}, the fewest tried"
    elif row["bound"] == "<=":
        result = f"{best} would need more than {needed:,.0f}, the most tried"
    elif f"{factor.value:.2g}" == "1":
        result = f"{best} needed about as many"
    elif factor.value > 1:
        result = f"{best} needed {needed:,.0f}, {factor.value:.2g} times fewer"
    else:
        result = f"{best} needed {needed:,.0f}, {1 / factor.value:.2g} times as many"
    text = f"to equal {other} at {facts.labels(size)} {result}"
    return text + _verdict(factor, "the factor", "whether it saves labels")


def _speed(table: pd.DataFrame, best: str, other: str, facts: Facts) -> str:
    """Steps to the common reference at the largest size."""
    unknown = f"these runs do not show which start reaches {100 * LEVEL:.0f} % of the common reference score sooner"
    rows = table[_is_pair(table, best, other) & (table["level"] == LEVEL)]
    if rows.empty:
        return unknown + "."
    row = rows.sort_values("labels").iloc[-1]
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
    if f"{ratio.value:.2g}" == "1" and bound != ">=":
        times = "no fewer steps than" if bound else "about as many steps as"
    task = f"to reach {100 * LEVEL:.0f} % of the common reference score with {facts.labels(row['labels'])}"
    return f"{task} {best} took {times} {other}" + _verdict(ratio, "the speed-up, over seeds,", "which is faster")


def _verdict(factor: Estimate, what: str, question: str) -> str:
    """The end of a sentence on a factor: its interval, and whether that decides the question."""
    if not factor.has_interval:
        return f"; there is no interval, so {question} is undecided."
    between = f"95 % interval of {what} {_factor_range(factor)}"
    return f" ({between})." if factor.excludes(1) else f", but {question} is undecided ({between})."


def _factor_range(factor: Estimate) -> str:
    """The interval of a factor in words; an end is open where the sizes or steps tried do not bound it."""
    if factor.low == np.inf:
        return "above all values that were tried"
    if factor.high == 0:
        return "below all values that were tried"
    if factor.high == np.inf:
        return "open at both ends" if factor.low == 0 else f"from {factor.low:.2g} up"
    return f"up to {factor.high:.2g}" if factor.low == 0 else f"{factor.low:.2g} to {factor.high:.2g}"


def _forecasts(table: pd.DataFrame) -> str:
    """How often the back-test's intervals contained the error observed."""
    known = table.dropna(subset=["low", "high"])
    if known.empty:
        missing = "4 sizes or more" if table.empty else "2 seeds or more"
        return f"forecasts are untested, because a test on larger sizes takes {missing}."
    inside = int(known["inside"].astype(bool).sum())
    text = (
        f"fitted to the smaller sizes only, the curves predicted the error at a larger one {len(known)} "
        f"time{'s' if len(known) > 1 else ''}, and the error observed lay inside the 95 % interval {inside} of "
        f"{len(known)} times"
    )
    if len(known) < 4:
        return f"{text}; that is too few to judge the forecasts."
    if inside < 0.7 * len(known):
        return f"{text}, far fewer than a 95 % interval should hold, so do not rely on forecasts."
    if inside < 0.9 * len(known):
        return f"{text}, fewer than a 95 % interval should hold, so treat forecasts as rough."
    return f"{text}: forecasts held within the sizes tried; beyond these nothing was tested."


def caveats(facts: Facts) -> list[str]:
    """The limits of the sentences, one each, the most important first."""
    texts = list(facts.warnings)
    if facts.synthetic:
        texts.append(
            "The patients are synthetic: this checks that the software runs; it is no evidence about any method."
        )
    texts.append(
        f"One data set ({facts.data}), {facts.count_scored} of the {facts.split} split and one set of "
        f"settings ({facts.settings}): other data and other settings may give another order."
    )
    if facts.missing:
        texts.append(
            f"{facts.missing} of {facts.cells} runs are missing: pipelines are compared on the runs that both have, "
            "but each mean is over the runs of its own pipeline."
        )
    if facts.seeds == 1:
        texts.append("One seed: no interval, so nothing here is decided.")
    elif facts.seeds < 5:
        texts.append(f"{facts.seeds} seeds are few: the intervals themselves are rough.")
    if facts.pretrainings == 1 and any(name != "random" for name in facts.pipelines):
        texts.append("One encoder per pipeline: the intervals do not cover how much another pretraining would differ.")
    elif 1 < facts.pretrainings < 5:
        texts.append(
            f"{facts.pretrainings} pretraining seeds are few: the intervals cover only roughly how much another "
            "pretraining would differ."
        )
    if facts.is_short:
        texts.append(facts.pretraining)
    texts += [caveat for caveat in facts.natural_image_starts.values() if caveat]
    if facts.split == "validation":
        texts.append(
            "Scored on the validation split, on which settings may have been chosen; the test split was not used."
        )
    if facts.chosen_in_sample:
        texts.append(f"Chosen on the split that is reported, so that scores are too high: {facts.chosen_in_sample}.")
    texts.append(
        "Only the comparison over all sizes was declared beforehand and is corrected for the number of pairs (Holm); "
        "the other intervals are not."
    )
    return texts


def _estimate(row: pd.Series, name: str) -> Estimate:
    return Estimate(value=float(row[name]), low=float(row["low"]), high=float(row["high"]))


def _lead(rows: pd.DataFrame, best: str, other: str) -> tuple[Estimate, float]:
    """Difference of `best` less `other` from rows of `pairs` or `primary`, and Holm's p if there is one."""
    row = oriented(rows[_is_pair(rows, best, other)], [other, best]).iloc[0]
    return _estimate(row, "difference"), float(row.get("p_holm", np.nan))


def _is_pair(rows: pd.DataFrame, best: str, other: str) -> pd.Series:
    return rows["first"].isin([best, other]) & rows["second"].isin([best, other])
