"""A large profile in parts that can be resumed, each of about 40 minutes on two cores.

A part fills its artifacts side by side and then writes what was measured into the folder of the
profile's figures: the rows of the pool's documents, or the levels of the paths at each mark, and a
line of `machine.csv`. What is stored already is not made again.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version as installed
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from unlearn_utils import __version__
from unlearn_utils.cache import paths, store
from unlearn_utils.cache.store import Artifact
from unlearn_utils.cache.workers import side_by_side, tell
from unlearn_utils.core import membership
from unlearn_utils.core.distances import SPLITS
from unlearn_utils.profiles import Profile
from unlearn_utils.study import (
    attacked,
    elsewhere,
    method_paths,
    pool,
    released_code,
    retraining,
    selection,
    since,
)
from unlearn_utils.study.single_run import Run
from unlearn_utils.study.study_documents import tokenizer_artifact

POOL = "pool"
ELSEWHERE = ("exposures", "sizes", "shares")  # parts of `elsewhere`
STAGES = ("tokenizers", "models", "measurements", "paths", "results")
SCORE = membership.SCORES["Min-40%"].column
HALVES = {selection.SELECTION: "selection", selection.REPORT: "report"}
MACHINE = "machine.csv"
PROCESSORS = Path("/proc/cpuinfo")  # on Linux


class Part(NamedTuple):
    """One part of a profile.

    Attributes:
        what: it computes, in words.
        runs: whose paths it is; of the pool there are none.
        others: further artifacts, each with rows of documents; they are made of models of this part
            and of those before it. None: there are none.
    """

    what: str
    runs: Callable[[Profile], list[Run]]
    others: Callable[[Profile], list[Artifact]] | None = None


# -------------------------------------------------------------------------------- what a part holds


def no_runs(profile: Profile) -> list[Run]:
    """Return nothing: the pool has no paths."""
    return []


def claim_runs(profile: Profile) -> list[Run]:
    """Return the runs of the two methods of claim C2, at every rate."""
    found = []
    for replicate in profile.replicates:
        for domain in profile.grid.claimed_domains:
            for method in (method_paths.ASCENT, method_paths.CLAIMED):
                found += method_paths.grid_runs(profile, replicate, domain, method)
    return found


def other_runs(profile: Profile) -> list[Run]:
    """Return the runs of the study's own paths that are not of claim C2."""
    claimed = set(claim_runs(profile))
    return [run for run in method_paths.every_run(profile) if run not in claimed]


def elsewhere_runs(axis: str, profile: Profile) -> list[Run]:
    """Return the runs of one axis of `elsewhere`, the longest trainings first.

    Those of the study's own setting are of other parts.
    """
    settings = [setting for setting in elsewhere.of_axis(profile, axis) if not setting.own]
    return elsewhere.runs(settings[::-1])


PARTS = {
    POOL: Part("models of the pool, and their measurements", no_runs),
    "claim": Part("paths of claim C2", claim_runs),
    "methods": Part("paths of the other methods", other_runs),
    "released": Part("paths of the released code", released_code.every_run),
    "slips": Part("paths of slips of public code", released_code.slip_runs),
    "since": Part("paths of the methods since the paper", since.runs),
    "exposures": Part(
        "elsewhere: exposures in pre-training", partial(elsewhere_runs, elsewhere.EXPOSURES)
    ),
    "sizes": Part("elsewhere: sizes of the model", partial(elsewhere_runs, elsewhere.SIZES)),
    "shares": Part("elsewhere: sizes of the forget set", partial(elsewhere_runs, elsewhere.SHARES)),
    "attacks": Part("a LoRA, and attacks", attacked.lora_runs, attacked.artifacts),
    "retraining": Part("partial retrainings", no_runs, retraining.rewound_and_distilled),
    "soup": Part("sums of task vectors of the base", no_runs, retraining.soups),
}


def part(profile: Profile, name: str) -> Part:
    """Return the part of that name.

    Raises:
        ValueError: the profile has none; the message lists the names.
    """
    if name not in profile.parts:
        raise ValueError(f"unknown part {name!r}; choose one of: {', '.join(profile.parts)}")
    return PARTS[name]


def stages(profile: Profile, name: str) -> list[list[Artifact]]:
    """Return what a part needs: tokenizer, models, their measurements, paths, others.

    All of a stage may be made side by side when the stages before it are there.
    """
    runs = part(profile, name).runs(profile)
    models = _models_of_pool(profile) if name == POOL else _models_of(runs)
    measured = [pool.measurements(own, model) for own, model in models]
    found = [
        _once(tokenizer_artifact(own) for own, _ in models),
        _once(model for _, model in models),
        _once(measured),
        _once(method_paths.path(run, method_paths.keeps(run)) for run in runs),
    ]
    others = part(profile, name).others
    return [*found, [] if others is None else others(profile)]


def _models_of_pool(profile: Profile) -> list[tuple[Profile, Artifact]]:
    """Return every model of the pool, each with its profile."""
    members = pool.all_members(profile)
    return [(profile, pool.trained_model(profile, member)) for member in members]


def _models_of(runs: Sequence[Run]) -> list[tuple[Profile, Artifact]]:
    """Return the target and the retrained model of each run, each with its profile."""
    found = []
    for run in runs:
        found.append((run.profile, pool.target(run.profile, run.replicate)))
        found.append((run.profile, pool.retrained(run.profile, run.target_domain, run.replicate)))
    return found


def _once(artifacts: Iterable[Artifact]) -> list[Artifact]:
    """Return artifacts without those that come again."""
    return list({artifact.path: artifact for artifact in artifacts}.values())


# ------------------------------------------------------------------------------------------ running


def compute(profile: Profile, name: str | None = None) -> None:
    """Make one part, or all in turn, and write its rows.

    Raises:
        ValueError: there is no such part.
    """
    for chosen in [name] if name else profile.parts:
        _compute_part(profile, chosen)


def _compute_part(profile: Profile, name: str) -> None:
    began = time.perf_counter()
    needed = [artifact for stage in stages(profile, name) for artifact in stage]
    missing = sum(not artifact.done() for artifact in needed)
    tell(f"part {name}, {PARTS[name].what}: {missing} of {len(needed)} artifacts are to be made")
    fill(profile, name)
    folder = paths.figures_folder(profile.name)
    if name == POOL:
        write_rows(compact(pool.pool_rows(profile)), folder / "pool_rows.parquet")
    elif runs := part(profile, name).runs(profile):
        write_rows(path_levels(runs), folder / f"paths_{name}.parquet")
    else:
        write_rows(levels_of_models(needed), folder / f"{name}.parquet")
    minutes = (time.perf_counter() - began) / 60
    if missing:
        own = of_part_alone(profile, name)
        note_machine(folder / MACHINE, name, own, missing, minutes)
    tell(f"part {name} is there, after {minutes:.1f} min")


def fill(profile: Profile, name: str) -> None:
    """Make what is missing of a part, side by side, stage after stage."""
    for stage, what in zip(stages(profile, name), STAGES, strict=True):
        side_by_side(stage, profile.workers, f"{what} of part {name}")


def of_part_alone(profile: Profile, name: str) -> list[Artifact]:
    """Return the artifacts of a part that are not the pool's."""
    of_pool = set()
    if name != POOL:
        of_pool = {artifact.path for stage in stages(profile, POOL) for artifact in stage}
    every = [artifact for stage in stages(profile, name) for artifact in stage]
    return [artifact for artifact in every if artifact.path not in of_pool]


# --------------------------------------------------------------------------------- rows to be kept


def path_levels(runs: Sequence[Run]) -> pd.DataFrame:
    """Return what stored paths say at each mark, on each half of the documents.

    Returns:
        replicate, target_domain, method, learning_rate, epochs, batch, variant, schedule,
        retain_documents (0: all), pretraining_epochs, parameters, forget_documents; step (0 is the
        target), half, log perplexity on each of `SPLITS`, auc (of Min-40%), ended (whether the path
        ended at its last mark).
    """
    frames = []
    for run in runs:
        artifact = method_paths.path(run, method_paths.keeps(run))
        rows = pd.read_parquet(artifact.path / "rows.parquet")
        ended = method_paths.outcome(artifact)["ended"]
        found = _levels_of(rows).assign(ended=ended is not None)
        for column, value in _settings_of(run).items():
            found[column] = value
        frames.append(found)
    table = pd.concat(frames, ignore_index=True)
    keys = list(_settings_of(runs[0]))
    return compact(table[[*keys, *table.columns.drop(keys)]])


def levels_of_models(artifacts: Sequence[Artifact]) -> pd.DataFrame:
    """Return what stored rows say of each model, on each half of the documents.

    Returns:
        artifact (its name), settings (of it, in JSON), setting (one of several models of it; else
        empty), half, log perplexity on each of `SPLITS`, auc (of Min-40%).
    """
    frames = []
    for artifact in artifacts:
        rows = pd.read_parquet(artifact.path / "rows.parquet")
        if "setting" not in rows:
            rows = rows.assign(setting="")
        named = {"artifact": artifact.name, "settings": json.dumps(artifact.settings)}
        frames.append(_levels_of(rows, "setting").assign(**named))
    table = pd.concat(frames, ignore_index=True)
    keys = ["artifact", "settings"]
    return compact(table[[*keys, *table.columns.drop(keys)]])


def _levels_of(rows: pd.DataFrame, by: str = "step") -> pd.DataFrame:
    """Return the levels of one path, a row a mark and half.

    by: the column that says which mark it is.
    """
    lines = []
    for mark, at_mark in rows.groupby(by, sort=by == "step"):
        for which, half in HALVES.items():
            here = selection.half(at_mark, which)
            line = {by: mark, "half": half}
            line |= dict(zip(SPLITS, method_paths.levels(here), strict=True))
            members = here[here.split == "forget"][SCORE]
            others = here[here.split == "approximate"][SCORE]
            lines.append({**line, "auc": membership.auc(members, others)})
    return pd.DataFrame(lines)


def _settings_of(run: Run) -> dict:
    """Return the columns that say which run it is."""
    profile, recipe = run.profile, run.recipe
    size = profile.corpus.pairs
    if profile.corpus.resized is not None:
        size = profile.corpus.resized[1]
    return {
        "replicate": run.replicate,
        "target_domain": run.target_domain,
        "method": run.method,
        "learning_rate": recipe.learning_rate,
        "epochs": recipe.epochs,
        "batch": recipe.batch,
        "variant": str(recipe.variant),
        "schedule": recipe.schedule,
        "retain_documents": run.retain_documents or 0,
        "pretraining_epochs": profile.pretraining.epochs,
        "parameters": elsewhere.parameters(profile.shape),
        "forget_documents": size,
    }


def compact(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows with numbers in 32 bits and repeated words kept once."""
    kinds = {}
    for column, kind in rows.dtypes.items():
        if pd.api.types.is_float_dtype(kind):
            kinds[column] = "float32"
        elif pd.api.types.is_integer_dtype(kind):
            kinds[column] = "int32"
        elif not pd.api.types.is_bool_dtype(kind):
            kinds[column] = "category"
    return rows.astype(kinds)


def write_rows(rows: pd.DataFrame, file: Path) -> None:
    """Write rows as parquet, whole or not at all."""
    with paths.whole(file) as part:
        rows.to_parquet(part, index=False, compression="zstd")


# -------------------------------------------------------------------------------------- the machine


def note_machine(
    file: Path, name: str, artifacts: Sequence[Artifact], made: int, minutes: float
) -> None:
    """Write a part's line into the table of machines, in the place of an older one.

    Args:
        file: the table: part, artifacts, made (in this run, also of other parts), minutes (of this
            run), core_minutes (that the artifacts took, whenever they were made), processor, cores,
            bf16, torch, python, date, code.
        name: of the part.
        artifacts: of this part alone.
        made: how many this run made.
        minutes: that this run took.
    """
    from unlearn_utils.engine import models

    costs = [store.cost(artifact.path) for artifact in artifacts]
    line = {
        "part": name,
        "artifacts": len(artifacts),
        "made": made,
        "minutes": round(minutes, 1),
        "core_minutes": round(sum(cost["seconds"] for cost in costs) / 60, 1),
        "processor": processor(),
        "cores": os.cpu_count(),
        "bf16": models.half_precision(),
        "torch": installed("torch"),
        "python": platform.python_version(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "code": code(),
    }
    others = []
    if file.exists():
        known = pd.read_csv(file).to_dict("records")
        others = [one for one in known if one["part"] != name]
    order = list(PARTS)
    lines = sorted([*others, line], key=lambda one: order.index(one["part"]))
    paths.write_whole(file, pd.DataFrame(lines).to_csv(index=False, lineterminator="\n"))


def processor() -> str:
    """Return the name of this machine's processor."""
    if PROCESSORS.exists():
        for line in PROCESSORS.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def code() -> str:
    """Return the commit of this project, or the package's version where it is no git repository."""
    command = ["git", "-C", str(paths.PROJECT), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return __version__
    return done.stdout.strip()
