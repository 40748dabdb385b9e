"""Cardiac measurements from label maps (volumes, ejection fractions, mass) and their errors."""

from pathlib import Path

import pandas as pd

from data.readers.images import stem

MYOCARDIUM_G_PER_ML = 1.05


def read_outs(per_volume: pd.DataFrame) -> pd.DataFrame:
    """Volumes, ejection fractions and myocardial mass of each patient.

    Args:
        per_volume: one row per volume: ``subject``, ``phase`` ("ED" or "ES"; other rows are left out), and
            ``volume_ml_X`` (prediction) and ``reference_ml_X`` for X in RV, MYO, LV.

    Returns:
        One row per subject; columns ("prediction" or "reference", read-out): ``lv_ed_ml``, ``lv_es_ml``,
        ``lv_ef_percent``, the same for ``rv``, and ``myo_mass_g`` at ED. NaN where a phase is
        missing; the ejection fraction (EF) also where the ED volume is 0.
    """
    ed, es = (per_volume[per_volume["phase"] == phase].set_index("subject") for phase in ("ED", "ES"))
    sides = {}
    for side, volume in (("prediction", "volume_ml"), ("reference", "reference_ml")):
        values = {}
        for ventricle in ("lv", "rv"):
            full, empty = ed[f"{volume}_{ventricle.upper()}"], es[f"{volume}_{ventricle.upper()}"]
            values[f"{ventricle}_ed_ml"] = full
            values[f"{ventricle}_es_ml"] = empty
            values[f"{ventricle}_ef_percent"] = 100 * (full - empty) / full.where(full > 0)
        values["myo_mass_g"] = ed[f"{volume}_MYO"] * MYOCARDIUM_G_PER_ML
        sides[side] = pd.DataFrame(values)
    return pd.concat(sides, axis=1)


def clinical_errors(per_volume: pd.DataFrame) -> dict[str, dict[str, float]]:
    """The error (prediction minus reference) of every read-out, over patients.

    Args:
        per_volume: as for `read_outs`.

    Returns:
        Per read-out, in its unit: ``prediction`` and ``reference`` (means), ``bias`` (mean error) and
        ``mean_absolute_error`` over the ``count`` patients with both values; ``missing`` counts the others.
    """
    table = read_outs(per_volume)
    result = {}
    for name in table["prediction"].columns:
        pairs = table.xs(name, axis=1, level=1)
        error = pairs["prediction"] - pairs["reference"]
        known = error.notna()
        result[name] = {
            "prediction": pairs.loc[known, "prediction"].mean(),
            "reference": pairs.loc[known, "reference"].mean(),
            "bias": error.mean(),
            "mean_absolute_error": error.abs().mean(),
            "count": known.sum(),
            "missing": (~known).sum(),
        }
    return result


def ejection_fractions(table: pd.DataFrame, chamber: str) -> pd.DataFrame:
    """End-diastolic and end-systolic volume and ejection fraction of each 4D file, and of each subject's 3D files.

    ED and ES are the frames of these phases; in a 4D file without phases, the largest and the smallest volume.

    Args:
        table: rows of `segment.predict.run`.
        chamber: class name, "LV" or "RV".

    Returns:
        One row per 4D file or subject that has both phases: source (its name), ed_ml, es_ml, ejection_fraction (%).
    """
    volume, fractions = f"volume_ml_{chamber}", []
    cine = table.groupby("file")["frame"].transform("size") > 1
    source = table["subject"].where(~cine, table["file"].map(lambda file: stem(Path(file))))
    for name, rows in table.groupby(source):
        ed, es = (rows.loc[rows["phase"] == phase, volume] for phase in ("ED", "ES"))
        if len(ed) and len(es):
            full, empty = float(ed.iloc[0]), float(es.iloc[0])
        elif len(rows) > 1 and cine[rows.index].all():
            full, empty = float(rows[volume].max()), float(rows[volume].min())
        else:
            continue
        if full > 0:
            fraction = 100 * (full - empty) / full
            fractions.append({"source": name, "ed_ml": full, "es_ml": empty, "ejection_fraction": fraction})
    return pd.DataFrame(fractions, columns=["source", "ed_ml", "es_ml", "ejection_fraction"])
