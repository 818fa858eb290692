"""The search for a learning rate and a number of steps, without a retrained model.

A *path* is one run of a method at one rate. On its way a few documents are read at *marks*; at the
best mark so far weights are kept. Half of the documents choose, the other half reports. Finished
paths are kept in a folder, so that a search that was killed goes on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.torch import load_file, save_file
from torch import nn

from unlearn_utils.cache import paths
from unlearn_utils.core import membership, tuning
from unlearn_utils.core.tuning import Tried
from unlearn_utils.engine import evaluation
from unlearn_utils.engine.trainer import Watch

SELECTION, REPORT = 0, 1
HALVES = {"selection": SELECTION, "report": REPORT}
BOUNDED = ("retain", "general")  # sets that may not become much harder
UNSEEN, AUC = GOALS = ("unseen", "auc")
SCORE = "min_k_40"  # as in findings.draws
MARKS = 6  # on the way to the goal
# Documents that a set needs. Five unseen ones in a half say its level to within half (1/sqrt 5) of
# what documents differ by; a bootstrap of fewer says nothing of that. Two make two halves.
LEAST = {"unseen": 10, "forget": 2, "retain": 2, "general": 2}


# ---------------------------------------------------------------------------------- the documents


def halved(chunks: pd.DataFrame) -> pd.DataFrame:
    """Return chunks with a column half: documents of a set, in the order of their hash, by turns.

    Args:
        chunks: split, family (the document's hash), and any other columns.

    Raises:
        ValueError: a set has too few documents.
    """
    parts = []
    for split, part in chunks.groupby("split", sort=False):
        families = sorted(set(part.family))
        if len(families) < LEAST[split]:
            raise ValueError(
                f"--{split}: {len(families)} different documents; {LEAST[split]} are needed, half "
                "of them to choose by, half to report"
            )
        place = {family: number for number, family in enumerate(families)}
        parts.append(part.assign(half=part.family.map(place) % 2))
    return pd.concat(parts, ignore_index=True)


def read_on_the_way(chunks: pd.DataFrame) -> pd.DataFrame:
    """Return the chunks that are read at a mark: the first of each document, then the second ones.

    chunks: of `halved`.
    """
    number = chunks.groupby(["split", "family"]).cumcount()
    in_order = chunks.assign(number=number).sort_values(["number", "family"], kind="stable")
    chosen = in_order.groupby(["split", "half"]).head(tuning.READ)
    return chosen.drop(columns="number").sort_index().reset_index(drop=True)


def level(rows: pd.DataFrame, split: str, half: int) -> float:
    """Return log perplexity of one half of a set, in nats a predicted token."""
    part = rows[(rows.split == split) & (rows.half == half)]
    return float(part.nll.sum(skipna=False) / part.tokens.sum())


def area(rows: pd.DataFrame, half: int) -> float:
    """Return the AUC of Min-40% Prob, forget against unseen chunks; NaN where a score is none."""
    part = rows[rows.half == half]
    ours, theirs = part[part.split == "forget"][SCORE], part[part.split == "unseen"][SCORE]
    if not np.isfinite([*ours, *theirs]).all():
        return math.nan
    return membership.auc(ours, theirs)


# --------------------------------------------------------------------------------------- the goal


@dataclass(frozen=True)
class Goal:
    """What unlearning shall come to, on the selection half.

    Attributes:
        name: one of `GOALS`.
        value: a level (log perplexity of the forget documents), or an AUC.
        start: the same before unlearning.
    """

    name: str
    value: float
    start: float

    def measured(self, rows: pd.DataFrame) -> float:
        """Return what is compared with the goal."""
        if self.name == AUC:
            return area(rows, SELECTION)
        return level(rows, "forget", SELECTION)

    def way(self, value: float) -> float:
        """Return the share of the way to the goal: 0 is the start, 1 the goal."""
        return (value - self.start) / (self.value - self.start)


def goals_of(name: str, before: pd.DataFrame, read: pd.DataFrame) -> tuple[Goal, Goal]:
    """Return the goal of that name, and the one of level, which says how fast a path is.

    An AUC says nothing of that: it stays where it is as long as every document is told.

    Args:
        name: one of `GOALS`.
        before: rows of all chunks under the model before unlearning, with their half.
        read: those of the chunks that are read on the way.

    Raises:
        ValueError: it is reached before unlearning.
    """
    of_level = Goal(UNSEEN, level(before, "unseen", SELECTION), level(read, "forget", SELECTION))
    if of_level.value <= of_level.start:
        raise ValueError(
            "the goal is reached before unlearning: perplexity of the forget documents is "
            f"{math.exp(of_level.start):.4g}, of the unseen ones {math.exp(of_level.value):.4g}, "
            "so nothing is to be forgotten; are they of text that the model was trained on?"
        )
    if name == UNSEEN:
        return of_level, of_level
    found = Goal(AUC, 0.5, area(read, SELECTION))
    if found.start <= found.value:
        raise ValueError(
            "the goal is reached before unlearning: the AUC of forget against unseen documents is "
            f"{found.start:.2f}, so nothing tells them apart; are they of text that the model was "
            "trained on?"
        )
    return found, of_level


def doubt(before: pd.DataFrame) -> float:
    """Return the standard error of the unseen documents' level, selection half, in nats."""
    part = before[(before.split == "unseen") & (before.half == SELECTION)]
    sums = part.groupby("family")[["nll", "tokens"]].sum()
    return float((sums.nll / sums.tokens).std() / math.sqrt(len(sums)))


# ------------------------------------------------------------------------------------- one path


@dataclass(frozen=True)
class Setting:
    """What is alike for all paths of a search.

    Attributes:
        documents: that are read on the way, as token ids, with their half.
        goal: of the search.
        pace: the goal of level, by which a path is judged on its way.
        start: the mark before the first step.
        pad_id: the token that pads.
        steps: of a path that does not end early.
    """

    documents: pd.DataFrame
    goal: Goal
    pace: Goal
    start: Mapping
    pad_id: int
    steps: int


def mark_of(rows: pd.DataFrame, goal: Goal, step: int, start: Mapping | None) -> dict:
    """Return what is known at a step: a row of paths.csv.

    start: the mark before the first step; None: this is it.
    """
    value = goal.measured(rows)
    mark = {"step": step, "way": goal.way(value), "missed": abs(value - goal.value)}
    for name, half in HALVES.items():
        for split in rows.split.unique():
            mark[f"{split}_{name}"] = level(rows, split, half)
        mark[f"auc_{name}"] = area(rows, half)
    rises = rises_of(mark, start or mark)
    return {**mark, "within_bound": bool(tuning.within(np.array(rises), tuning.BOUND))}


def rises_of(mark: Mapping, start: Mapping, half: str = "selection") -> list[float]:
    """Return by how much log perplexity of each bounded set has risen."""
    names = [f"{split}_{half}" for split in BOUNDED]
    return [mark[name] - start[name] for name in names if name in start]


@dataclass
class Walk:
    """A watch that follows a path, keeps weights at its best mark, and says where it ends.

    Attributes:
        setting: of the search.
        weights: the file that they are kept in.
        seen: is called with each mark.
        marks: so far.
        ended: how, as `core.tuning` says; None: it did not.
        tokens_read: at marks and glances.
        step: the last.
        way: of `Setting.pace`, at the last glance.
        due: the step of the next glance.
        least: by which the best mark misses the goal.
        glanced: step and way of the last glance.
        way_at_mark: the way at the last mark.
    """

    setting: Setting
    weights: Path
    seen: Callable[[Mapping], None] = lambda mark: None
    marks: list[dict] = field(default_factory=list)
    ended: str | None = None
    tokens_read: int = 0
    step: int = 0
    way: float = 0.0
    due: int = 1
    least: float = 0.0
    glanced: tuple[int, float] = (0, 0.0)
    way_at_mark: float = 0.0

    def __post_init__(self) -> None:
        """Begin at the model before unlearning, which is the first choice."""
        self.least = self.setting.start["missed"]

    def __call__(self, step: int, model: nn.Module) -> bool:
        """Look at the model after a step; return whether the path ends there."""
        total = self.setting.steps
        self.step = step
        if step < self.due and step < total:
            return False
        value = self.setting.pace.measured(self._read(model, self._at_a_glance()))
        if not math.isfinite(value):
            self.ended = tuning.DIVERGED
            return True
        self.way = self.setting.pace.way(value)
        self.due = tuning.next_glance(self.glanced, (step, self.way), 1 / MARKS)
        if self.way * 2**tuning.POWER < 1 / MARKS:  # in twice the steps no mark will be due
            self.due = max(self.due, 2 * step)
        self.glanced = (step, self.way)
        slow = tuning.given_up(self.way, step, total)
        still = abs(self.way - self.way_at_mark) < 1 / MARKS
        if still and self.way < 1 and step < total and not slow:
            return False
        self.way_at_mark = self.way
        self._look(step, model)
        return self.ended is not None

    def _look(self, step: int, model: nn.Module) -> None:
        """Make a mark, keep weights if it is the best, and see whether the path is past all use."""
        rows = self._read(model, self.setting.documents)
        if not np.isfinite(rows.nll).all():
            self.ended = tuning.DIVERGED
            return
        mark = mark_of(rows, self.setting.goal, step, self.setting.start)
        self.marks.append(mark)
        self.seen(mark)
        if mark["within_bound"] and mark["missed"] < self.least:
            self.least = mark["missed"]
            keep(model, self.weights)
        self.ended = tuning.ending(
            step, self.setting.steps, mark["way"], self.way, mark["within_bound"]
        )

    def _read(self, model: nn.Module, documents: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of some documents under the model."""
        rows = evaluation.measure_briefly(model, documents, self.setting.pad_id)
        self.tokens_read += int(rows.tokens.sum())
        return rows

    def _at_a_glance(self) -> pd.DataFrame:
        """Return the documents by which the pace is measured."""
        documents = self.setting.documents
        return documents[(documents.half == SELECTION) & (documents.split == "forget")]


def keep(model: nn.Module, file: Path) -> None:
    """Write what is trained of a model to a file, tied weights once."""
    trained = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            trained[name] = parameter.detach().cpu().contiguous()
    with paths.whole(file) as part:
        save_file(trained, part)


def restore(model: nn.Module, file: Path) -> None:
    """Put weights of `keep` into a model as it was loaded."""
    unknown = model.load_state_dict(load_file(file), strict=False).unexpected_keys
    if unknown:
        raise ValueError(f"{file}: weights of another model, {unknown[0]} among them")


# ------------------------------------------------------------------------------------ the search


@dataclass(frozen=True)
class Found:
    """One path, finished.

    Attributes:
        method: its name.
        rate: its learning rate.
        ended: how, as `core.tuning` says; None: with its last step.
        step: the last.
        way: of `Setting.pace`, at the last glance.
        marks: of `mark_of`.
        history: of `training.unlearn`.
        tokens_read: at marks and glances.
    """

    method: str
    rate: float
    ended: str | None
    step: int
    way: float
    marks: list[dict]
    history: list[dict]
    tokens_read: int

    def tried(self, setting: Setting) -> Tried:
        """Return what the ladder of rates is continued by."""
        missed = [mark["missed"] for mark in self.marks if mark["within_bound"]]
        least = min([setting.start["missed"], *missed])
        return Tried(self.rate, self.ended, self.step, setting.steps, self.way, least)


# method, rate and what watches -> the history of the run
Unlearn = Callable[[str, float, Watch], list[dict]]


def search(
    setting: Setting,
    methods: Sequence[str],
    rates: Sequence[float],
    unlearn: Unlearn,
    folder: Path,
    told: Callable[[Found], None] = lambda found: None,
    seen: Callable[[Mapping], None] = lambda mark: None,
) -> list[Found]:
    """Return the paths of each method up its ladder of rates.

    Weights are kept of the best path alone.

    Args:
        setting: documents and goal.
        methods: their names.
        rates: from small to large.
        unlearn: runs a path from the model as it was.
        folder: keeps finished paths, and gives them back; of this very search.
        told: is called with each path.
        seen: is called with each mark.
    """
    every: list[Found] = []
    for method in methods:
        tried: list[Tried] = []
        while (rate := tuning.next_rate(rates, tried)) is not None:
            file = folder / f"{method}-{rate:g}.json"
            if file.exists():
                found = Found(**json.loads(file.read_text(encoding="utf-8")))
            else:
                walk = Walk(setting, weights_of(folder, method, rate), seen)
                history = unlearn(method, rate, walk)
                found = Found(
                    method,
                    rate,
                    walk.ended,
                    walk.step,
                    walk.way,
                    walk.marks,
                    history,
                    walk.tokens_read,
                )
                paths.write_whole(file, json.dumps(asdict(found)))
            every.append(found)
            tried.append(found.tried(setting))
            _keep_best(setting, every, folder)
            told(found)
    return every


def weights_of(folder: Path, method: str, rate: float) -> Path:
    """Return the file for the weights of a path."""
    return folder / f"{method}-{rate:g}.safetensors"


def _keep_best(setting: Setting, every: Sequence[Found], folder: Path) -> None:
    """Remove the weights of all paths but the one that would be chosen."""
    best = choice(setting, every)
    for found in every:
        if best is None or found is not best[0]:
            weights_of(folder, found.method, found.rate).unlink(missing_ok=True)


def choice(setting: Setting, every: Sequence[Found]) -> tuple[Found, dict] | None:
    """Return the path and the mark that the rule chooses; None: the model before unlearning."""
    places = [(found, mark) for found in every for mark in found.marks]
    marks = [setting.start, *(mark for _, mark in places)]
    missed = np.array([mark["missed"] for mark in marks])
    rises = np.array([rises_of(mark, setting.start) for mark in marks])
    best = int(tuning.chosen(missed[None], rises[None], tuning.BOUND)[0])
    return places[best - 1] if best > 0 else None


def nearest(every: Sequence[Found]) -> tuple[Found, dict] | None:
    """Return the path and the mark nearest to the goal, whatever the bound; None: no mark is."""
    places = [(found, mark) for found in every for mark in found.marks]
    return min(places, key=lambda place: place[1]["missed"], default=None)
