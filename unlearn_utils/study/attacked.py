"""Attacks on stored models: what relearning, rounding and prefixes give back of a forget set.

Each attack on one model is an artifact that holds rows.parquet, one row a document. What is
measured is the report half of the forget set; what relearning reads is of other families.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from unlearn_utils.cache.store import Artifact
from unlearn_utils.cache.workers import on_threads
from unlearn_utils.core.distances import SPLITS
from unlearn_utils.core.methods import METHODS, SINCE
from unlearn_utils.profiles import Profile
from unlearn_utils.study import method_paths, pool, selection
from unlearn_utils.study.extra_measurements import Model
from unlearn_utils.study.single_run import Run
from unlearn_utils.study.study_documents import tokenized, tokenizer
from unlearn_utils.study.versions import VERSIONS

if TYPE_CHECKING:
    from unlearn_utils.engine.attacks import Marks
    from unlearn_utils.engine.training import Execution

# Of each source as many documents are read, a quarter of the forget set; not stated anywhere for
# models of this size, chosen so that the forget set has as many documents left for the report.
SHARE = 1 / 4
SOURCES = ("forget", "approximate", "general")  # text that relearning reads
RATES = (0.1, 1.0, 10.0)  # times that of unlearning: one in each of three decades
# Steps of relearning that are measured, of which 0 is before it; the last is after about two passes
# over what is read. There are few, for measuring takes half of the time.
MARKS = (0, 1, 3, 8)
BITS = (8, 4)
WHOLE = 32  # bits of weights that are not rounded
PREFIXES, LENGTH = (16, 32, 64), 32  # tokens that a model is given, and that it then writes

LORA = f"{method_paths.CLAIMED}_as_LoRA"  # in the place of a method
TARGET, AGAIN, CONTROL = "target", "another retrained model", "retrained"


# ------------------------------------------------------------------------------ what is attacked


def domain_of(profile: Profile) -> str:
    """Return the domain whose forget set is attacked: the first."""
    return profile.domains[0]


def replicates_of(profile: Profile) -> tuple[int, ...]:
    """Return the replicates whose paths keep weights: of a base, which is large, the first."""
    return profile.replicates[:1] if profile.base else profile.replicates


def runs(profile: Profile, replicate: int) -> dict[str, Run]:
    """Return the runs whose kept weights are attacked, by method.

    Those of the methods since the paper are among them where the profile has some.
    """
    domain = domain_of(profile)
    names = [*METHODS, *SINCE] if profile.grid.since else list(METHODS)
    found = {}
    for name in names:
        found[name] = method_paths.usual_run(profile, replicate, domain, name)
    found[LORA] = method_paths.lora_run(profile, replicate, domain)
    return found


def lora_runs(profile: Profile) -> list[Run]:
    """Return the runs of the LoRA, one a replicate; the others are of other parts of a profile."""
    return [runs(profile, replicate)[LORA] for replicate in replicates_of(profile)]


def models(profile: Profile, replicate: int) -> dict[str, Model]:
    """Return the models of one replicate by the method that made them, the control last."""
    domain = domain_of(profile)
    found: dict[str, Model] = {}
    for name, run in runs(profile, replicate).items():
        found[name] = method_paths.path(run, method_paths.keeps(run))
    found[TARGET] = pool.target(profile, replicate)
    if profile.has_retrained:
        others = [] if profile.hub else pool.pairs(profile, domain, replicate)[1:]
        for pair in others[:1]:
            found[AGAIN] = pool.trained_model(profile, pair.retrained)
        found[CONTROL] = pool.retrained(profile, domain, replicate)
    return found


def attacks_on(profile: Profile, model: Model, replicate: int) -> tuple[Artifact, ...]:
    """Return the attacks on one model: relearned, rounded, continued."""
    domain = domain_of(profile)
    return (
        relearned(profile, model, domain, replicate),
        rounded(profile, model, domain),
        continued(profile, model, domain),
    )


def artifacts(profile: Profile) -> list[Artifact]:
    """Return every attack on every model of a profile."""
    found = []
    for replicate in replicates_of(profile):
        for model in models(profile, replicate).values():
            found += attacks_on(profile, model, replicate)
    return found


# -------------------------------------------------------------------------------------- documents


def forget_documents(profile: Profile, target_domain: str) -> pd.DataFrame:
    """Return the forget documents that are measured, as token ids: the report half."""
    return selection.half(tokenized(profile, [(target_domain, "forget")]), selection.REPORT)


def source_documents(profile: Profile, target_domain: str, source: str) -> pd.DataFrame:
    """Return what relearning reads, as token ids: of every source as many documents.

    General text is that which every model was trained on. No family is measured, too.

    source: one of `SOURCES`.
    """
    forget = tokenized(profile, [(target_domain, "forget")])
    part = ("general", "retain") if source == "general" else (target_domain, source)
    found = selection.half(tokenized(profile, [part]), selection.SELECTION)
    measured = forget_documents(profile, target_domain)
    apart = found[~found.family.isin(measured.family)]
    return apart.head(max(1, round(SHARE * len(forget))))


# ------------------------------------------------------------------------------------- relearning


def learning_rates(profile: Profile) -> list[float]:
    """Return the rates of relearning, from small to large."""
    return [share * profile.unlearning.learning_rate for share in RATES]


def relearned(profile: Profile, model: Model, target_domain: str, replicate: int) -> Artifact:
    """Return a stored model trained on a little text, from every source and at every rate.

    Args:
        profile: says the documents, and the batch.
        model: that is attacked.
        target_domain: whose forget set is measured.
        replicate: the seed of the order of what is read.

    Returns:
        rows.parquet: source, learning_rate, step (0 is the model as it was), and the columns of
        `evaluation.measure_briefly`.
    """
    settings = {
        "model": model.path.name,
        "target_domain": target_domain,
        "share": SHARE,
        "sources": list(SOURCES),
        "rates": learning_rates(profile),
        "batch": profile.unlearning.batch,
        "marks": list(MARKS),
        "seed": replicate,
    }
    make = partial(_make_relearned, profile, model, target_domain, replicate)
    return Artifact("relearned", VERSIONS["relearned"], settings, make)


def _make_relearned(
    profile: Profile, model: Model, target_domain: str, replicate: int, folder: Path
) -> None:
    from unlearn_utils.engine import attacks, evaluation, training
    from unlearn_utils.engine.models import load

    pad_id = tokenizer(profile).pad_token_id
    measured = forget_documents(profile, target_domain)
    batch = profile.unlearning.batch
    frames = []
    with on_threads(1), _collected_before():
        before = evaluation.measure_briefly(load(model.folder()), measured, pad_id)
        for source in SOURCES:
            read = list(source_documents(profile, target_domain, source).ids)
            for rate in learning_rates(profile):
                marks = attacks.Marks(measured, pad_id, MARKS)
                marks.frames.append(before.assign(step=0))
                job = training.Job(
                    method=attacks.RELEARNING,
                    forget=read,
                    retain=[],
                    recipe=attacks.recipe(rate, MARKS[-1], batch, len(read)),
                    pad_id=pad_id,
                    seed=replicate,
                    nested=True,
                )
                training.unlearn(load(model.folder()), job, _execution(profile, marks))
                frames.append(marks.rows().assign(source=source, learning_rate=rate))
    pd.concat(frames, ignore_index=True).to_parquet(folder / "rows.parquet")


@contextmanager
def _collected_before() -> Iterator[None]:
    """Spare the garbage collector, inside, all that is there already.

    The Trainer collects after every run, which looked through every module each time: a tenth of
    the time.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _execution(profile: Profile, marks: Marks) -> Execution:
    """Return how a run is executed: a published model reads a few documents at a time."""
    from unlearn_utils.engine import training

    micro_batch, recompute = None, False
    if profile.hub:
        micro_batch = math.gcd(profile.unlearning.batch, profile.hub.micro_batch)
        recompute = profile.hub.checkpointing
    return training.Execution(
        watch=marks, watched=marks.steps[1:], micro_batch=micro_batch, recompute_layers=recompute
    )


# --------------------------------------------------------------------------------------- rounding


def rounded(profile: Profile, model: Model, target_domain: str) -> Artifact:
    """Return a stored model whose linear layers have fewer bits, as `attacks.round_weights`.

    Returns:
        rows.parquet: bits (`WHOLE`: not rounded), and the columns of `evaluation.measure_briefly`
        for the report halves of the forget set and of general text.
    """
    settings = {"model": model.path.name, "target_domain": target_domain, "bits": list(BITS)}
    make = partial(_make_rounded, profile, model, target_domain)
    return Artifact("rounded", VERSIONS["rounded"], settings, make)


def _make_rounded(profile: Profile, model: Model, target_domain: str, folder: Path) -> None:
    from unlearn_utils.engine import attacks, evaluation
    from unlearn_utils.engine.models import load

    general = tokenized(profile, [("general", SPLITS[-1])])
    documents = pd.concat(
        [forget_documents(profile, target_domain), selection.half(general, selection.REPORT)],
        ignore_index=True,
    )
    frames = []
    for bits in (WHOLE, *BITS):
        loaded = load(model.folder())
        if bits != WHOLE:
            attacks.round_weights(loaded, bits)
        with on_threads(1):
            rows = evaluation.measure_briefly(loaded, documents, tokenizer(profile).pad_token_id)
        frames.append(rows.assign(bits=bits))
    pd.concat(frames, ignore_index=True).to_parquet(folder / "rows.parquet")


# ---------------------------------------------------------------------------------------- prefixes


def continued(profile: Profile, model: Model, target_domain: str) -> Artifact:
    """Return how a stored model goes on after the first tokens of each forget document.

    Returns:
        rows.parquet: of each prefix, as `attacks.continued`.
    """
    settings = {
        "model": model.path.name,
        "target_domain": target_domain,
        "prefixes": list(PREFIXES),
        "length": LENGTH,
    }
    make = partial(_make_continued, profile, model, target_domain)
    return Artifact("prefixed", VERSIONS["prefixed"], settings, make)


def _make_continued(profile: Profile, model: Model, target_domain: str, folder: Path) -> None:
    from unlearn_utils.engine import attacks
    from unlearn_utils.engine.models import load

    loaded = load(model.folder())
    measured = forget_documents(profile, target_domain)
    pad_id = tokenizer(profile).pad_token_id
    with on_threads(1):
        frames = []
        for prefix in PREFIXES:
            frames.append(attacks.continued(loaded, measured, prefix, LENGTH, pad_id))
    pd.concat(frames, ignore_index=True).to_parquet(folder / "rows.parquet")
