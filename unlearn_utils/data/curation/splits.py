"""How the embedded corpus was made: candidate passages de-duplicated, grouped into families and split.

The result is `manifest.csv`, which `data.manifest` reads. Nothing here looks at a model: the only choices that
depend on the text are near-duplicates, families and a balance of lengths and character n-gram difficulty.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd

from unlearn_utils.cache import paths
from unlearn_utils.data import sources
from unlearn_utils.data.curation.passages import Passage, candidates, digest

HOLD_OUT, RETAIN, GENERAL_EVALUATION, GENERAL_RETAIN = 120, 180, 40, 140
PER_FAMILY = {"github": 4, "arxiv": 2, "books": 4, "general": 4}
SEED = 0  # of the split; fixed before any model was trained


# -------------------------------------------------------------------------------- duplicates and families


def grams(text: str, n: int = 13) -> set[str]:
    """Word n-grams; 13 is the field's usual length for overlap (GPT-3, arXiv 2005.14165, appendix C)."""
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}


def overlap(texts: Iterable[str], others: Iterable[str], n: int = 13) -> float:
    """Share of the distinct n-grams of `texts` that occur in `others` too; 0 if there are none."""
    ours, theirs = (set().union(*(grams(t, n) for t in side)) for side in (texts, others))
    return len(ours & theirs) / max(1, len(ours))


def deduplicate(passages: Iterable[Passage], overlap: float = 0.2, jaccard: float = 0.4) -> list[Passage]:
    """Drop a passage that shares 20% of its 13-grams with those kept before it, or is a MinHash near-duplicate.

    Order is by hash, so that no package is preferred. MinHash works on 4-grams and finds what 13-grams miss:
    the same sentence with another name in every line.
    """
    from datasketch import MinHash, MinHashLSH

    index, seen, kept = MinHashLSH(threshold=jaccard, num_perm=64), set(), []
    for p in sorted(passages, key=lambda p: digest(p.text)):
        own, sketch = grams(p.text), MinHash(num_perm=64, seed=1)
        sketch.update_batch([g.encode() for g in grams(p.text, 4)])
        if len(own & seen) >= overlap * max(1, len(own)) or index.query(sketch):
            continue
        seen |= own
        index.insert(digest(p.file + p.lines), sketch)
        kept.append(p)
    return kept


def merge_families(passages: list[Passage]) -> list[Passage]:
    """Units that share at least 10% and 5 of their 13-grams become one family (named by its first unit)."""
    own: dict[str, set[str]] = defaultdict(set)
    for p in passages:
        own[p.family] |= grams(p.text)
    holders: dict[str, list[str]] = defaultdict(list)
    for unit in sorted(own):
        for g in own[unit]:
            holders[g].append(unit)
    shared = Counter(pair for units in holders.values() for pair in combinations(units, 2))
    root = {unit: unit for unit in own}

    def find(unit: str) -> str:
        while root[unit] != unit:
            unit = root[unit]
        return unit

    for (a, b), n in sorted(shared.items()):
        if n >= 5 and n >= 0.1 * min(len(own[a]), len(own[b])):
            root[max(find(a), find(b))] = min(find(a), find(b))
    return [replace(p, family=find(p.family)) for p in passages]


# ------------------------------------------------------------------------------------------------ splits


class CharacterModel:
    """An interpolated character 5-gram model: difficulty of a text without any neural network."""

    def __init__(self, texts: Iterable[str], order: int = 5):
        self.order, self.counts = order, [Counter() for _ in range(order)]
        self.contexts = [Counter() for _ in range(order)]
        for text in texts:
            for n in range(order):
                for i in range(n, len(text)):
                    self.counts[n][text[i - n : i + 1]] += 1
                    self.contexts[n][text[i - n : i]] += 1

    def bits(self, text: str) -> float:
        """Mean bits per character."""
        total = 0.0
        for i in range(len(text)):
            p = 1 / 256
            for n in range(min(self.order, i + 1)):
                gram = text[i - n : i + 1]
                p = (self.counts[n][gram] + 5 * p) / (self.contexts[n][gram[:-1]] + 5)
            total -= math.log2(p)
        return total / len(text)


def systematic(items: list, n: int, rng: np.random.Generator) -> list:
    """n items at equal steps through the sorted list from a random start: every stratum in proportion."""
    if len(items) < n:
        raise ValueError(f"{len(items)} units where {n} are needed: the corpus of this machine is too small")
    step = len(items) / n
    start = rng.uniform(0, step)
    return [items[int(start + i * step)] for i in range(n)]


def hold_out(passages: list[Passage], n: int, rng: np.random.Generator) -> tuple[list[Passage], list[Passage]]:
    """(one passage of each of n families, all passages of the other families)."""
    families: dict[str, list[Passage]] = defaultdict(list)
    for p in passages:
        families[p.family].append(p)
    order = sorted(families, key=lambda f: (families[f][0].stratum, digest(f)))
    chosen = systematic(order, n, rng)
    rest = [p for p in passages if p.family not in set(chosen)]
    return [min(families[f], key=lambda p: digest(p.text)) for f in chosen], rest


def retained(passages: list[Passage], n: int, per_family: int) -> list[Passage]:
    """n passages in hash order, at most `per_family` of one family."""
    taken, kept = Counter(), []
    for p in sorted(passages, key=lambda p: digest(p.text)):
        if taken[p.family] < per_family and len(kept) < n:
            taken[p.family] += 1
            kept.append(p)
    if len(kept) < n:
        raise ValueError(f"{passages[0].domain}: {len(kept)} retain passages where {n} are needed")
    return kept


def paired_halves(held: list[Passage], model: CharacterModel, rng: np.random.Generator) -> np.ndarray:
    """For each held-out passage (pairs adjacent after the sort) 0 or 1: forget or approximate.

    `held` must be sorted by stratum and difficulty, so that neighbours are alike. A coin decides each pair; of 50
    vectors of coins the one is kept whose halves differ least in bits per character and in length (both in
    standard deviations). No language model that is later unlearned takes part.
    """
    bits = np.array([model.bits(p.text) for p in held])
    size = np.array([len(p.text) for p in held], float)
    coins = rng.integers(0, 2, (50, len(held) // 2))
    sides = np.stack([coins, 1 - coins], -1).reshape(50, -1)
    sign = 2.0 * sides - 1
    gap = sum(abs(sign @ x) / (x.std() * len(x)) for x in (bits, size))
    return sides[np.argmin(gap)]


def split_domain(passages: list[Passage], domain: str, rng: np.random.Generator) -> pd.DataFrame:
    """One domain's rows of the manifest: splits forget, approximate and retain, pairs numbered."""
    held, rest = hold_out(passages, HOLD_OUT, rng)
    kept = retained(rest, RETAIN, PER_FAMILY[domain])
    model = CharacterModel(p.text for p in kept)
    held.sort(key=lambda p: (p.stratum, model.bits(p.text)))
    names = np.array(["forget", "approximate"])[paired_halves(held, model, rng)]
    order = rng.permutation(HOLD_OUT // 2)  # pair numbers are shuffled: the first n pairs are a random sub-sample
    rows = [row(p, names[i], int(order[i // 2])) for i, p in enumerate(held)]
    return pd.DataFrame(rows + [row(p, "retain", i) for i, p in enumerate(kept)])


def split_general(passages: list[Passage], rng: np.random.Generator) -> pd.DataFrame:
    """The general domain's rows: evaluation (one passage a distribution) and retain."""
    held, rest = hold_out(passages, GENERAL_EVALUATION, rng)
    kept = retained(rest, GENERAL_RETAIN, PER_FAMILY["general"])
    rows = [row(p, "evaluation", i) for i, p in enumerate(rng.permutation(np.array(held, dtype=object)))]
    return pd.DataFrame(rows + [row(p, "retain", i) for i, p in enumerate(kept)])


def row(p: Passage, split: str, rank: int) -> dict:
    """A line of the manifest. `rank`: the pair's number (forget, approximate) or the order of sub-samples."""
    return {
        "id": f"{p.domain}-{digest(p.text)[:10]}",
        "domain": p.domain,
        "split": split,
        "rank": rank,
        "family": p.family,
        "stratum": p.stratum,
        "file": p.file,
        "lines": p.lines,
        "sha256": sources.hash_text(p.text),
    }


def curate(found: dict[str, list[Passage]]) -> pd.DataFrame:
    """The manifest from the candidates: de-duplicated over all domains together, grouped, split."""
    kept = deduplicate(p for passages in found.values() for p in passages)
    frames = []
    for number, domain in enumerate(found):
        rng = np.random.default_rng([SEED, number])
        own = merge_families([p for p in kept if p.domain == domain])
        frames.append(split_general(own, rng) if domain == "general" else split_domain(own, domain, rng))
    return pd.concat(frames).sort_values(["domain", "split", "rank"], ignore_index=True)


def write_manifest() -> None:
    """Curate on this machine and replace the committed manifest."""
    table = curate(candidates(paths.LOCK))
    paths.write_whole(paths.MANIFEST, table.to_csv(index=False))
    print(f"{paths.MANIFEST}: {len(table)} passages")
