"""How the embedded corpus was made: candidate passages de-duplicated, grouped into families, split.

The result is `manifest.csv`, which `data.manifest` reads. Nothing here looks at a model: the only
choices that depend on the text are near-duplicates, families and a balance of lengths and
character n-gram difficulty.
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

# passages of a domain, of forget and approximate together; and of the domain general
HOLD_OUT = 120
RETAIN = 180
GENERAL_EVALUATION = 40
GENERAL_RETAIN = 140

PER_FAMILY = {"github": 4, "arxiv": 2, "books": 4, "general": 4}  # retain passages at most
SEED = 0  # of the split; fixed before any model was trained
COINS = 50  # vectors of coins, of which the fairest decides between forget and approximate


# --------------------------------------------------------------------- duplicates and families


def grams(text: str, n: int = 13) -> set[str]:
    """Return the distinct n-grams of words.

    13 is the field's usual length for overlap (GPT-3, arXiv 2005.14165, appendix C).
    """
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}


def overlap(texts: Iterable[str], others: Iterable[str], n: int = 13) -> float:
    """Return the share of the distinct n-grams of `texts` that `others` hold; 0 without any."""
    ours = set().union(*(grams(text, n) for text in texts))
    theirs = set().union(*(grams(text, n) for text in others))
    return len(ours & theirs) / max(1, len(ours))


def deduplicate(
    passages: Iterable[Passage], overlap: float = 0.2, jaccard: float = 0.4
) -> list[Passage]:
    """Return the passages without those that repeat what was kept before them.

    A passage goes if it shares 20% of its 13-grams with those kept before it, or is a MinHash
    near-duplicate. Order is by hash, so that no package is preferred. MinHash works on 4-grams and
    finds what 13-grams miss: the same sentence with another name in every line.
    """
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=jaccard, num_perm=64)
    seen: set[str] = set()
    kept = []
    for passage in _in_hash_order(passages):
        own = grams(passage.text)
        sketch = MinHash(num_perm=64, seed=1)
        sketch.update_batch([gram.encode() for gram in grams(passage.text, 4)])
        repeated = len(own & seen) >= overlap * max(1, len(own))
        if repeated or index.query(sketch):
            continue
        seen |= own
        index.insert(digest(passage.file + passage.lines), sketch)
        kept.append(passage)
    return kept


def merge_families(passages: list[Passage]) -> list[Passage]:
    """Return the passages with units that share text made one family, named by its first unit.

    That is where they share at least 5 of their 13-grams, and 10% of those of the smaller unit.
    """
    own: dict[str, set[str]] = defaultdict(set)
    for passage in passages:
        own[passage.family] |= grams(passage.text)
    root = {unit: unit for unit in own}

    def find(unit: str) -> str:
        while root[unit] != unit:
            unit = root[unit]
        return unit

    for (one, other), shared in sorted(_shared_grams(own).items()):
        if shared >= 5 and shared >= 0.1 * min(len(own[one]), len(own[other])):
            first, second = sorted((find(one), find(other)))
            root[second] = first
    return [replace(passage, family=find(passage.family)) for passage in passages]


def _shared_grams(own: dict[str, set[str]]) -> Counter[tuple[str, str]]:
    """Return how many n-grams two units share, for each pair that shares any.

    own: the n-grams of each unit.
    """
    holders: dict[str, list[str]] = defaultdict(list)
    for unit in sorted(own):
        for gram in own[unit]:
            holders[gram].append(unit)
    shared: Counter[tuple[str, str]] = Counter()
    for units in holders.values():
        shared.update(combinations(units, 2))
    return shared


def _in_hash_order(passages: Iterable[Passage]) -> list[Passage]:
    """Return the passages in the order of their texts' hashes."""
    return sorted(passages, key=lambda passage: digest(passage.text))


# --------------------------------------------------------------------------------------- splits


class CharacterModel:
    """An interpolated character 5-gram model: difficulty of a text without any neural network."""

    def __init__(self, texts: Iterable[str], order: int = 5) -> None:
        self.order = order
        self.counts: list[Counter[str]] = [Counter() for _ in range(order)]
        self.contexts: list[Counter[str]] = [Counter() for _ in range(order)]
        for text in texts:
            for n in range(order):
                for i in range(n, len(text)):
                    self.counts[n][text[i - n : i + 1]] += 1
                    self.contexts[n][text[i - n : i]] += 1

    def bits(self, text: str) -> float:
        """Return the mean bits per character."""
        total = 0.0
        for i in range(len(text)):
            p = 1 / 256
            for n in range(min(self.order, i + 1)):
                gram = text[i - n : i + 1]
                p = (self.counts[n][gram] + 5 * p) / (self.contexts[n][gram[:-1]] + 5)
            total -= math.log2(p)
        return total / len(text)


def systematic(items: list, n: int, rng: np.random.Generator) -> list:
    """Return n items at equal steps through the sorted list, from a random start.

    So every stratum is there in proportion.

    Raises:
        ValueError: there are fewer.
    """
    if len(items) < n:
        raise ValueError(
            f"{len(items)} units where {n} are needed: the corpus of this machine is too small"
        )
    stride = len(items) / n
    start = rng.uniform(0, stride)
    return [items[int(start + i * stride)] for i in range(n)]


def hold_out(
    passages: list[Passage], n: int, rng: np.random.Generator
) -> tuple[list[Passage], list[Passage]]:
    """Return one passage of each of n families, and all passages of the other families."""
    families: dict[str, list[Passage]] = defaultdict(list)
    for passage in passages:
        families[passage.family].append(passage)
    order = sorted(families, key=lambda name: (families[name][0].stratum, digest(name)))
    chosen = systematic(order, n, rng)
    held = [_in_hash_order(families[name])[0] for name in chosen]
    taken = set(chosen)
    return held, [passage for passage in passages if passage.family not in taken]


def retained(passages: list[Passage], n: int, per_family: int) -> list[Passage]:
    """Return n passages in hash order, at most `per_family` of one family.

    Raises:
        ValueError: there are fewer.
    """
    taken: Counter[str] = Counter()
    kept = []
    for passage in _in_hash_order(passages):
        if len(kept) == n:
            break
        if taken[passage.family] < per_family:
            taken[passage.family] += 1
            kept.append(passage)
    if len(kept) < n:
        raise ValueError(f"{passages[0].domain}: {len(kept)} retain passages where {n} are needed")
    return kept


def paired_halves(
    held: list[Passage], model: CharacterModel, rng: np.random.Generator
) -> np.ndarray:
    """Return 0 or 1 for each held-out passage: forget or approximate.

    A coin decides each pair of neighbours; of 50 vectors of coins the one is kept whose halves
    differ least in bits per character and in length (both in standard deviations). No language
    model that is later unlearned takes part.

    held: sorted by stratum and difficulty, so that neighbours are alike.
    """
    bits = np.array([model.bits(passage.text) for passage in held])
    length = np.array([len(passage.text) for passage in held], float)
    coins = rng.integers(0, 2, (COINS, len(held) // 2))
    sides = np.stack([coins, 1 - coins], -1).reshape(COINS, -1)
    sign = 2.0 * sides - 1
    gap = _gap(sign, bits) + _gap(sign, length)
    return sides[np.argmin(gap)]


def _gap(sign: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return how far apart the halves' sums are, in standard deviations a passage, by vector."""
    return abs(sign @ values) / (values.std() * len(values))


def split_domain(passages: list[Passage], domain: str, rng: np.random.Generator) -> pd.DataFrame:
    """Return one domain's rows of the manifest: forget, approximate and retain, pairs numbered.

    Pair numbers are shuffled, so that the first n pairs are a random sub-sample.
    """
    held, rest = hold_out(passages, HOLD_OUT, rng)
    kept = retained(rest, RETAIN, PER_FAMILY[domain])
    model = CharacterModel(passage.text for passage in kept)
    held.sort(key=lambda passage: (passage.stratum, model.bits(passage.text)))
    halves = paired_halves(held, model, rng)
    order = rng.permutation(HOLD_OUT // 2)
    rows = []
    for i, passage in enumerate(held):
        split = ("forget", "approximate")[halves[i]]
        rows.append(row(passage, split, int(order[i // 2])))
    return pd.DataFrame(rows + _rows(kept, "retain"))


def split_general(passages: list[Passage], rng: np.random.Generator) -> pd.DataFrame:
    """Return the domain general's rows: evaluation (one passage a distribution) and retain."""
    held, rest = hold_out(passages, GENERAL_EVALUATION, rng)
    kept = retained(rest, GENERAL_RETAIN, PER_FAMILY["general"])
    shuffled = rng.permutation(np.array(held, dtype=object))
    return pd.DataFrame(_rows(shuffled, "evaluation") + _rows(kept, "retain"))


def _rows(passages: Iterable[Passage], split: str) -> list[dict]:
    """Return lines of the manifest, ranked in this order."""
    return [row(passage, split, rank) for rank, passage in enumerate(passages)]


def row(passage: Passage, split: str, rank: int) -> dict:
    """Return a line of the manifest.

    rank: the pair's number (forget, approximate), or the order of sub-samples.
    """
    return {
        "id": f"{passage.domain}-{digest(passage.text)[:10]}",
        "domain": passage.domain,
        "split": split,
        "rank": rank,
        "family": passage.family,
        "stratum": passage.stratum,
        "file": passage.file,
        "lines": passage.lines,
        "sha256": sources.hash_text(passage.text),
    }


# ------------------------------------------------------------------------------------- manifest


def curate(found: dict[str, list[Passage]]) -> pd.DataFrame:
    """Return the manifest: candidates de-duplicated over all domains together, grouped, split.

    found: the candidates of each domain.
    """
    every = []
    for passages in found.values():
        every += passages
    kept = deduplicate(every)
    frames = []
    for number, domain in enumerate(found):
        rng = np.random.default_rng([SEED, number])
        own = merge_families([passage for passage in kept if passage.domain == domain])
        if domain == "general":
            frames.append(split_general(own, rng))
        else:
            frames.append(split_domain(own, domain, rng))
    return pd.concat(frames).sort_values(["domain", "split", "rank"], ignore_index=True)


def write_manifest() -> None:
    """Curate on this machine, and replace the committed manifest."""
    table = curate(candidates(paths.LOCK))
    paths.write_whole(paths.MANIFEST, table.to_csv(index=False))
    print(f"{paths.MANIFEST}: {len(table)} passages")
