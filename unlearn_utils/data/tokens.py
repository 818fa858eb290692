"""Tokenizer, token ids of documents, and batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from unlearn_utils.core.losses import IGNORED

# tokens of a last chunk; a shorter one is dropped, as the released code of arXiv 2402.15159 does
SHORTEST = 5

END = "<|endoftext|>"  # also opens each document, so that its first token is predicted too
PAD = "<|pad|>"


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of exactly `vocabulary` tokens, two of them special.

    Train it on retain text only.

    Raises:
        ValueError: the texts are too short for so many merges.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    found = tokenizer.get_vocab_size()
    if found != vocabulary:
        raise ValueError(
            f"tokenizer: the text gives {found} tokens, not {vocabulary}; use more text or a "
            "smaller vocabulary"
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=PAD
    )


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], context: int
) -> list[list[int]]:
    """Return the token ids of each document: at most `context`, the opening token first.

    Raises:
        ValueError: a document has no token; the message names its place.
    """
    found = encode_whole(tokenizer, texts)
    for place, ids in enumerate(found):
        if len(ids) < 2:
            own = len(ids) - (tokenizer.bos_token_id is not None)
            raise ValueError(
                f"document {place} has {own} tokens; at least 2 are needed to predict one"
            )
    return [ids[:context] for ids in found]


def encode_whole(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each document, however many they are, the opening token first."""
    opening = []
    if tokenizer.bos_token_id is not None:
        opening = [tokenizer.bos_token_id]
    found = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [opening + ids for ids in found]


def cut(ids: Sequence[int], context: int) -> list[list[int]]:
    """Return a document's token ids as consecutive chunks of `context`.

    A last chunk under `SHORTEST` tokens is dropped, even the only one.
    """
    chunks = [list(ids[start : start + context]) for start in range(0, len(ids), context)]
    if chunks and len(chunks[-1]) < SHORTEST:
        chunks.pop()
    return chunks


def cut_answer(ids: Sequence[int], question: int, context: int) -> list[list[int]]:
    """Return a question with its answer as chunks of at most `context`, each with the question.

    No part of an answer is too short to count.

    question: tokens before the answer, fewer than `context`.
    """
    before, answer = list(ids[:question]), ids[question:]
    room = context - question
    return [before + list(answer[i : i + room]) for i in range(0, len(answer), room)]


def answer_labels(ids: Sequence[int], question: int) -> list[int]:
    """Return the labels of a document of which the first `question` tokens are not counted."""
    return [IGNORED] * question + list(ids[question:])


def collate(
    rows: Sequence[Sequence[int]],
    pad_id: int,
    labels: Sequence[Sequence[int]] | None = None,
    device: torch.device | None = None,
) -> dict[str, Tensor]:
    """Return one batch, padded on the right: tensors (rows, longest row).

    Args:
        rows: token ids of each sequence.
        pad_id: the token that pads.
        labels: of each token, unshifted; None: the tokens themselves.
        device: where the batch goes; None: it stays on the CPU.

    Returns:
        `input_ids`; `attention_mask`, 1 where there is a token; `labels`, -100 where padded.
    """
    if labels is None:
        labels = rows
    shape = (len(rows), max(map(len, rows)))
    ids = torch.full(shape, pad_id)
    targets = torch.full(shape, IGNORED)
    mask = torch.zeros(shape, dtype=torch.long)
    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        targets[i, : len(row)] = torch.tensor(label)
        mask[i, : len(row)] = 1
    return {
        "input_ids": ids.to(device),
        "attention_mask": mask.to(device),
        "labels": targets.to(device),
    }
