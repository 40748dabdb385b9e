"""The subject of each image, by its name: several slices, frames or visits of one patient are one subject."""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from core.errors import UserError
from core.text import search
from core.wording import count_of, listed

log = logging.getLogger("fewslice")

BEGIN, END = r"(?:^|(?<=[/_\-. ]))", r"(?=[/_\-. ]|$)"
NUMBERED = re.compile(
    rf"(?:^|(?<=[/_\-. \d]))(?:frames?|frm|visits?|slices?|slc|time(?:point|step)?s?|tp|phases?"
    rf"|sessions?|sess?|instant)[_\-. ]?\d+{END}",
    re.IGNORECASE,
)
"""Parts of a patient, by a word and a number: frame07, visit_2."""
SHORT = re.compile(
    rf"{BEGIN}(?:(?:[stzvmw]|sl|fr|ph|vis|im|img|image|scan|series|echo|run|acq|rep|day|wk|week|month|year|yr"
    rf"|view|mr|fu)[_\-. ]?\d+"
    rf"|ED|ES|baseline|follow[_\- ]?up\d*|pre|post|left|right|od|os|[lr]|[234]ch|[sl]ax?|cine|4d"
    rf"|t[12]\w{{0,3}}|flair|dwi|adc|pd|swi|(?:19|20)\d\d[-_]?[01]\d[-_]?[0-3]\d){END}",
    re.IGNORECASE,
)
"""The same by an abbreviation, which counts only behind a number or name of the patient: patient1_s0, p3_ED."""
PART_FOLDER = re.compile(
    r"ED|ES|baseline|follow[_\- ]?up\d*|pre|post|left|right|od|os|[234]ch|[sl]ax?|cine|4d"
    r"|t[12]\w{0,3}|flair|dwi|adc|pd|swi",
    re.IGNORECASE,
)
"""A folder of one phase, time, side, view or sequence of many patients."""
PATIENT_FOLDER = re.compile(
    r"(?:patient|pat|pt|subject|subj|sub|case|id|p)[_\- ]?[a-z]?\d+|sub-[a-z\d]+", re.IGNORECASE
)
NO_PATIENT = re.compile(
    r"(?:study|site|cent(?:er|re)|batch|fold|data(?:set)?|group|cohort|task|vendor|hospital|part|set|trial)"
    r"[_\- ]?\d+",
    re.IGNORECASE,
)
"""Numbered things that hold several patients."""
IDENTIFIER = re.compile(
    rf"{BEGIN}(\d{{3}}_S_\d{{4,5}}|BraTS-[a-z]+-\d{{5}}|TCGA-\w\w-\w{{4}}|LIDC-IDRI-\d{{4}}|\d{{5}}(?=_\d{{7}}$)){END}",
    re.IGNORECASE,
)
"""Patients of public collections: ADNI, BraTS since 2023, TCGA, LIDC-IDRI, PI-CAI."""
PAIRED = re.compile(
    r"(.+)[/_\-. ](?:(ED|ES)|(pre|post)|(baseline|follow[_\- ]?up)|(left|right)|(od|os)|([lr]))", re.IGNORECASE
)
"""The two phases, times or sides of one patient, told by a word."""
LAST_NUMBER = re.compile(r"(.+)[/_\-. ](\d+)")


def subjects_of(names: Sequence[str], pattern: str | None) -> list[str]:
    """The subject of each image.

    Args:
        names: paths of the images without suffix.
        pattern: regular expression that is searched in each name; its first group, or the whole match, is the subject.
            None: the name up to the part that says frame, slice, visit, phase and the like (patient1 of
            patient1_frame03); else the folder that is named after the patient; else the whole name.

    Raises:
        UserError: if the pattern is no regular expression or finds nothing in a name.
    """
    if pattern is not None:
        return [_matched(name, pattern) for name in names]
    subjects = subjects_by_name(names)
    merged = {subject: count for subject, count in Counter(subjects).items() if count > 1}
    if merged:
        first = min(merged)
        members = [name for name, subject in zip(names, subjects, strict=True) if subject == first]
        if set(members) != {first}:
            log.info(
                f"{count_of(len(names), 'image')} of {count_of(len(set(subjects)), 'subject')} by their names (such as "
                f"{first}: {listed(members, 3)}); --subject-pattern decides otherwise"
            )
    return subjects


def subjects_by_name(names: Sequence[str]) -> list[str]:
    """`subjects_of` without a pattern, and without a log message."""
    names = _without_folders_of_parts(names)
    subjects = [_without_parts(name) for name in names]
    subjects = _of_numbered_folders(subjects)
    subjects = _of_lettered_patients(names, subjects)
    subjects = _of_paired_words(subjects)
    return _of_numbered_slices(subjects)


def _without_folders_of_parts(names: Sequence[str]) -> list[str]:
    """The names without folders of a phase, time, side or sequence that hold the same patients: ED/p1 and ES/p1."""
    shorter = {}
    for name in names:
        *folders, last = name.split("/")
        shorter[name] = "/".join([*(folder for folder in folders if not PART_FOLDER.fullmatch(folder)), last])
    places: dict[str, set[str]] = defaultdict(set)
    for name, short in shorter.items():
        places[_without_parts(short)].add(name.rpartition("/")[0])
    recurring = {place for of_patient in places.values() if len(of_patient) > 1 for place in of_patient}
    return [shorter[name] if name.rpartition("/")[0] in recurring else name for name in names]


def _matched(name: str, pattern: str) -> str:
    match = search(pattern, name)
    subject = (match[1] if match.re.groups else match[0]) if match else None
    if not subject:
        raise UserError(f"--subject-pattern {pattern!r} finds no subject in {name!r}: widen it")
    return subject


def _without_parts(name: str) -> str:
    """The name up to its first part of a patient, or the folder of the patient."""
    if match := IDENTIFIER.search(name):
        return match[1]
    while (match := NUMBERED.match(name)) and name[match.end() : match.end() + 1] == "/":
        name = name[match.end() + 1 :]  # visit1/patient1 is patient1
    ends = [match.start() for match in NUMBERED.finditer(name) if match.start()]
    ends += [match.start() for match in SHORT.finditer(name) if _names_patient(name[: match.start()])]
    base = name[: min(ends)].rstrip("/_-. ") if ends else name
    *folders, stem = base.split("/")
    for depth, folder in enumerate(folders, 1):
        # patient1/x, and BraTS_001/BraTS_001_x; but 01/010 and 01/01 may be slices that are numbered through
        end = r"\D" if folder.isdigit() else r"(?!\d)"
        repeated = re.search(r"\d", folder) and re.match(re.escape(folder) + end, stem)
        if PATIENT_FOLDER.fullmatch(folder) or repeated:
            return "/".join(folders[:depth])
    return base


def _names_patient(start: str) -> bool:
    """Whether the beginning of a name, before an abbreviation, is that of one patient."""
    last = start.rstrip("/_-. ").rsplit("/", 1)[-1]
    return bool(re.search(r"\d", last)) and not NO_PATIENT.fullmatch(last)


def _of_lettered_patients(names: Sequence[str], subjects: list[str]) -> list[str]:
    """Abbreviations behind names without numbers (anna_s0, anna_s1, bert_s0), if there are several such names."""
    starts = {}
    for name, subject in zip(names, subjects, strict=True):
        match = next((m for m in SHORT.finditer(subject) if m.start() and m.end() == len(subject)), None)
        if match and re.search(r"\d$", match[0]):
            starts[name] = subject[: match.start()].rstrip("/_-. ")
    counts = Counter(starts.values())
    if len(counts) < 2 or max(counts.values()) < 2:
        return subjects
    return [starts.get(name, subject) for name, subject in zip(names, subjects, strict=True)]


def _of_numbered_folders(subjects: list[str]) -> list[str]:
    """A folder for each patient, named by numbers: ANON012/a, ANON012/b. Single digits may as well be grades."""
    paths = [subject.split("/") for subject in subjects]
    shortest = min((len(path) for path in paths), default=1)
    depth = next((depth for depth in range(shortest - 1) if len({path[depth] for path in paths}) > 1), None)
    if depth is None:
        return subjects
    folders = {path[depth] for path in paths}
    numbered = all(re.search(r"\d", name) and not NO_PATIENT.fullmatch(name) for name in folders)
    if len(folders) < 3 or not numbered or not any(re.search(r"\d\d", name) for name in folders):
        return subjects
    if any(NUMBERED.match(name) or re.fullmatch(r"(?:19|20)\d\d", name) for name in folders):
        return subjects
    return ["/".join(path[: depth + 1]) for path in paths]


def _of_paired_words(subjects: list[str]) -> list[str]:
    """Names without numbers that are alike up to one of two words: anna_ED, anna_ES."""
    words: dict[tuple[str, int], set[str]] = defaultdict(set)
    matches = [PAIRED.fullmatch(subject) for subject in subjects]
    for match in matches:
        if match and not NO_PATIENT.fullmatch(match[1].rsplit("/", 1)[-1]):
            words[match[1], match.lastindex or 0].add(match[match.lastindex or 0].casefold())
    return [
        match[1] if match and len(words[match[1], match.lastindex or 0]) == 2 else subject
        for subject, match in zip(subjects, matches, strict=True)
    ]


def _of_numbered_slices(subjects: list[str]) -> list[str]:
    """Numbers behind a numbered patient that start again with each patient: p12_001, p12_002, p13_001."""
    numbers: dict[str, set[str]] = defaultdict(set)
    for subject in subjects:
        if (match := LAST_NUMBER.fullmatch(subject)) and _names_patient(match[1]):
            numbers[match[1]].add(match[2])
    occurrences = Counter(number for of_base in numbers.values() for number in of_base)
    several = {base for base, of_base in numbers.items() if len(of_base) > 1}
    if len(several) < 2 or 2 * len(several) < len(numbers) or max(occurrences.values()) < 2:
        return subjects
    return [
        match[1] if (match := LAST_NUMBER.fullmatch(subject)) and match[1] in numbers else subject
        for subject in subjects
    ]
