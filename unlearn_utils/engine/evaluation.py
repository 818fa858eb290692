"""A model and documents in, one row of measurements per document out: the model reads each document once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from unlearn_utils.core import fused, losses, membership, metrics
from unlearn_utils.data import tokens
from unlearn_utils.engine import models

BATCH = 64  # prompts that are continued at a time
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 1.0)  # k of Min-K% Prob; the paper's released code uses 0.3 to 0.6 and 1


class Scores(NamedTuple):
    """Of one document, over its n predicted tokens: log-probability of the true token; mean and standard deviation of log p under p;
    whether the true token is the likeliest."""

    log_probs: np.ndarray
    mu: np.ndarray
    sigma: np.ndarray
    correct: np.ndarray


@torch.no_grad()
def token_scores(model: nn.Module, documents: Sequence[list[int]], pad_id: int, batch: int = 8) -> Iterator[Scores]:
    """`Scores` of each document, in order; float32 on a CPU, bfloat16 products on a GPU, logits a few rows at a time."""
    model.eval()
    head, device = fused.head_of(model), next(model.parameters()).device
    for start in range(0, len(documents), batch):
        sides = {k: v.to(device) for k, v in tokens.collate(documents[start : start + batch], pad_id).items()}
        mask = losses.predicted_mask(sides["labels"])
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
            hidden = fused.hidden_states(model, sides["input_ids"], sides["attention_mask"])[:, :-1][mask]
            found = _row_scores(hidden, head, sides["labels"][:, 1:][mask])
        ends = mask.sum(1).cumsum(0).cpu()[:-1]
        yield from (Scores(*parts) for parts in zip(*(np.split(column.cpu().numpy(), ends) for column in found), strict=True))


def _row_scores(hidden: Tensor, head: fused.Head, targets: Tensor) -> list[Tensor]:
    """The four columns of `Scores` for hidden states (n, d) and true tokens (n,)."""
    parts = []
    for few, true_tokens in _chunks(hidden, targets, len(head.weight)):
        log_p = fused.head_logits(few, head).float().log_softmax(-1)
        p = log_p.softmax(-1)
        mu = (p * log_p).sum(-1)
        variance = (p * log_p.square()).sum(-1) - mu.square()
        true = log_p.gather(1, true_tokens[:, None])[:, 0]
        parts.append((true, mu, variance.clamp(min=0).sqrt(), log_p.argmax(-1) == true_tokens))
    return [torch.cat(column) for column in zip(*parts, strict=True)]


@torch.no_grad()
def measure_briefly(model: nn.Module, documents: pd.DataFrame, pad_id: int, batch: int = 16) -> pd.DataFrame:
    """As `measure`, but only tokens, nll, correct and min_k_40, and the model runs in this machine's training precision: for grids, where
    it is a third of the cost and moves a document's mean NLL by about 0.001."""
    model.eval()
    head, found = fused.head_of(model), []
    with torch.autocast(model.device.type, torch.bfloat16, enabled=models.half_precision()):
        for start in range(0, len(documents), batch):
            sides = {k: v.to(model.device) for k, v in tokens.collate(list(documents.ids[start : start + batch]), pad_id).items()}
            mask, targets = losses.predicted_mask(sides["labels"]), sides["labels"][:, 1:]
            hidden = fused.hidden_states(model, sides["input_ids"], sides["attention_mask"])[:, :-1][mask]
            parts = [_true_scores(h, head, t) for h, t in _chunks(hidden, targets[mask], len(head.weight))]
            log_probs, correct = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
            ends = mask.sum(1).cumsum(0).cpu()[:-1]
            found += zip(np.split(log_probs.astype(np.float64), ends), np.split(correct, ends), strict=True)
    rows = [(len(p), -p.sum(), int(c.sum()), membership.min_k(p, 0.4)) for p, c in found]
    kept = documents.drop(columns=["ids", "text"], errors="ignore").reset_index(drop=True)
    return pd.concat([kept, pd.DataFrame(rows, columns=["tokens", "nll", "correct", "min_k_40"])], axis=1)


def _chunks(hidden: Tensor, targets: Tensor, vocabulary: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Hidden states and true tokens, a few rows at a time."""
    for rows in fused.chunks(len(hidden), fused.chunk_rows(vocabulary, hidden.device)):
        yield hidden[rows], targets[rows]


def _true_scores(hidden: Tensor, head: fused.Head, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of the true tokens (n,), and whether each is the likeliest."""
    logits = fused.head_logits(hidden, head).float()
    true = logits.gather(1, targets[:, None])[:, 0]
    return true - logits.logsumexp(-1), logits.argmax(-1) == targets


def measure(model: nn.Module, documents: pd.DataFrame, tokenizer: PreTrainedTokenizerBase) -> pd.DataFrame:
    """One row per document: its own columns less text and `ids`, and its measurements.

    documents: a column `ids` (token ids) and any others. Adds tokens (predicted), nll (summed, nats), correct (tokens whose argmax is
    true), min_k_20 ... min_k_100, min_k_plus_20 ..., zlib, extraction (strength). Higher scores = more member-like.
    """
    rows = []
    for ids, scores in zip(documents.ids, token_scores(model, list(documents.ids), tokenizer.pad_token_id), strict=True):
        nll = -float(scores.log_probs.astype(np.float64).sum())
        row = {"tokens": len(scores.log_probs), "nll": nll, "correct": int(scores.correct.sum())}
        for k in SHARES:
            row[f"min_k_{k:.0%}".rstrip("%")] = membership.min_k(scores.log_probs, k)
            row[f"min_k_plus_{k:.0%}".rstrip("%")] = membership.min_k_plus_plus(scores.log_probs, scores.mu, scores.sigma, k)
        row["zlib"] = membership.zlib_score(nll / row["tokens"], tokenizer.decode(ids, skip_special_tokens=True))
        row["extraction"] = metrics.extraction_strength(scores.correct)
        rows.append(row)
    kept = documents.drop(columns=["ids", "text"], errors="ignore").reset_index(drop=True)
    return pd.concat([kept, pd.DataFrame(rows)], axis=1)


@torch.no_grad()
def kl_divergences(model: nn.Module, reference: nn.Module, documents: Sequence[list[int]], pad_id: int) -> list[float]:
    """KL(P_reference || P_model) of each document, in nats: the mean over its predicted tokens."""
    batches = ({k: v.to(model.device) for k, v in tokens.collate([ids], pad_id).items()} for ids in documents)
    return [float(losses.kl_loss(model, reference, batch)) for batch in batches]


@torch.no_grad()
def greedy_continuations(model: nn.Module, prompts: Sequence[list[int]], length: int, pad_id: int) -> list[list[int]]:
    """The `length` tokens that the model finds likeliest after each prompt, one after the other (greedy decoding).

    The end token is never chosen, so that every continuation is as long. Raises ValueError if there is no prompt or if prompts differ in
    length.
    """
    if len(set(map(len, prompts))) != 1:
        raise ValueError("continued: no prompts, or prompts of unequal lengths")
    device, found = next(model.parameters()).device, []
    for start in range(0, len(prompts), BATCH):
        ids = torch.tensor(prompts[start : start + BATCH], device=device)
        lengths = {"max_new_tokens": length, "min_new_tokens": length}
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=pad_id, **lengths)
        found += out[:, ids.shape[1] :].tolist()
    return found
