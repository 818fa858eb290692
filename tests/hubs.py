"""A folder in the place of the hub (`UNLEARN_HUB`): tiny models and small datasets.

They have the pinned names, and the formats of what is published. The model of the profile paper is
random. That of the profile gpu has memorised members, so that there is something to unlearn. Of the
two of the profile hubble one has.
"""

import gzip
import json
from functools import cache
from pathlib import Path

import pandas as pd
import torch
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from unlearn_utils import profiles
from unlearn_utils.data import corpus, hub, tokens

SOURCES = (("arxiv", "arxiv"), ("github", "github"), ("pile_cc", "general"))  # of MIMIR
MEMBERS, OTHERS = 48, 24  # texts of a source that are members, and that are none
MEMORISED = 32  # of the members, the first
READ = 128  # tokens of a text, its first, that are memorised
STEPS = 150  # of memorising
INSERTIONS = (1, 4, 16)  # how often passages of Hubble are inserted
SHORT = 80  # tokens of a passage, its first, that are memorised: as many as are continued
INSERTED, HELD_OUT = 24, 20  # passages of a kind
KINDS = {"gutenberg_popular": "arxiv", "gutenberg_unpopular": "github", "general": "general"}


def texts(domain: str, n: int) -> list[str]:
    """Return n passages of the embedded corpus, from its retain text."""
    return _texts(domain)[:n]


@cache
def _texts(domain: str) -> list[str]:
    return list(corpus.load("embedded", domain)["retain"]["text"])


def mirror(folder: Path, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> Path:
    """Write what the profiles gpu and paper read below `folder`, and return it."""
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LlamaConfig(**shape, num_key_value_heads=1, max_position_embeddings=4096)
        llama = LlamaForCausalLM(config).to(torch.bfloat16)
        config = GPTNeoXConfig(**shape, max_position_embeddings=2048)
        neox = GPTNeoXForCausalLM(config)
        members = []
        for _, domain in SOURCES:
            members += texts(domain, MEMORISED)
        memorise(neox, tokenizer, members)
        neox = neox.to(torch.float16)
    for profile, model in ((profiles.PAPER, llama), (profiles.GPU, neox)):
        model.save_pretrained(folder / profile.hub.name)
        tokenizer.save_pretrained(folder / profile.hub.name)
    mimir(folder / hub.MIMIR / "cache_100_200_1000_512")
    paper(folder / hub.PAPER)
    return folder


def memorise(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    found: list[str],
    context: int = READ,
    steps: int = STEPS,
) -> None:
    """Train a model in place on the first tokens of texts, in random batches of eight."""
    ids = tokens.encode(tokenizer, found, context)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
    for _ in range(steps):
        batch = [ids[number] for number in torch.randperm(len(ids))[:8]]
        model(**tokens.collate(batch, tokenizer.pad_token_id)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def mimir(folder: Path) -> None:
    """Write a JSON text a line: members in train, non-members in test."""
    for source, domain in SOURCES:
        found = texts(domain, MEMBERS + OTHERS)
        for side, part in (("train", found[:MEMBERS]), ("test", found[MEMBERS:])):
            (folder / side).mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(text) + "\n" for text in part]
            (folder / side / f"{source}_ngram_13_0.8.jsonl").write_text("".join(lines))


def paper(folder: Path) -> None:
    """Write parquet tables of one column: text, in the general domain content.

    The first forget document has more than one chunk of 4,096 tokens.
    """
    for domain, column in (("arxiv", "text"), ("github", "text"), ("general", "content")):
        found = texts(domain, 48)
        splits = corpus.SPLITS[domain]
        (folder / domain).mkdir(parents=True, exist_ok=True)
        for i, split in enumerate(splits):
            part = found[i * 48 // len(splits) : (i + 1) * 48 // len(splits)]
            if split == "forget":
                part = [" ".join(part[:12]), *part[12:]]
            file = folder / domain / f"{split}-00000-of-00001.parquet"
            pd.DataFrame({column: part}).to_parquet(file)


def hubble(folder: Path, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> Path:
    """Write what the profile hubble reads below `folder`, and return it.

    Both models are trained alike on other text, and `perturbed` on what is inserted, too.
    """
    inserted = []
    for kind, domain in KINDS.items():
        rows = passages(domain)
        write_passages(folder, kind, rows)
        for text, number in rows:
            inserted += [text] * number
    pair = profiles.HUBBLE.hub
    others = texts("general", 100)[INSERTED + HELD_OUT :]
    for name, read in ((pair.name, others + inserted), (pair.retrained, others)):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=2048,
                tie_word_embeddings=False,
            )
            model = LlamaForCausalLM(config)
            memorise(model, tokenizer, read, SHORT, steps=80)
        model.to(torch.bfloat16).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def passages(domain: str) -> list[tuple[str, int]]:
    """Return texts and how often each is inserted; the last are held out."""
    found = texts(domain, INSERTED + HELD_OUT)
    numbers = [INSERTIONS[place % len(INSERTIONS)] for place in range(INSERTED)]
    return list(zip(found, numbers + [0] * HELD_OUT, strict=True))


def write_passages(folder: Path, kind: str, rows: list[tuple[str, int]]) -> Path:
    """Write a JSON object a line, with `text` and `meta`, a JSON string; return the file."""
    name = hub.PASSAGES[kind]
    file = folder / name / f"{name.split('/')[1]}_nodup.jsonl.gz"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for text, number in rows:
        meta = json.dumps({"duplicates": number, "title": "A book"})
        lines.append(json.dumps({"text": text, "meta": meta}) + "\n")
    file.write_bytes(gzip.compress("".join(lines).encode()))
    return file
