"""What a model can still do: tasks of lm-evaluation-harness, question by question. Needs the extra `downstream` of this package.

A task is settings in a YAML file, data on the hub or in files, and sometimes Python of its own, which runs when it is loaded: the harness's
own tasks, or those of a folder that you name. Shots, prompts and measures are the harness's defaults.
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

Tasks = Mapping[str, Mapping[str, "Task"]]  # name asked for -> the tasks behind it: itself, or the subtasks of a group such as mmlu
COLUMNS = ["task", "measure", "id", "family", "value"]


# ---------------------------------------------------------------------------------------------- tasks


def load(names: Sequence[str], include: Path | None = None, unsafe_code: bool = False) -> Tasks:
    """The tasks of these names with their data, from the hub, its cache, or local files.

    include: a folder of your own tasks, whose names come first; a group there is of tasks there. unsafe_code: also tasks that run code
    which the model wrote, such as humaneval, whose scorer is a script of the hub besides; it asks for HF_ALLOW_CODE_EVAL=1 too.
    Raises ValueError if the extra is not installed, for an unknown name, for a task that runs code, and for data that are not there.
    """
    with _aside(0):
        own = None if include is None else _folder(include)
        managers = {name: own if own and name in own.task_index else _builtin() for name in names}
        for name, manager in managers.items():
            _check(name, manager, include, unsafe_code)
        return {name: _loaded(name, manager) for name, manager in managers.items()}


def _check(name: str, manager: TaskManager, include: Path | None, unsafe_code: bool) -> None:
    """Raises ValueError for an unknown name, and for a task that runs code unless that is allowed; before anything of it is loaded."""
    if name not in manager.task_index:
        also = f" or of {include}, where a file that cannot be read counts for none," if include else ""
        raise ValueError(f"{name}: no task of lm-evaluation-harness{also} has that name; lm-eval ls tasks lists them")
    if not unsafe_code and any(settings.get("unsafe_code") for settings in _settings(name, manager.task_index)):
        raise ValueError(f"{name} runs code that the model wrote: give --unsafe-code (in Python unsafe_code=True), in a sandbox")


def _folder(include: Path) -> TaskManager:
    """The tasks of a folder. Raises ValueError if it has none: the harness passes over a file that it cannot read."""
    found = _task_manager(include_path=str(include), include_defaults=False)
    if not found.all_tasks:
        raise ValueError(f"{include}: no folder of tasks, that is of .yaml files as lm-evaluation-harness reads them")
    return found


@cache
def _builtin() -> TaskManager:
    """The harness's own tasks; to list them takes ten seconds."""
    return _task_manager()


def _task_manager(**options: Any) -> TaskManager:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ValueError(f"tasks need lm-evaluation-harness: pip install -e '.[downstream]' in this repository ({error})") from error
    return TaskManager(**options)


def _settings(part: str | dict, index: Mapping[str, Any]) -> Iterator[dict]:
    """The settings of a task, or of each task of a group or tag, as the YAML files state them: nothing is loaded or run."""
    known = index.get(part if isinstance(part, str) else part.get("group") or part.get("task"))
    stated = {} if known is None else known.cfg or {"task": sorted(known.tags)}
    stated = stated | (part if isinstance(part, dict) else {})
    if isinstance(stated.get("task"), list):
        for member in stated["task"]:
            yield from _settings(member, index)
    else:
        yield stated


def _loaded(name: str, manager: TaskManager) -> dict[str, Task]:
    """The tasks behind a name. Raises ValueError if their data are not there, or for settings that are wrong."""
    try:
        return manager.load([name])["tasks"]
    except Exception as error:  # a task's template or Python can raise anything
        paths = {str(s["dataset_path"]) for s in _settings(name, manager.task_index) if "/" in str(s.get("dataset_path"))}
        hint = f". Its data ({', '.join(sorted(paths))} on the hub): run this once with a connection, later with HF_HUB_OFFLINE=1"
        what = error if isinstance(error, OSError | ValueError) else repr(error)
        raise ValueError(f"{name} cannot be loaded: {what}{hint if paths else ''}") from error


def described(found: Tasks) -> list[str]:
    """A line on each: subtasks, shots, where the data are from and, of the hub, their commit."""
    lines = []
    for name, tasks in found.items():
        shots = {task.config.num_fewshot or 0 for task in tasks.values()}
        data = {f"{task.config.dataset_path}{_commit(task)}" for task in tasks.values()}
        several = f"{len(tasks)} tasks, " if len(tasks) > 1 else ""
        lines.append(f"{name}: {several}{'/'.join(map(str, sorted(shots)))} shots, data {', '.join(sorted(data))}")
    return lines


def _commit(task: Task) -> str:
    """Of data from the hub, whose cached files lie in a folder named by it."""
    found = re.search(r"/([0-9a-f]{40})/", str(getattr(task.dataset, "cache_files", "")))
    return f", commit {found[1]}" if found else ""


# ---------------------------------------------------------------------------------------------- answers


def answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    found: Tasks,
    limit: int | None = None,
    seed: int = 0,
    batch: int = 8,
    unsafe_code: bool = False,
) -> pd.DataFrame:
    """One row for each question and measure: task (the name asked for), measure, id, family (equal for copies of a question), value.

    Kept are the measures whose value is a mean over questions. limit: the first questions of each task alone; seed: draws the shots.
    What the harness warns of, such as prompts cut because the model reads no more, becomes Python warnings.
    Raises ValueError for a limit that is not positive, and if no measure of a task is a mean.
    """
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM

    if limit is not None and limit < 1:
        raise ValueError(f"limit: a number of questions above 0, not {limit}")
    every = {leaf: task for tasks in found.values() for leaf, task in tasks.items()}
    with _aside(seed) as heard:
        lm = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch, trust_remote_code=False)
        heard.clear()  # of a model that is loaded already, as ours always is
        for task in every.values():
            task.set_fewshot_seed(seed)
        results = evaluate(lm, {"tasks": every}, limit=limit, bootstrap_iters=0, confirm_run_unsafe_code=unsafe_code)
    for line in _once(heard):
        warnings.warn(f"lm-evaluation-harness: {line}", stacklevel=2)
    return pd.DataFrame([row for name, tasks in found.items() for leaf in tasks for row in _rows(name, leaf, results)], columns=COLUMNS)


def _rows(name: str, leaf: str, results: Mapping[str, Any]) -> Iterator[tuple]:
    """The rows of one task, in the columns of `COLUMNS`. The id names task, question and prompt; a family is a question's text."""
    values = defaultdict(list)
    for sample in results["samples"][leaf]:
        for measure in sample["metrics"]:
            question = f"{leaf}/{sample['doc_id']}/{sample['prompt_hash'][:16]}"
            values[f"{measure},{sample['filter']}"].append((question, sample["doc_hash"], sample[measure]))
    means = [key for key, of in values.items() if _is_mean([value for *_, value in of], results["results"][leaf][key])]
    if not means:
        raise ValueError(f"{leaf}: no measure is a mean over questions, so none can be compared: {', '.join(values)}")
    for key in means:
        measure = key.removesuffix(",none").replace(",", ", ")
        yield from ((name, measure, question, family, float(value)) for question, family, value in values[key])


def _is_mean(values: Sequence, stated: Any) -> bool:
    numbers = all(isinstance(value, Real | np.bool_) for value in values)
    return numbers and bool(np.isclose(np.mean(values), stated, equal_nan=True))


@contextmanager
def _aside(seed: int) -> Iterator[list[logging.LogRecord]]:
    """The harness at work, its warnings collected, its bars on a terminal only. Tasks may draw from the global generators: they are seeded,
    and given back as they were."""
    import torch

    log, others, heard = logging.getLogger("lm_eval"), logging.getLogger("datasets"), []
    handler, level, states = logging.Handler(logging.WARNING), others.level, (random.getstate(), np.random.get_state())
    handler.emit = heard.append
    log.addHandler(handler)
    others.setLevel(logging.ERROR)  # it warns of every set that comes from the cache
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())), redirect_stderr(sys.stderr if sys.stderr.isatty() else io.StringIO()):
            for start in (random.seed, np.random.seed, torch.manual_seed):
                start(seed)
            yield heard
    finally:
        log.removeHandler(handler)
        others.setLevel(level)
        random.setstate(states[0])
        np.random.set_state(states[1])


def _once(heard: Sequence[logging.LogRecord]) -> list[str]:
    """The first message of each place that warned, and how often it did."""
    places = defaultdict(list)
    for record in heard:
        places[record.pathname, record.lineno].append(" ".join(record.getMessage().split()))
    return [said[0] + (f" (the first of {len(said)} such warnings)" if len(said) > 1 else "") for said in places.values()]


# ---------------------------------------------------------------------------------------------- tables


def summarise(rows: pd.DataFrame, seed: int = 0, resamples: int = 1000) -> pd.DataFrame:
    """Tidy results of `answers`: task, measure, value, low, high, n. value: the mean over all questions, of a group's tasks together.

    The 95% interval is a percentile bootstrap over questions, copies of one together; n: questions. Of other prompts it says nothing, and
    where all answers are right, or all wrong, it has no width.
    """
    generator, table = np.random.default_rng(seed), []
    for (task, measure), part in rows.groupby(["task", "measure"], sort=False):
        weights = tables.draw_weights(part, generator, resamples)
        draws = weights @ part.value.to_numpy() / weights.sum(1)
        found = intervals.interval(draws[0], draws[1:], 0.95, part.family.nunique())
        table.append({"task": task, "measure": measure, **found._asdict()})
    return pd.DataFrame(table)


def differences(rows: pd.DataFrame, other: pd.DataFrame, seed: int = 0, resamples: int = 1000) -> pd.DataFrame:
    """`summarise` of rows - other, question by question, so that the interval is paired: of an unlearned model and its target, say.

    Raises ValueError if they are not answers to the same questions in the same prompts.
    """
    keys = ["task", "measure", "id"]
    if not rows[keys].equals(other[keys]):
        raise ValueError("the two models did not answer the same questions, so their answers cannot be paired")
    return summarise(rows.assign(value=rows.value - other.value), seed, resamples)


def measure(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    limit: int | None = None,
    seed: int = 0,
    batch: int = 8,
    include: Path | None = None,
) -> pd.DataFrame:
    """`summarise` of a model's `answers` to the tasks of these names; arguments and errors as there and in `load`."""
    return summarise(answers(model, tokenizer, load(tasks, include), limit, seed, batch), seed)
