"""What a model can still do: tasks of lm-evaluation-harness, question by question.

Needs the extra `downstream` of this package. A task is settings in a YAML file, data on the hub or
in files, and sometimes Python of its own, which runs when it is loaded: the harness's own tasks, or
those of a folder that you name. Shots, prompts and measures are the harness's defaults.
"""

from __future__ import annotations

import io
import logging
import random
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import cache
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from unlearn_utils.core import intervals, tables

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager
    from torch import nn
    from transformers import PreTrainedTokenizerBase

# name asked for -> the tasks behind it: itself, or the subtasks of a group such as mmlu
Tasks = Mapping[str, Mapping[str, "Task"]]

COLUMNS = ["task", "measure", "id", "family", "value"]


# ---------------------------------------------------------------------------------------- tasks


def load(names: Sequence[str], include: Path | None = None, unsafe_code: bool = False) -> Tasks:
    """Return the tasks of these names with their data, from the hub, its cache, or local files.

    Args:
        include: a folder of your own tasks, whose names come first; a group there is of tasks
            there.
        unsafe_code: also tasks that run code which the model wrote, such as humaneval, whose scorer
            is a script of the hub besides; it asks for HF_ALLOW_CODE_EVAL=1 too.

    Raises:
        ValueError: the extra is not installed, a name is unknown, a task runs code, or its data
            are not there.
    """
    with _aside(0):
        own = None if include is None else _folder(include)
        managers = {}
        for name in names:
            if own is not None and name in own.task_index:
                managers[name] = own
            else:
                managers[name] = _builtin()
        for name, manager in managers.items():
            _check(name, manager, include, unsafe_code)
        return {name: _loaded(name, manager) for name, manager in managers.items()}


def describe(tasks: Tasks) -> list[str]:
    """Return a line on each task: subtasks, shots, and where the data are from.

    Of the hub's data the commit is named.
    """
    lines = []
    for name, parts in tasks.items():
        shots = sorted({part.config.num_fewshot or 0 for part in parts.values()})
        sources = sorted({f"{part.config.dataset_path}{_commit(part)}" for part in parts.values()})
        several = f"{len(parts)} tasks, " if len(parts) > 1 else ""
        counted = "/".join(map(str, shots))
        lines.append(f"{name}: {several}{counted} shots, data {', '.join(sources)}")
    return lines


def _check(name: str, manager: TaskManager, include: Path | None, unsafe_code: bool) -> None:
    """Check a name before anything of its task is loaded.

    Raises:
        ValueError: the name is unknown, or the task runs code and that is not allowed.
    """
    if name not in manager.task_index:
        also = ""
        if include:
            also = f" or of {include}, where a file that cannot be read counts for none,"
        raise ValueError(
            f"{name}: no task of lm-evaluation-harness{also} has that name; "
            "lm-eval ls tasks lists them"
        )
    settings = _settings(name, manager.task_index)
    if not unsafe_code and any(stated.get("unsafe_code") for stated in settings):
        raise ValueError(
            f"{name} runs code that the model wrote: give --unsafe-code (in Python "
            "unsafe_code=True), in a sandbox"
        )


def _folder(include: Path) -> TaskManager:
    """Return the tasks of a folder.

    Raises:
        ValueError: it has none: the harness passes over a file that it cannot read.
    """
    found = _task_manager(include_path=str(include), include_defaults=False)
    if not found.all_tasks:
        raise ValueError(
            f"{include}: no folder of tasks, that is of .yaml files as lm-evaluation-harness reads "
            "them"
        )
    return found


@cache
def _builtin() -> TaskManager:
    """Return the harness's own tasks; to list them takes ten seconds."""
    return _task_manager()


def _task_manager(**options: Any) -> TaskManager:
    """Return what knows tasks. Raise ValueError if the extra is not installed."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ValueError(
            "tasks need lm-evaluation-harness: pip install -e '.[downstream]' in this repository "
            f"({error})"
        ) from error
    return TaskManager(**options)


def _settings(part: str | dict, index: Mapping[str, Any]) -> Iterator[dict]:
    """Yield the settings of a task, or of each task of a group or tag.

    They are as the YAML files state them: nothing is loaded or run.

    part: its name, or what a group states of it.
    """
    own = part if isinstance(part, dict) else {"task": part}
    known = index.get(own.get("group") or own.get("task"))
    stated = {}
    if known is not None:
        stated = known.cfg or {"task": sorted(known.tags)}
    if isinstance(part, dict):
        stated = stated | part
    members = stated.get("task")
    if isinstance(members, list):
        for member in members:
            yield from _settings(member, index)
    else:
        yield stated


def _loaded(name: str, manager: TaskManager) -> dict[str, Task]:
    """Return the tasks behind a name.

    Raises:
        ValueError: their data are not there, or settings are wrong.
    """
    try:
        return manager.load([name])["tasks"]
    except Exception as error:  # a task's template or Python can raise anything
        what = error if isinstance(error, OSError | ValueError) else repr(error)
        hint = _hint(_settings(name, manager.task_index))
        raise ValueError(f"{name} cannot be loaded: {what}{hint}") from error


def _hint(settings: Iterator[dict]) -> str:
    """Return how to get the data of tasks, if they are on the hub, else nothing."""
    places = {str(stated.get("dataset_path")) for stated in settings}
    names = sorted(place for place in places if "/" in place)
    if not names:
        return ""
    return (
        f". Its data ({', '.join(names)} on the hub): run this once with a connection, later with "
        "HF_HUB_OFFLINE=1"
    )


def _commit(task: Task) -> str:
    """Return the commit of data from the hub; their cached files lie in a folder named by it."""
    found = re.search(r"/([0-9a-f]{40})/", str(getattr(task.dataset, "cache_files", "")))
    return f", commit {found[1]}" if found else ""


# -------------------------------------------------------------------------------------- answers


def answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Tasks,
    limit: int | None = None,
    seed: int = 0,
    batch: int = 8,
    unsafe_code: bool = False,
) -> pd.DataFrame:
    """Return one row for each question and measure.

    What the harness warns of, such as prompts cut because the model reads no more, becomes Python
    warnings.

    Args:
        tasks: as `load` gives them.
        limit: the first questions of each task alone; None: all.
        seed: draws the shots.
        batch: prompts at a time.
        unsafe_code: as in `load`.

    Returns:
        task (the name asked for), measure, id, family (equal for copies of a question), value.
        Kept are the measures whose value is a mean over questions.

    Raises:
        ValueError: the limit is not positive, or no measure of a task is a mean.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit: a number of questions above 0, not {limit}")
    every = {}
    for parts in tasks.values():
        every |= parts
    results = _evaluated(model, tokenizer, every, limit, seed, batch, unsafe_code)
    rows = []
    for name, parts in tasks.items():
        for part in parts:
            rows += _rows(name, part, results)
    return pd.DataFrame(rows, columns=COLUMNS)


def _evaluated(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tasks: dict[str, Task],
    limit: int | None,
    seed: int,
    batch: int,
    unsafe_code: bool,
) -> Mapping[str, Any]:
    """Return the harness's results, and pass on what it warns of."""
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM

    with _aside(seed) as heard:
        asked = HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=batch,
            trust_remote_code=False,
        )
        heard.clear()  # it warns of a model that is loaded already, as ours always is
        for task in tasks.values():
            task.set_fewshot_seed(seed)
        results = evaluate(
            asked,
            {"tasks": tasks},
            limit=limit,
            bootstrap_iters=0,
            confirm_run_unsafe_code=unsafe_code,
        )
    for line in _once(heard):
        warnings.warn(f"lm-evaluation-harness: {line}", stacklevel=3)
    return results


def _rows(name: str, part: str, results: Mapping[str, Any]) -> list[tuple]:
    """Return the rows of one task, in the columns of `COLUMNS`.

    The id names task, question and prompt; a family is a question's text.

    Args:
        name: what was asked for.
        part: the task itself.
    """
    values = defaultdict(list)
    for sample in results["samples"][part]:
        question = f"{part}/{sample['doc_id']}/{sample['prompt_hash'][:16]}"
        for measure in sample["metrics"]:
            key = f"{measure},{sample['filter']}"
            values[key].append((question, sample["doc_hash"], sample[measure]))
    rows = []
    for key, answered in values.items():
        numbers = [value for _, _, value in answered]
        if not _is_mean(numbers, results["results"][part][key]):
            continue
        measure = key.removesuffix(",none").replace(",", ", ")
        for question, family, value in answered:
            rows.append((name, measure, question, family, float(value)))
    if not rows:
        raise ValueError(
            f"{part}: no measure is a mean over questions, so none can be compared: "
            f"{', '.join(values)}"
        )
    return rows


def _is_mean(values: Sequence, stated: Any) -> bool:
    """Return whether a task's stated result is the mean of its questions' values."""
    numbers = all(isinstance(value, Real | np.bool_) for value in values)
    return numbers and bool(np.isclose(np.mean(values), stated, equal_nan=True))


# ---------------------------------------------------------------------------- the harness at work


@contextmanager
def _aside(seed: int) -> Iterator[list[logging.LogRecord]]:
    """Let the harness work inside: its warnings are collected, its bars on a terminal only.

    Tasks may draw from the global generators: they are seeded, and given back as they were.
    """
    with _warnings_collected() as heard, _generators_seeded(seed):
        bars = sys.stderr if sys.stderr.isatty() else io.StringIO()
        with redirect_stderr(bars):
            yield heard


@contextmanager
def _warnings_collected() -> Iterator[list[logging.LogRecord]]:
    """Collect the harness's warnings inside, and let `datasets` say errors alone.

    It warns of every set that comes from the cache.
    """
    heard = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = heard.append
    harness = logging.getLogger("lm_eval")
    others = logging.getLogger("datasets")
    level = others.level
    harness.addHandler(handler)
    others.setLevel(logging.ERROR)
    try:
        yield heard
    finally:
        harness.removeHandler(handler)
        others.setLevel(level)


@contextmanager
def _generators_seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch; give them back as they were."""
    import torch

    python = random.getstate()
    numpy = np.random.get_state()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _once(heard: Sequence[logging.LogRecord]) -> list[str]:
    """Return the first message of each place that warned, and how often it did."""
    places = defaultdict(list)
    for record in heard:
        message = " ".join(record.getMessage().split())
        places[record.pathname, record.lineno].append(message)
    lines = []
    for messages in places.values():
        often = ""
        if len(messages) > 1:
            often = f" (the first of {len(messages)} such warnings)"
        lines.append(messages[0] + often)
    return lines


# --------------------------------------------------------------------------------------- tables


def summarise(rows: pd.DataFrame, seed: int = 0, resamples: int = 1000) -> pd.DataFrame:
    """Return tidy results: task, measure, value, low, high, n.

    The 95% interval is a percentile bootstrap over questions, copies of one together. Of other
    prompts it says nothing, and where all answers are right, or all wrong, it has no width.

    Args:
        rows: of `answers`.
        seed: of the bootstrap.

    Returns:
        value: the mean over all questions, of a group's tasks together; n: questions.
    """
    generator = np.random.default_rng(seed)
    table = []
    for (task, measure), part in rows.groupby(["task", "measure"], sort=False):
        weights = tables.draw_weights(part, generator, resamples)
        draws = weights @ part.value.to_numpy() / weights.sum(1)
        found = intervals.interval(draws[0], draws[1:], 0.95, part.family.nunique())
        table.append({"task": task, "measure": measure, **found._asdict()})
    return pd.DataFrame(table)


def differences(
    rows: pd.DataFrame, other: pd.DataFrame, seed: int = 0, resamples: int = 1000
) -> pd.DataFrame:
    """Return `summarise` of rows - other, question by question, so that the interval is paired.

    They are those of an unlearned model and its target, say.

    Raises:
        ValueError: they are not answers to the same questions in the same prompts.
    """
    keys = ["task", "measure", "id"]
    if not rows[keys].equals(other[keys]):
        raise ValueError(
            "the two models did not answer the same questions, so their answers cannot be paired"
        )
    return summarise(rows.assign(value=rows.value - other.value), seed, resamples)
