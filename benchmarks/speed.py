"""Speed and memory against a plain Trainer with full logits, on one core: `python benchmarks/speed.py --out speed.csv`.

Both sides have the same model (the laptop profile's, and the same with 32,000 tokens), documents (random tokens from a fixed seed, 256
each), order, micro-batch (4 forget + 4 retain), data type, clipping and Trainer settings. Plain: `model(**batch).loss`, and a KL from the
log-softmax of all logits of the model and of the reference, which is run again at every step; the optimizer is the Trainer's default. A
time is that of a whole run of two epochs, set-up and the reference's outputs included, divided by its optimizer steps; the two sides take
turns, so that a shared machine disturbs both. Both sides are timed twice: with glibc as it is ("returned": freed memory goes back to the
system and arrives anew in pages), and told to keep it ("kept"), as the workers of a run do. Memory is measured by a fresh process for each
side: growth of its peak (ru_maxrss) over the loaded models. Targets are printed, a miss does not fail. Without .venv: PYTHONPATH=.
"""

from __future__ import annotations

import argparse
import copy
import csv
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from unlearn_utils.cache import workers
from unlearn_utils.core import losses
from unlearn_utils.engine import models, training
from unlearn_utils.profiles import profile

LAPTOP = profile("laptop")
RECIPE = replace(LAPTOP.unlearning, epochs=2)  # so that the reference's outputs are reused
SMALL, LARGE = LAPTOP.shape.vocabulary, 32_000  # vocabularies
FASTER = {"ascent_descent_in_distribution": 1.3, "ascent_kl_in_distribution": 1.5}  # method: target, plain seconds / ours
MEMORY, TOKENS_PER_SECOND = 0.5, 6000  # targets: our growth / plain growth at the large vocabulary; pre-training on one core
END, PAD, SEED = 0, 1, 0  # token ids that no document holds; the seed of weights, tokens and order


class Size(NamedTuple):
    """How often each side runs, and the optimizer steps of a run at each vocabulary."""

    repeats: int
    steps: dict[int, int]


QUICK, FULL = Size(2, {SMALL: 3}), Size(3, {SMALL: 8, LARGE: 3})


class Row(NamedTuple):
    """One measurement; `low` and `high`: smallest and largest ratio over the repeats."""

    vocabulary: int
    measure: str
    method: str
    freed: str
    ours: float
    plain: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    target: str = ""


# ---------------------------------------------------------------------------------------------- the two sides


class Plain(Trainer):
    """What one writes first: full logits of both sides; with a `reference`, KL(reference || model) instead of descent on retain."""

    def __init__(self, model: nn.Module, reference: nn.Module | None, **kwargs) -> None:
        super().__init__(model=model, **kwargs)
        self.reference = reference
        self.remove_callback(PrinterCallback)

    def compute_loss(self, model: nn.Module, inputs: training.Sides, return_outputs: bool = False, num_items_in_batch=None) -> Tensor:
        """Minus the loss on forget, plus the loss or the KL on retain."""
        forget, retain = inputs["forget"], inputs["retain"]
        return -model(**forget).loss + (self.kl(model, retain) if self.reference else model(**retain).loss)

    def kl(self, model: nn.Module, batch: losses.Batch) -> Tensor:
        """Mean over predicted tokens, in nats."""
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
        with torch.no_grad(), self.accelerator.autocast():  # it wraps the model alone
            log_p = self.reference(**inputs).logits[:, :-1].float().log_softmax(-1)
        log_q = model(**inputs).logits[:, :-1].float().log_softmax(-1)
        mask = losses.predicted_mask(batch["labels"])
        return F.kl_div(log_q[mask], log_p[mask], reduction="batchmean", log_target=True)


def plain(model: nn.Module, method: str, forget: training.Ids, retain: training.Ids, reference: nn.Module | None) -> None:
    """One run of the plain Trainer, over the pairs that ours takes."""
    order = training.pairs(len(forget), len(retain), RECIPE.epochs, np.random.default_rng(SEED))
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=RECIPE.batch,
            num_train_epochs=1,  # `order` holds both epochs
            train_sampling_strategy="sequential",
            learning_rate=RECIPE.learning_rate,
            max_grad_norm=RECIPE.max_grad_norm,
            bf16=models.half_precision(),
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        collate = training.paired(method, forget, retain, PAD)
        Plain(model, reference, args=arguments, train_dataset=order, data_collator=collate).train()


def ours(model: nn.Module, method: str, forget: training.Ids, retain: training.Ids, reference: nn.Module | None) -> None:
    """One run of the package."""
    training.unlearn(model, method, forget, retain, RECIPE, PAD, SEED, reference)


SIDES = {"ours": ours, "plain": plain}


# ---------------------------------------------------------------------------------------------- what runs in a fresh process


def inputs(vocabulary: int, method: str, steps: int) -> tuple[nn.Module, nn.Module | None, training.Ids, training.Ids]:
    """Model, reference (for KL), forget and retain documents of a run of `steps`."""
    model = build(vocabulary)
    reference = copy.deepcopy(model).eval() if "kl" in method else None
    found = documents(vocabulary, 2 * steps * RECIPE.batch // RECIPE.epochs)
    return model, reference, found[::2], found[1::2]


def build(vocabulary: int) -> nn.Module:
    """The laptop profile's model with this vocabulary."""
    return models.build(
        replace(LAPTOP.shape, vocabulary=vocabulary), SimpleNamespace(bos_token_id=END, eos_token_id=END, pad_token_id=PAD), SEED
    )


def documents(vocabulary: int, n: int) -> training.Ids:
    """n documents of random tokens."""
    return np.random.default_rng(SEED).integers(PAD + 1, vocabulary, (n, LAPTOP.shape.context)).tolist()


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock seconds of a call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def step_seconds(vocabulary: int, method: str, repeats: int, steps: int) -> dict[str, list[float]]:
    """Seconds per optimizer step of each repeat, the sides taking turns; one run of each beforehand is not counted."""
    torch.set_num_threads(1)
    model, reference, forget, retain = inputs(vocabulary, method, steps)
    found = {side: [] for side in SIDES}
    for _ in range(1 + repeats):
        for side, run in SIDES.items():
            fresh = copy.deepcopy(model)
            found[side].append(seconds(lambda run=run, fresh=fresh: run(fresh, method, forget, retain, reference)) / steps)
    return {side: values[1:] for side, values in found.items()}


def memory_growth(vocabulary: int, method: str, side: str) -> float:
    """MB by which three steps raise this process's peak over what it was with the models loaded."""
    torch.set_num_threads(1)
    loaded = inputs(vocabulary, method, steps=3)
    model, reference, forget, retain = loaded
    before = peak()
    SIDES[side](model, method, forget, retain, reference)
    return peak() - before


def peak() -> float:
    """Largest resident memory of this process so far, in MB; a process starts with its parent's, which only imports what we do."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def tokens_per_second(vocabulary: int, repeats: int, steps: int) -> list[float]:
    """Pre-training speed of each repeat, set-up included; one run beforehand is not counted."""
    torch.set_num_threads(1)
    recipe = replace(LAPTOP.pretraining, epochs=1)
    found, model = documents(vocabulary, steps * recipe.batch), build(vocabulary)
    runs = [seconds(lambda: training.pretrain(copy.deepcopy(model), found, recipe, PAD, SEED)) for _ in range(1 + repeats)]
    return [sum(map(len, found)) / s for s in runs[1:]]


def fresh(task: Callable, *choices: tuple, freed: str = "returned") -> list:
    """The task's results for several choices of its arguments, each from a process of its own, all side by side."""
    for name, value in workers.KEEP_FREED.items():  # read when a process starts
        os.environ.pop(name, None)
        if freed == "kept":
            os.environ[name] = value
    with ProcessPoolExecutor(len(choices), multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        return list(pool.map(task, *zip(*choices, strict=True)))


# ---------------------------------------------------------------------------------------------- the table


def time_row(vocabulary: int, method: str, freed: str, size: Size, steps: int) -> Row:
    """Seconds per step; ratio: how many times faster ours is."""
    [found] = fresh(step_seconds, (vocabulary, method, size.repeats, steps), freed=freed)
    mine, theirs = (statistics.median(found[side]) for side in SIDES)
    ratios = [p / o for o, p in zip(found["ours"], found["plain"], strict=True)]
    return Row(vocabulary, "s/step", method, freed, mine, theirs, theirs / mine, min(ratios), max(ratios), f">= {FASTER[method]}")


def memory_row(vocabulary: int, method: str) -> Row:
    """MB of growth; ratio: our share of the plain growth."""
    mine, theirs = fresh(memory_growth, *((vocabulary, method, side) for side in SIDES))
    target = f"<= {MEMORY}" if vocabulary == LARGE else ""
    return Row(vocabulary, "MB growth", method, "returned", mine, theirs, mine / theirs, target=target)


def pretraining_row(vocabulary: int, size: Size, steps: int) -> Row:
    """Tokens a second; low and high are tokens a second, too."""
    [found] = fresh(tokens_per_second, (vocabulary, size.repeats, steps))
    target = f">= {TOKENS_PER_SECOND}" if vocabulary == SMALL else ""
    return Row(vocabulary, "tokens/s", "pre-training", "returned", statistics.median(found), low=min(found), high=max(found), target=target)


def measure(size: Size) -> list[Row]:
    """Every row, printed as it comes."""
    rows = []
    for vocabulary, steps in size.steps.items():
        tasks = [lambda m=m, v=vocabulary: memory_row(v, m) for m in FASTER]
        tasks += [lambda m=m, f=f, v=vocabulary, s=steps: time_row(v, m, f, size, s) for m in FASTER for f in ("returned", "kept")]
        tasks.append(lambda v=vocabulary, s=steps: pretraining_row(v, size, s))
        for task in tasks:
            rows.append(task())
            print(line(*rows[-1]), flush=True)
    return rows


def line(*cells: object) -> str:
    """One line of the printed table."""
    texts = ["" if c is None else f"{c:.4g}" if isinstance(c, float) else str(c) for c in cells]
    return "".join(f"{t:<{w}}" for t, w in zip(texts, (11, 11, 32, 10, 9, 9, 8, 8, 8, 8), strict=True)).rstrip()


def machine() -> dict[str, object]:
    """Where the numbers come from."""
    kind = "bfloat16" if models.half_precision() else "float32"
    return {"platform": platform.platform(), "cores": os.cpu_count(), "threads": 1, "torch": torch.__version__, "dtype": kind}


def write(rows: list[Row], path: Path) -> None:
    """The table as csv, the machine's description in each row."""
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, [*Row._fields, *machine()])
        table.writeheader()
        table.writerows(row._asdict() | machine() for row in rows)


def main() -> None:
    """Measure, print, and write a csv if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 repeats of 3 steps, small vocabulary only: to see that it runs")
    parser.add_argument("--out", type=Path, help="also write the table to this csv file")
    options = parser.parse_args()
    print(", ".join(f"{k} {v}" for k, v in machine().items()))
    print(line(*Row._fields))
    rows = measure(QUICK if options.quick else FULL)
    if options.out:
        write(rows, options.out)


if __name__ == "__main__":
    main()
