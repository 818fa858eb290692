"""A further look at stored models: what they write, how far they are from retraining. Each look is a step."""

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

PROMPT, LENGTH = 48, 32  # tokens of a document that a model is given, and tokens that it then writes
QUESTIONS = 500  # of each downstream task (of each subject of MMLU), its first: an accuracy is then known to about 0.04


def greedy_continuations(profile: Profile, model: Artifact, domain: str) -> Artifact:
    """Each forget document of a domain, its first `PROMPT` tokens continued greedily by a stored model for `LENGTH` tokens.

    rows.parquet: id, family, rank, run, prompt, document (the true continuation), text, and rouge_l and exact_prefix (tokens) against it.
    """
    settings = {"model": model.path.name, "domain": domain, "prompt": PROMPT, "length": LENGTH}
    return Artifact("continued", VERSIONS["continued"], settings, partial(_make_greedy_continuations, profile, model, domain))


def _make_greedy_continuations(profile: Profile, model: Artifact, domain: str, folder: Path) -> None:
    from unlearn_utils.core import metrics
    from unlearn_utils.engine import evaluation, models

    tok, rows = tokenizer(profile), tokenized(profile, [(domain, "forget")])
    rows = rows[rows.ids.map(len) >= PROMPT + LENGTH]
    truth = [ids[PROMPT : PROMPT + LENGTH] for ids in rows.ids]
    with on_threads(1):
        found = evaluation.greedy_continuations(models.load(model.folder()), [ids[:PROMPT] for ids in rows.ids], LENGTH, tok.pad_token_id)
    prompts, known, texts = (list(map(tok.decode, part)) for part in ([ids[1:PROMPT] for ids in rows.ids], truth, found))
    pairs = list(zip(found, truth, strict=True))
    scores = {"rouge_l": [metrics.rouge_l(*p) for p in pairs], "exact_prefix": [metrics.exact_prefix(*p) for p in pairs]}
    table = rows[["id", "family", "rank"]].assign(target_domain=domain, prompt=prompts, document=known, text=texts, **scores)
    table.to_parquet(folder / "rows.parquet")


def kl_from_retrained(profile: Profile, model: Artifact, retrained: Artifact, domain: str) -> Artifact:
    """KL(P_retrained || P_model) of each document of the report half: forget, approximate and general; rows.parquet, column kl."""
    settings = {"model": model.path.name, "retrained": retrained.path.name, "domain": domain}
    return Artifact("diverged", VERSIONS["diverged"], settings, partial(_make_kl_from_retrained, profile, model, retrained, domain))


def _make_kl_from_retrained(profile: Profile, model: Artifact, retrained: Artifact, domain: str, folder: Path) -> None:
    from unlearn_utils.engine import evaluation, models

    rows = tokenized(profile, [p for p in measured_parts([domain]) if p[1] != "retain"])
    rows = selection.half(rows, selection.REPORT)
    with on_threads(1):
        both = [models.load(step.folder()) for step in (model, retrained)]
        found = evaluation.kl_divergences(*both, list(rows.ids), tokenizer(profile).pad_token_id)
    rows[["id", "family", "rank", "split"]].assign(target_domain=domain, kl=found).to_parquet(folder / "rows.parquet")


def task_answers(profile: Profile, model: Artifact) -> Artifact:
    """Answers of a stored model to the profile's tasks of lm-evaluation-harness, the first `QUESTIONS` of each; rows.parquet as
    `downstream.answers` gives them."""
    settings = {"model": model.path.name, "tasks": list(profile.tasks), "questions": QUESTIONS}
    return Artifact("answered", VERSIONS["answered"], settings, partial(_make_task_answers, profile, model))


def _make_task_answers(profile: Profile, model: Artifact, folder: Path) -> None:
    from unlearn_utils.engine import downstream, models

    tasks = downstream.load(profile.tasks)
    downstream.answers(models.load(model.folder()), tokenizer(profile), tasks, QUESTIONS).to_parquet(folder / "rows.parquet")


def rows_of(steps: Sequence[Artifact]) -> pd.DataFrame:
    """The rows of several steps together."""
    return pd.concat([pd.read_parquet(step.folder() / "rows.parquet") for step in steps], ignore_index=True)
