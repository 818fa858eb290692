"""Tokenizer, token ids of documents, and batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from unlearn_utils.core.losses import IGNORED

SHORTEST = 5  # tokens of a last chunk; shorter ones are dropped, as the released code of arXiv 2402.15159 does
END, PAD = "<|endoftext|>", "<|pad|>"  # END also opens each document, so that its first token is predicted too


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of exactly `vocabulary` tokens, two of them special. Train it on retain text only.

    Raises ValueError if the texts are too short for so many merges.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[END, PAD], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocabulary:
        raise ValueError(
            f"tokenizer: the text gives {tokenizer.get_vocab_size()} tokens, not {vocabulary}; use more text or a smaller vocabulary"
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=PAD)


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], context: int) -> list[list[int]]:
    """Token ids of each document: the opening token and the document's first `context - 1` tokens (one chunk a document).

    Raises ValueError for a document without a token, naming its place.
    """
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    found = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    for i, ids in enumerate(found):
        if len(bos) + len(ids) < 2:
            raise ValueError(f"document {i} has {len(ids)} tokens; at least 2 are needed to predict one")
    return [(bos + ids)[:context] for ids in found]


def cut(ids: Sequence[int], context: int) -> list[list[int]]:
    """Token ids of a document as consecutive chunks of `context`; a last chunk under `SHORTEST` tokens, even the only one, is dropped."""
    chunks = [list(ids[start : start + context]) for start in range(0, len(ids), context)]
    return chunks if chunks and len(chunks[-1]) >= SHORTEST else chunks[:-1]


def collate(rows: Sequence[Sequence[int]], pad_id: int, labels: Sequence[Sequence[int]] | None = None) -> dict[str, Tensor]:
    """One right-padded batch: `input_ids`, `attention_mask`, `labels` (-100 where padded; the ids themselves if None)."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad_id)
    targets = torch.full((len(rows), longest), IGNORED)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for i, (row, target) in enumerate(zip(rows, rows if labels is None else labels, strict=True)):
        ids[i, : len(row)], targets[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), torch.tensor(target), 1
    return {"input_ids": ids, "attention_mask": mask, "labels": targets}
