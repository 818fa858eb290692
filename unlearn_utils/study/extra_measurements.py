"""A further look at stored models: what they write, where they are surprised, what they know.

Each look is an artifact that holds rows.parquet.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from unlearn_utils.cache.store import Artifact
from unlearn_utils.cache.workers import on_threads
from unlearn_utils.core import membership
from unlearn_utils.data import hub
from unlearn_utils.profiles import Profile
from unlearn_utils.study.study_documents import measured_parts, tokenized, tokenizer
from unlearn_utils.study.versions import VERSIONS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Model = Artifact | hub.Snapshot  # stored, or published

PROMPT = 48  # tokens of a document that a model is given
LENGTH = 32  # tokens that it then writes
# Of each downstream task (of each subject of MMLU) its first questions. So many are enough to know
# an accuracy to about 0.04.
QUESTIONS = 500


# ------------------------------------------------------------------------------------ continuations


def greedy_continuations(profile: Profile, model: Model, target_domain: str) -> Artifact:
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
    profile: Profile, model: Model, target_domain: str, folder: Path
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


# ------------------------------------------------------------------------------------ token losses


def token_losses(profile: Profile, model: Model, target_domain: str, document_id: str) -> Artifact:
    """Return the loss of each token of one document under a stored model, measured in float32.

    The document is of the domain, or a general one, and of a split that is measured.

    Returns:
        rows.parquet: position; token, its text; nll, in nats. The first token opens the document:
        it is not predicted, so its nll is not a number. The texts together are the document's.

    Raises:
        ValueError: there is no such document; when it is made.
    """
    settings = {
        "model": model.path.name,
        "target_domain": target_domain,
        "document": document_id,
    }
    make = partial(_make_token_losses, profile, model, target_domain, document_id)
    return Artifact("token_losses", VERSIONS["token_losses"], settings, make)


def _make_token_losses(
    profile: Profile, model: Model, target_domain: str, document_id: str, folder: Path
) -> None:
    from unlearn_utils.engine import evaluation, models

    rows = tokenized(profile, measured_parts([target_domain]))
    found = list(rows.ids[rows.id == document_id])
    if not found:
        raise ValueError(f"no measured document of {target_domain} has the id {document_id!r}")
    model_tokenizer = tokenizer(profile)
    with on_threads(1):
        (scores,) = evaluation.token_scores(models.load(model.folder()), found, model_tokenizer)
    table = pd.DataFrame(
        {
            "position": range(len(found[0])),
            "token": _texts_of_tokens(model_tokenizer, found[0]),
            "nll": np.concatenate([[np.nan], -scores.log_probs.astype(np.float64)]),
        }
    )
    table.to_parquet(folder / "rows.parquet")


def _texts_of_tokens(model_tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Return the text that each token adds to those before it.

    A character that is divided between tokens stands with the last of them.
    """
    found = []
    before = ""
    for end in range(1, len(ids) + 1):
        text = model_tokenizer.decode(
            ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        if end < len(ids):
            text = text.rstrip("\ufffd")  # stands for a character that is not whole yet
        found.append(text[len(before) :])
        before = text
    return found


# ----------------------------------------------------------------------------------------- margins


def margins(profile: Profile, model: Model, domains: Sequence[str]) -> Artifact:
    """Return the margin of each measured document under a stored model, in float32.

    The documents are those of some domains, and the general ones.

    Returns:
        rows.parquet, as `evaluation.measure_margins`.
    """
    settings = {
        "model": model.path.name,
        "domains": list(domains),
        "retain": profile.corpus.measured,
        "scores": membership.columns(),
    }
    make = partial(_make_margins, profile, model, domains)
    return Artifact("margins", VERSIONS["margins"], settings, make)


def _make_margins(profile: Profile, model: Model, domains: Sequence[str], folder: Path) -> None:
    from unlearn_utils.engine import evaluation, models

    documents = tokenized(profile, measured_parts(domains), profile.corpus.measured)
    with on_threads(1):
        rows = evaluation.measure_margins(
            models.load(model.folder()), documents, tokenizer(profile)
        )
    rows.to_parquet(folder / "rows.parquet")


# --------------------------------------------------------------------------------- downstream tasks


def task_answers(profile: Profile, model: Model) -> Artifact:
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


def _make_task_answers(profile: Profile, model: Model, folder: Path) -> None:
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
