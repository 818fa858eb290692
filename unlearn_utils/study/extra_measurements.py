"""A further look at stored models: what they write, know, and how far from retraining they are.

Each look is an artifact that holds rows.parquet.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from unlearn_utils.cache.store import Artifact
from unlearn_utils.cache.workers import on_threads
from unlearn_utils.profiles import Profile
from unlearn_utils.study import selection
from unlearn_utils.study.study_documents import measured_parts, tokenized, tokenizer
from unlearn_utils.study.versions import VERSIONS

PROMPT = 48  # tokens of a document that a model is given
LENGTH = 32  # tokens that it then writes
# Of each downstream task (of each subject of MMLU) its first questions. So many are enough to know
# an accuracy to about 0.04.
QUESTIONS = 500


# ------------------------------------------------------------------------------------ continuations


def greedy_continuations(profile: Profile, model: Artifact, target_domain: str) -> Artifact:
    """Return each forget document of a domain as a stored model continues it.

    Its first `PROMPT` tokens are continued greedily for `LENGTH` tokens; documents that are shorter
    than both together are left out.

    Returns:
        rows.parquet: id, family, rank, target_domain, prompt, document (the true continuation),
        text, and rouge_l and exact_prefix (tokens) of the text against the document.
    """
    settings = {
        "model": model.path.name,
        "target_domain": target_domain,
        "prompt": PROMPT,
        "length": LENGTH,
    }
    make = partial(_make_greedy_continuations, profile, model, target_domain)
    return Artifact("continued", VERSIONS["continued"], settings, make)


def _make_greedy_continuations(
    profile: Profile, model: Artifact, target_domain: str, folder: Path
) -> None:
    from unlearn_utils.core import metrics
    from unlearn_utils.engine import evaluation, models

    model_tokenizer = tokenizer(profile)
    rows = tokenized(profile, [(target_domain, "forget")])
    rows = rows[rows.ids.map(len) >= PROMPT + LENGTH]
    prompts = [ids[:PROMPT] for ids in rows.ids]
    true = [ids[PROMPT : PROMPT + LENGTH] for ids in rows.ids]
    with on_threads(1):
        written = evaluation.greedy_continuations(
            models.load(model.folder()), prompts, LENGTH, model_tokenizer.pad_token_id
        )
    table = rows[["id", "family", "rank"]].assign(
        target_domain=target_domain,
        prompt=[model_tokenizer.decode(ids[1:]) for ids in prompts],  # without the opening token
        document=[model_tokenizer.decode(ids) for ids in true],
        text=[model_tokenizer.decode(ids) for ids in written],
        rouge_l=list(map(metrics.rouge_l, written, true)),
        exact_prefix=list(map(metrics.exact_prefix, written, true)),
    )
    table.to_parquet(folder / "rows.parquet")


# ------------------------------------------------------------------------- distance from retraining


def kl_from_retrained(
    profile: Profile, model: Artifact, retrained: Artifact, target_domain: str
) -> Artifact:
    """Return KL(P_retrained || P_model) of each document of the report half, in nats a token.

    Documents are the forget and the approximate ones of the domain, and the general ones.

    Returns:
        rows.parquet: id, family, rank, split, target_domain, kl.
    """
    settings = {
        "model": model.path.name,
        "retrained": retrained.path.name,
        "target_domain": target_domain,
    }
    make = partial(_make_kl_from_retrained, profile, model, retrained, target_domain)
    return Artifact("diverged", VERSIONS["diverged"], settings, make)


def _make_kl_from_retrained(
    profile: Profile, model: Artifact, retrained: Artifact, target_domain: str, folder: Path
) -> None:
    from unlearn_utils.engine import evaluation, models

    parts = [part for part in measured_parts([target_domain]) if part[1] != "retain"]
    rows = selection.half(tokenized(profile, parts), selection.REPORT)
    pad_id = tokenizer(profile).pad_token_id
    with on_threads(1):
        ours = models.load(model.folder())
        truth = models.load(retrained.folder())
        found = evaluation.kl_divergences(ours, truth, list(rows.ids), pad_id)
    table = rows[["id", "family", "rank", "split"]].assign(target_domain=target_domain, kl=found)
    table.to_parquet(folder / "rows.parquet")


# --------------------------------------------------------------------------------- downstream tasks


def task_answers(profile: Profile, model: Artifact) -> Artifact:
    """Return a stored model's answers to the profile's tasks of lm-evaluation-harness.

    Of each task the first `QUESTIONS` are asked.

    Returns:
        rows.parquet, as `downstream.answers` gives them.
    """
    settings = {
        "model": model.path.name,
        "tasks": list(profile.tasks),
        "questions": QUESTIONS,
    }
    make = partial(_make_task_answers, profile, model)
    return Artifact("answered", VERSIONS["answered"], settings, make)


def _make_task_answers(profile: Profile, model: Artifact, folder: Path) -> None:
    from unlearn_utils.engine import downstream, models

    tasks = downstream.load(profile.tasks)
    loaded = models.load(model.folder())
    answers = downstream.answers(loaded, tokenizer(profile), tasks, QUESTIONS)
    answers.to_parquet(folder / "rows.parquet")


# ------------------------------------------------------------------------------------- all together


def rows_of(artifacts: Sequence[Artifact]) -> pd.DataFrame:
    """Return the rows of several artifacts together."""
    frames = [pd.read_parquet(artifact.folder() / "rows.parquet") for artifact in artifacts]
    return pd.concat(frames, ignore_index=True)
