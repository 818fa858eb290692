"""Speed and memory against a plain Trainer with full logits: `python benchmarks/speed.py`.

Everything runs on one core. Both sides have the same model (the laptop profile's, and the same
with 32,000 tokens), documents (random tokens from a fixed seed, 256 each), order, micro-batch
(4 forget + 4 retain), data type, clipping and Trainer settings. Plain: `model(**batch).loss`, and a
KL from the log-softmax of all logits of the model and of the reference, which is run again at every
step; the optimizer is the Trainer's default.

A time is that of a whole run of two epochs, set-up and the reference's outputs included, divided by
its optimizer steps; the two sides take turns, so that a shared machine disturbs both. Both sides
are timed twice: with glibc as it is ("returned": freed memory goes back to the system and arrives
anew in pages), and told to keep it ("kept"), as the workers of a run do. Memory is measured by a
fresh process for each side: growth of its peak (ru_maxrss) over the loaded models. Targets are
printed, a miss does not fail. Without .venv: PYTHONPATH=.
"""

from __future__ import annotations

import argparse
import copy
import csv
import functools
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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
from unlearn_utils.core import losses, methods
from unlearn_utils.engine import models, training
from unlearn_utils.profiles import profile

LAPTOP = profile("laptop")
RECIPE = replace(LAPTOP.unlearning, epochs=2)  # so that the reference's outputs are reused
SMALL, LARGE = LAPTOP.shape.vocabulary, 32_000  # vocabularies
END, PAD = 0, 1  # token ids that no document holds
SEED = 0  # of weights, tokens and order

# targets
FASTER = {  # method: plain seconds / ours
    "ascent_descent_in_distribution": 1.3,
    "ascent_kl_in_distribution": 1.5,
}
MEMORY = 0.5  # our growth / plain growth at the large vocabulary
TOKENS_PER_SECOND = 6000  # pre-training on one core

RETURNED, KEPT = "returned", "kept"  # what becomes of freed memory


class Size(NamedTuple):
    """How often each side runs, and the optimizer steps of a run at each vocabulary."""

    repeats: int
    steps: dict[int, int]


QUICK = Size(2, {SMALL: 3})
FULL = Size(3, {SMALL: 8, LARGE: 3})


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


WIDTHS = (11, 11, 32, 10, 9, 9, 8, 8, 8, 8)  # of the columns of `Row`, printed


# ----------------------------------------------------------------------------------- the two sides


class Plain(Trainer):
    """What one writes first: full logits of both sides.

    With a reference the retain term is KL(reference || model), else the cross-entropy.
    """

    def __init__(self, model: nn.Module, reference: nn.Module | None, **settings: object) -> None:
        super().__init__(model=model, **settings)
        self.reference = reference
        self.remove_callback(PrinterCallback)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: training.Sides,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        """Return minus the loss on forget, plus the loss or the KL on retain."""
        forget, retain = inputs["forget"], inputs["retain"]
        ascent = -model(**forget).loss
        if self.reference is None:
            return ascent + model(**retain).loss
        return ascent + self.kl(model, retain)

    def kl(self, model: nn.Module, batch: losses.Batch) -> Tensor:
        """Return KL(reference || model), the mean over predicted tokens, in nats."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad(), self.accelerator.autocast():  # it wraps the model alone
            log_p = self.reference(**inputs).logits[:, :-1].float().log_softmax(-1)
        log_q = model(**inputs).logits[:, :-1].float().log_softmax(-1)
        mask = losses.predicted_mask(batch["labels"])
        return F.kl_div(log_q[mask], log_p[mask], reduction="batchmean", log_target=True)


def run_plain(model: nn.Module, job: training.Job) -> None:
    """Run the plain Trainer once, over the pairs that ours takes."""
    generator = np.random.default_rng(SEED)
    order = training.pairs(len(job.forget), len(job.retain), RECIPE.epochs, generator)
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
        trainer = Plain(
            model,
            job.reference,
            args=arguments,
            train_dataset=order,
            data_collator=training.paired(job),
        )
        trainer.train()


SIDES = {"ours": training.unlearn, "plain": run_plain}


# --------------------------------------------------------------------- what runs in a fresh process


def inputs(vocabulary: int, method: str, steps: int) -> tuple[nn.Module, training.Job]:
    """Return the model and the job of a run of so many steps."""
    model = build(vocabulary)
    chosen = methods.get_method(method)
    reference = copy.deepcopy(model).eval() if chosen.needs_reference else None
    found = documents(vocabulary, 2 * steps * RECIPE.batch // RECIPE.epochs)
    job = training.Job(chosen, found[::2], found[1::2], RECIPE, PAD, SEED, reference)
    return model, job


def build(vocabulary: int) -> nn.Module:
    """Return the laptop profile's model with this vocabulary."""
    special = SimpleNamespace(bos_token_id=END, eos_token_id=END, pad_token_id=PAD)
    return models.build(replace(LAPTOP.shape, vocabulary=vocabulary), special, SEED)


def documents(vocabulary: int, number: int) -> training.Ids:
    """Return documents of random tokens."""
    size = (number, LAPTOP.shape.context)
    return np.random.default_rng(SEED).integers(PAD + 1, vocabulary, size).tolist()


def seconds(run: Callable[..., object], *given: object) -> float:
    """Return the wall-clock seconds of a call."""
    began = time.perf_counter()
    run(*given)
    return time.perf_counter() - began


def step_seconds(vocabulary: int, method: str, repeats: int, steps: int) -> dict[str, list[float]]:
    """Return the seconds per optimizer step of each repeat, the sides taking turns.

    One run of each beforehand is not counted.
    """
    torch.set_num_threads(1)
    model, job = inputs(vocabulary, method, steps)
    found = {side: [] for side in SIDES}
    for _ in range(1 + repeats):
        for side, run in SIDES.items():
            found[side].append(seconds(run, copy.deepcopy(model), job) / steps)
    return {side: values[1:] for side, values in found.items()}


def memory_growth(vocabulary: int, method: str, side: str) -> float:
    """Return the MB by which three steps raise this process's peak, with the models loaded."""
    torch.set_num_threads(1)
    model, job = inputs(vocabulary, method, steps=3)
    before = peak()
    SIDES[side](model, job)
    return peak() - before


def peak() -> float:
    """Return the largest resident memory of this process so far, in MB.

    A process starts with its parent's, which only imports what we do.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def tokens_per_second(vocabulary: int, repeats: int, steps: int) -> list[float]:
    """Return the pre-training speed of each repeat, set-up included.

    One run beforehand is not counted.
    """
    torch.set_num_threads(1)
    recipe = replace(LAPTOP.pretraining, epochs=1)
    found = documents(vocabulary, steps * recipe.batch)
    model = build(vocabulary)

    def run() -> None:
        training.pretrain(copy.deepcopy(model), found, recipe, PAD, SEED)

    taken = [seconds(run) for _ in range(1 + repeats)]
    return [sum(map(len, found)) / each for each in taken[1:]]


def in_fresh_processes(task: Callable, *choices: tuple, freed: str = RETURNED) -> list:
    """Return the task's results for several choices of its arguments.

    Each is from a process of its own, all side by side.
    """
    for name, value in workers.KEEP_FREED.items():  # read when a process starts
        os.environ.pop(name, None)
        if freed == KEPT:
            os.environ[name] = value
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(choices), spawn, max_tasks_per_child=1) as pool:
        return list(pool.map(task, *zip(*choices, strict=True)))


# --------------------------------------------------------------------------------------- the table


def time_row(vocabulary: int, method: str, freed: str, size: Size, steps: int) -> Row:
    """Return seconds per step; ratio: how many times faster ours is."""
    choice = (vocabulary, method, size.repeats, steps)
    (found,) = in_fresh_processes(step_seconds, choice, freed=freed)
    mine = statistics.median(found["ours"])
    theirs = statistics.median(found["plain"])
    ratios = [plain / ours for ours, plain in zip(found["ours"], found["plain"], strict=True)]
    return Row(
        vocabulary,
        "s/step",
        method,
        freed,
        mine,
        theirs,
        theirs / mine,
        min(ratios),
        max(ratios),
        f">= {FASTER[method]}",
    )


def memory_row(vocabulary: int, method: str) -> Row:
    """Return MB of growth; ratio: our share of the plain growth."""
    choices = [(vocabulary, method, side) for side in SIDES]
    mine, theirs = in_fresh_processes(memory_growth, *choices)
    target = f"<= {MEMORY}" if vocabulary == LARGE else ""
    return Row(
        vocabulary, "MB growth", method, RETURNED, mine, theirs, mine / theirs, target=target
    )


def pretraining_row(vocabulary: int, size: Size, steps: int) -> Row:
    """Return tokens a second; low and high are tokens a second, too."""
    (found,) = in_fresh_processes(tokens_per_second, (vocabulary, size.repeats, steps))
    target = f">= {TOKENS_PER_SECOND}" if vocabulary == SMALL else ""
    return Row(
        vocabulary,
        "tokens/s",
        "pre-training",
        RETURNED,
        statistics.median(found),
        low=min(found),
        high=max(found),
        target=target,
    )


def tasks(size: Size) -> Iterator[Callable[[], Row]]:
    """Yield what measures each row."""
    for vocabulary, steps in size.steps.items():
        for method in FASTER:
            yield functools.partial(memory_row, vocabulary, method)
        for method in FASTER:
            for freed in (RETURNED, KEPT):
                yield functools.partial(time_row, vocabulary, method, freed, size, steps)
        yield functools.partial(pretraining_row, vocabulary, size, steps)


def measure(size: Size) -> list[Row]:
    """Return every row, each printed as it comes."""
    rows = []
    for task in tasks(size):
        rows.append(task())
        print(line(*rows[-1]), flush=True)
    return rows


def line(*cells: object) -> str:
    """Return one line of the printed table."""
    padded = [f"{cell_text(cell):<{width}}" for cell, width in zip(cells, WIDTHS, strict=True)]
    return "".join(padded).rstrip()


def cell_text(cell: object) -> str:
    """Return a cell as it is printed: four digits of a number, nothing for none."""
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return str(cell)


def machine() -> dict[str, object]:
    """Return where the numbers come from."""
    return {
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": 1,
        "torch": torch.__version__,
        "dtype": "bfloat16" if models.half_precision() else "float32",
    }


def write(rows: list[Row], path: Path) -> None:
    """Write the table as csv, the machine's description in each row."""
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, [*Row._fields, *machine()])
        table.writeheader()
        for row in rows:
            table.writerow(row._asdict() | machine())


def main() -> None:
    """Measure, print, and write a csv if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick",
        action="store_true",
        help="2 repeats of 3 steps, small vocabulary only: to see that it runs",
    )
    parser.add_argument("--out", type=Path, help="also write the table to this csv file")
    options = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print(line(*Row._fields))
    rows = measure(QUICK if options.quick else FULL)
    if options.out:
        write(rows, options.out)


if __name__ == "__main__":
    main()
