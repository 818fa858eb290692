"""A folder in the place of the hub (`UNLEARN_HUB`): tiny random models and small datasets under the pinned names and in their formats."""

import json
from pathlib import Path

import pandas as pd
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from unlearn_utils import profiles
from unlearn_utils.data import corpus, hub


def texts(domain: str, n: int) -> list[str]:
    """n passages of the embedded corpus, from its retain text."""
    return list(corpus.load("embedded", domain)["retain"]["text"][:n])


def mirror(folder: Path, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> Path:
    """Writes what the profiles gpu and paper read below `folder`."""
    shape = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        llama = LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=1, max_position_embeddings=4096)).to(torch.bfloat16)
        neox = GPTNeoXForCausalLM(GPTNeoXConfig(**shape, max_position_embeddings=2048)).to(torch.float16)
    for profile, model in ((profiles.PAPER, llama), (profiles.GPU, neox)):
        model.save_pretrained(folder / profile.hub.name)
        tokenizer.save_pretrained(folder / profile.hub.name)
    mimir(folder / hub.MIMIR / "cache_100_200_1000_512")
    paper(folder / hub.PAPER)
    return folder


def mimir(folder: Path) -> None:
    """A JSON text a line: members in train, non-members in test."""
    for source, domain in (("arxiv", "arxiv"), ("github", "github"), ("pile_cc", "general")):
        found = texts(domain, 48)
        for side, part in (("train", found[:32]), ("test", found[32:])):
            (folder / side).mkdir(parents=True, exist_ok=True)
            (folder / side / f"{source}_ngram_13_0.8.jsonl").write_text("".join(json.dumps(text) + "\n" for text in part))


def paper(folder: Path) -> None:
    """Parquet tables of one column: text, in the general domain content."""
    for domain, column in (("arxiv", "text"), ("github", "text"), ("general", "content")):
        found, splits = texts(domain, 48), corpus.SPLITS[domain]
        (folder / domain).mkdir(parents=True, exist_ok=True)
        for i, split in enumerate(splits):
            part = found[i * 48 // len(splits) : (i + 1) * 48 // len(splits)]
            long = [" ".join(part[:12]), *part[12:]] if split == "forget" else part  # more than one chunk of 4,096 tokens
            pd.DataFrame({column: long}).to_parquet(folder / domain / f"{split}-00000-of-00001.parquet")
