"""Measurements of a model: one row for each document, which the model reads once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from unlearn_utils.core import audit, fused, losses, membership, metrics
from unlearn_utils.data import tokens
from unlearn_utils.engine import architecture, models

EXAMINED = 64  # tokens of a document, on which the model's head is looked at; with full logits
PROMPTS = 64  # that are continued at a time

# head, hidden states (n, d) and true tokens (n,) of some positions -> columns, each (n,)
PositionScores = Callable[[fused.Head, Tensor, Tensor], tuple[Tensor, ...]]


# --------------------------------------------------------------------------------- measurements


def measure(
    model: nn.Module,
    documents: pd.DataFrame,
    tokenizer: PreTrainedTokenizerBase,
    half: bool | None = None,
    seen: Callable[[], None] = lambda: None,
) -> pd.DataFrame:
    """Return one row per document: its own columns less text and `ids`, and its measurements.

    How the model comes to its logits is looked at first, on the longest document.

    Args:
        documents: a column `ids` (token ids) and any others; `question`, if there is one, says how
            many of the first are not counted.
        half: as in `token_scores`.
        seen: is called after each document.

    Returns:
        tokens (predicted), nll (summed, nats), correct (tokens whose argmax is true), the columns
        of `membership.SCORES` (higher = more member-like), extraction (strength).

    Raises:
        ValueError: the model is no causal language model.
    """
    longest = max(documents.ids, key=len)
    fused.examine(model, torch.tensor(longest[:EXAMINED]))
    rows = []
    ids, labels = list(documents.ids), labels_of(documents)
    for scores in token_scores(model, ids, tokenizer, half=half, labels=labels):
        rows.append(_row(scores))
        seen()
    return _beside(documents, rows)


def measure_margins(
    model: nn.Module, documents: pd.DataFrame, tokenizer: PreTrainedTokenizerBase
) -> pd.DataFrame:
    """Return rows as `measure` in float32, with the margin of each document (`audit.margin`)."""
    rows = []
    ids, labels = list(documents.ids), labels_of(documents)
    for scores in token_scores(model, ids, tokenizer, half=False, labels=labels):
        rows.append({**_row(scores), "margin": audit.margin(scores.log_probs)})
    return _beside(documents, rows)


def measure_briefly(
    model: nn.Module, documents: pd.DataFrame, pad_id: int, batch: int = 16
) -> pd.DataFrame:
    """Return rows as `measure`, with tokens, nll, correct, min_k_40 and extraction alone.

    The model runs in this machine's training precision. It is for paths, where it is a third of
    the cost and moves a document's mean NLL by about 0.001.
    """
    half = models.half_precision()
    rows = []
    ids, labels = list(documents.ids), labels_of(documents)
    for log_probs, correct in _read(model, ids, labels, pad_id, batch, _hits, half):
        wide = log_probs.astype(np.float64)
        row = {
            "tokens": len(wide),
            "nll": -wide.sum(),
            "correct": int(correct.sum()),
            "min_k_40": membership.min_k(wide, 0.4),
            "extraction": metrics.extraction_strength(correct),
        }
        rows.append(row)
    return _beside(documents, rows)


def token_scores(
    model: nn.Module,
    documents: Sequence[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    batch: int = 8,
    half: bool | None = None,
    labels: Sequence[list[int]] | None = None,
) -> Iterator[membership.TokenScores]:
    """Yield what the model says of each document, in order.

    Logits are in float32, and made a few rows at a time.

    Args:
        batch: documents at a time.
        half: products are in bfloat16; else in float32, whatever type the weights have in memory.
            None: in bfloat16 on a GPU.
        labels: of each document, of which -100 is not counted; None: its tokens.
    """
    labels = labels or documents
    if half is None:
        half = _device(model).type != "cpu"
    found = _read(model, documents, labels, tokenizer.pad_token_id, batch, _distribution, half)
    for own, columns in zip(labels, found, strict=True):
        counted = [label for label in own if label != losses.IGNORED]
        text = tokenizer.decode(counted, skip_special_tokens=True)
        yield membership.TokenScores(*columns, text)


def _row(scores: membership.TokenScores) -> dict:
    """Return the measurements of one document, as `measure` names them."""
    row = {
        "tokens": len(scores.log_probs),
        "nll": -float(scores.log_probs.astype(np.float64).sum()),
        "correct": int(scores.correct.sum()),
    }
    for score in membership.SCORES.values():
        row[score.column] = score.function(scores)
    row["extraction"] = metrics.extraction_strength(scores.correct)
    return row


def labels_of(documents: pd.DataFrame) -> list[list[int]]:
    """Return the labels of each document: its tokens, but -100 where they are of a question."""
    if "question" not in documents:
        return list(documents.ids)
    pairs = zip(documents.ids, documents.question, strict=True)
    return [tokens.answer_labels(ids, question) for ids, question in pairs]


def _beside(documents: pd.DataFrame, rows: Sequence[Mapping]) -> pd.DataFrame:
    """Return the documents' own columns less text and `ids`, with measurements beside them."""
    own = documents.drop(columns=["ids", "text"], errors="ignore").reset_index(drop=True)
    return pd.concat([own, pd.DataFrame(rows)], axis=1)


# ------------------------------------------------------------------------------ reading documents


@torch.no_grad()
def _read(
    model: nn.Module,
    documents: Sequence[list[int]],
    labels: Sequence[list[int]],
    pad_id: int,
    batch: int,
    scores: PositionScores,
    half: bool,
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield the columns that `scores` gives of each document's predicted tokens.

    Args:
        labels: of each document, as `tokens.collate` takes them.
        batch: documents at a time.
        half: whether products are in bfloat16.
    """
    model.eval()
    device = _device(model)
    for start in range(0, len(documents), batch):
        some = slice(start, start + batch)
        inputs = tokens.collate(documents[some], pad_id, labels[some], device)
        mask = losses.predicted_mask(inputs["labels"])
        targets = inputs["labels"][:, 1:][mask]
        products = widened(model)
        if half:  # a weight is read once, so its narrow copy need not be kept
            products = torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
        with products:
            hidden = fused.hidden_states(model, inputs["input_ids"], inputs["attention_mask"])
            head = fused.head_of(model)
            head = head.to(fused.product_dtype(hidden, head))  # once, not for each chunk
            columns = _in_chunks(head, hidden[:, :-1][mask], targets, scores)
        ends = mask.sum(1).cumsum(0).cpu()[:-1]
        by_document = [np.split(column.cpu().numpy(), ends) for column in columns]
        yield from zip(*by_document, strict=True)


def _in_chunks(
    head: fused.Head, hidden: Tensor, targets: Tensor, scores: PositionScores
) -> list[Tensor]:
    """Return the columns that `scores` gives, computed for a few positions at a time."""
    parts = []
    size = fused.chunk_rows(fused.logit_count(hidden, head), hidden.device)
    for rows in fused.chunks(len(hidden), size):
        parts.append(scores(head, hidden[rows], targets[rows]))
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def _distribution(head: fused.Head, hidden: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """Return the first four columns of `membership.TokenScores`."""
    log_p = fused.head_logits(hidden, head).float().log_softmax(-1)
    p = log_p.softmax(-1)
    mu = (p * log_p).sum(-1)
    variance = (p * log_p.square()).sum(-1) - mu.square()
    sigma = variance.clamp(min=0).sqrt()
    true = log_p.gather(1, targets[:, None])[:, 0]
    return true, mu, sigma, log_p.argmax(-1) == targets


def _hits(head: fused.Head, hidden: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """Return the log-probability of the true tokens, and whether each is the likeliest."""
    logits = fused.head_logits(hidden, head).float()
    true = logits.gather(1, targets[:, None])[:, 0]
    return true - logits.logsumexp(-1), logits.argmax(-1) == targets


# -------------------------------------------------------------------------------------- precision


@contextmanager
def widened(model: nn.Module) -> Iterator[None]:
    """Let a model compute in float32, inside, also where its weights have 16 bits in memory.

    A layer's weights are widened while it runs, all others the whole time. So the result is as if
    the model had been loaded in float32, for less memory. Constants that loading rounded, such as
    Gemma's scale of embeddings, stay as they are.
    """
    layers = architecture.decoder_layers(model)
    in_layers = set()
    hooks = []
    for layer in layers:
        own = _narrow(layer)
        in_layers.update(id(weight) for weight, _ in own)
        hooks.append(layer.register_forward_pre_hook(lambda *_, own=own: _widen(own)))
        hooks.append(layer.register_forward_hook(lambda *_, own=own: _narrow_again(own)))
    others = [(weight, dtype) for weight, dtype in _narrow(model) if id(weight) not in in_layers]
    _widen(others)
    try:
        yield
    finally:
        _narrow_again(others)
        for hook in hooks:
            hook.remove()


def _narrow(module: nn.Module) -> list[tuple[Tensor, torch.dtype]]:
    """Return the weights and buffers of fewer than 32 bits, and their types."""
    found = []
    for weight in (*module.parameters(), *module.buffers()):
        if weight.is_floating_point() and weight.itemsize < torch.float32.itemsize:
            found.append((weight, weight.dtype))
    return found


def _widen(weights: Sequence[tuple[Tensor, torch.dtype]]) -> None:
    """Put weights of `_narrow` in float32."""
    for weight, _ in weights:
        weight.data = weight.data.float()


def _narrow_again(weights: Sequence[tuple[Tensor, torch.dtype]]) -> None:
    """Give weights of `_narrow` their types again."""
    for weight, dtype in weights:
        weight.data = weight.data.to(dtype)


def _device(model: nn.Module) -> torch.device:
    """Return where a model's weights are."""
    return next(model.parameters()).device


# ----------------------------------------------------------------------------------- continuations


@torch.no_grad()
def greedy_continuations(
    model: nn.Module, prompts: Sequence[list[int]], length: int, pad_id: int
) -> list[list[int]]:
    """Return the `length` tokens that the model finds likeliest after each prompt, one by one.

    The end token is never chosen, so that every continuation is as long.

    Raises:
        ValueError: there is no prompt, or prompts differ in length.
    """
    if len(set(map(len, prompts))) != 1:
        raise ValueError("greedy_continuations: no prompts, or prompts of unequal lengths")
    found = []
    for start in range(0, len(prompts), PROMPTS):
        ids = torch.tensor(prompts[start : start + PROMPTS], device=_device(model))
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            pad_token_id=pad_id,
            max_new_tokens=length,
            min_new_tokens=length,
        )
        found += out[:, ids.shape[1] :].tolist()
    return found
