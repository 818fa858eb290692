"""Speed and memory against a plain Trainer with full logits: `python benchmarks/speed.py`.

Everything runs on one core. Both sides have the same model (the laptop profile's, and the same
with 32,000 tokens), documents (random tokens from a fixed seed, 256 each), order, micro-batch
(4 forget + 4 retain), data type, clipping and Trainer settings. Plain: `model(**batch).loss`, and a
KL from the log-softmax of all logits of the model and of the reference, which is run again at every
step; the optimizer is the Trainer's default.

A time is that of a whole run of two epochs, set-up and the reference's outputs included, divided by
its optimizer steps; the two sides take turns, so that a shared machine disturbs both. It counts the
process's seconds on the CPU, which are those of the clock where nothing else wants the core. Both
sides are timed twice: with glibc as it is ("returned": freed memory goes back to the system and
arrives anew in pages), and told to keep it ("kept"), as the workers of a run do. Memory is measured
by a fresh process for each side: growth of its peak (ru_maxrss) over the loaded models. Targets are
printed, a miss does not fail. Without .venv: PYTHONPATH=.

`--model published` takes a model of SmolLM2-135M's shape with random weights instead (freed memory
is kept). Each of its times has the FLOPs of the matrix products that it needs, two for each weight,
token and pass: 1 pass forward, 2 backward, 1 backward where weights are frozen, and attention
without halving it for the causal mask. The share is of the rate at which torch multiplies matrices
of these shapes in the same type, measured in the same turns.
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
import pandas as pd
import psutil
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from unlearn_utils.cache import memory
from unlearn_utils.core import losses, methods
from unlearn_utils.engine import evaluation, models, training
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

# the published model
PUBLISHED = profile("published").shape
KEY_HEADS = 3
DESCENT, KL, LORA, MEASURING = "ascent_descent", "ascent_kl", "lora", "measuring"
PUBLISHED_FASTER = {DESCENT: 1.1, KL: 1.25, LORA: 1.3}
PUBLISHED_SHARE = {DESCENT: 0.7, MEASURING: 0.8}  # of the rate of the products alone
PUBLISHED_MEMORY = {DESCENT: 0.5, MEASURING: 0.1}
PUBLISHED_STEPS = 2  # of a run: one an epoch
TOKENS = 256  # of a document
MEASURED, MEASURED_TOKENS = 8, 192  # documents that are measured, tokens of each
RANK = 8  # of the adapters

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
    tflop: float | None = None  # of ours
    gflop_s: float | None = None  # of ours
    share: float | None = None  # of ours, of the rate of the products alone


WIDTHS = (11, 11, 32, 10, 9, 9, 8, 8, 8, 17, 8, 8, 8)  # of the columns of `Row`, printed


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
    """Return the CPU's seconds of a call."""
    began = time.process_time()
    run(*given)
    return time.process_time() - began


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
    for name, value in memory.KEEP_FREED.items():  # read when a process starts
        os.environ.pop(name, None)
        if freed == KEPT:
            os.environ[name] = value
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(choices), spawn, max_tasks_per_child=1) as pool:
        return list(pool.map(task, *zip(*choices, strict=True)))


# ------------------------------------------------------------------------- a published model


def published() -> nn.Module:
    """Return a model of the published one's shape, with random weights."""
    config = LlamaConfig(
        vocab_size=PUBLISHED.vocabulary,
        hidden_size=PUBLISHED.hidden,
        intermediate_size=PUBLISHED.intermediate,
        num_hidden_layers=PUBLISHED.layers,
        num_attention_heads=PUBLISHED.heads,
        num_key_value_heads=KEY_HEADS,
        tie_word_embeddings=True,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    torch.manual_seed(SEED)
    return LlamaForCausalLM(config)


def adapted() -> nn.Module:
    """Return the published model with adapters on every linear layer, which alone are trained."""
    config = LoraConfig(task_type="CAUSAL_LM", r=RANK, target_modules="all-linear")
    return get_peft_model(published(), config)


def published_job(name: str) -> training.Job:
    """Return the job of `PUBLISHED_STEPS` steps."""
    method = methods.get_method(f"{KL if name == KL else DESCENT}_in_distribution")
    reference = published().eval() if method.needs_reference else None
    size = (2 * RECIPE.batch, TOKENS)
    found = np.random.default_rng(SEED).integers(PAD + 1, PUBLISHED.vocabulary, size).tolist()
    return training.Job(method, found[::2], found[1::2], RECIPE, PAD, SEED, reference)


def published_run(name: str, side: str) -> Callable[[], object]:
    """Return what runs one side of a row, with its models loaded.

    The plain side of LoRA is our own full step.
    """
    if name == MEASURING:
        size = (MEASURED, MEASURED_TOKENS)
        ids = np.random.default_rng(SEED).integers(PAD + 1, PUBLISHED.vocabulary, size)
        model = published().eval()
        if side == "plain":
            return functools.partial(measure_plainly, model, torch.from_numpy(ids))
        rows = pd.DataFrame({"ids": ids.tolist()})
        return functools.partial(evaluation.measure_briefly, model, rows, PAD, MEASURED)
    model = adapted() if (name, side) == (LORA, "ours") else published()
    run = training.unlearn if name == LORA else SIDES[side]
    return functools.partial(run, model, published_job(name))


@torch.no_grad()
def measure_plainly(model: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and hits of every document, from its full logits."""
    with torch.autocast("cpu", torch.bfloat16, enabled=models.half_precision()):
        log_p = model(ids).logits[:, :-1].float().log_softmax(-1)
    targets = ids[:, 1:, None]
    return log_p.gather(-1, targets)[..., 0], log_p.argmax(-1) == targets[..., 0]


def published_flops(name: str) -> float:
    """Return the FLOPs of the matrix products that ours needs in a step, or to measure."""
    if name == MEASURING:
        return MEASURED * MEASURED_TOKENS * flops_of_pass(MEASURED_TOKENS)
    passes = {DESCENT: 3, LORA: 2}.get(name, 3 + 0.5 / RECIPE.epochs)  # the reference reads once
    return passes * 2 * RECIPE.batch * TOKENS * flops_of_pass(TOKENS)


def flops_of_pass(tokens: int) -> float:
    """Return the FLOPs of a token in a document of so many, forward, the head included."""
    key_values = PUBLISHED.hidden * KEY_HEADS // PUBLISHED.heads
    of_layer = 2 * PUBLISHED.hidden * (PUBLISHED.hidden + key_values)
    of_layer += 3 * PUBLISHED.hidden * PUBLISHED.intermediate
    of_layer += 2 * PUBLISHED.hidden * tokens  # scores, and what they weigh
    return 2.0 * (PUBLISHED.layers * of_layer + PUBLISHED.hidden * PUBLISHED.vocabulary)


def product_rate() -> float:
    """Return the FLOPs a second of matrix products alone, in the shapes of a layer and the head."""
    rows = 2 * RECIPE.batch * TOKENS
    hidden, wide = PUBLISHED.hidden, PUBLISHED.intermediate
    narrow = hidden * KEY_HEADS // PUBLISHED.heads
    layer = [(hidden, hidden)] * 2 + [(hidden, narrow)] * 2 + [(hidden, wide)] * 2
    shapes = [*layer, (wide, hidden)] * 4 + [(hidden, PUBLISHED.vocabulary // 8)]  # 30 : 1
    dtype = torch.bfloat16 if models.half_precision() else torch.float32
    pairs = []
    for inner, outer in shapes:
        pairs.append((torch.ones(rows, inner, dtype=dtype), torch.ones(outer, inner, dtype=dtype)))
    places = [torch.empty(len(one), len(other), dtype=dtype) for one, other in pairs]

    def multiply() -> None:
        for (one, other), place in zip(pairs, places, strict=True):
            torch.mm(one, other.T, out=place)

    multiply()
    taken = min(seconds(multiply) for _ in range(3))
    return sum(2.0 * rows * inner * outer for inner, outer in shapes) / taken


def published_seconds(name: str, turns: int) -> dict[str, list[float]]:
    """Return the seconds of a step, or of a measurement, of each side's turns.

    Beside them is the rate of the products alone. The first turn is not counted.
    """
    torch.set_num_threads(1)
    runs = {side: published_run(name, side) for side in SIDES}
    steps = 1 if name == MEASURING else PUBLISHED_STEPS
    found = {side: [] for side in (*SIDES, "rate")}
    for _ in range(1 + turns):
        for side, run in runs.items():
            found[side].append(seconds(run) / steps)
        found["rate"].append(product_rate())
    return {key: values[1:] for key, values in found.items()}


def published_growth(name: str, side: str) -> float:
    """Return the MB by which this process's peak is above what it holds with its models loaded.

    That is at least the growth: building a model takes more for a moment than the model, so the
    peak before would hide a part of it.
    """
    torch.set_num_threads(1)
    run = published_run(name, side)
    before = psutil.Process().memory_info().rss / 1e6
    run()
    return peak() - before


def published_time_row(name: str, turns: int) -> Row:
    """Return seconds, how many times faster ours is, and our share of the products' rate."""
    (found,) = in_fresh_processes(published_seconds, (name, turns), freed=KEPT)
    mine = statistics.median(found["ours"])
    theirs = statistics.median(found["plain"])
    ratios = [plain / ours for ours, plain in zip(found["ours"], found["plain"], strict=True)]
    targets = []
    if name in PUBLISHED_FASTER:
        targets.append(f">= {PUBLISHED_FASTER[name]}")
    if name in PUBLISHED_SHARE:
        targets.append(f"share >= {PUBLISHED_SHARE[name]}")
    flops = published_flops(name)
    return Row(
        PUBLISHED.vocabulary,
        "s" if name == MEASURING else "s/step",
        name,
        KEPT,
        mine,
        theirs,
        theirs / mine,
        min(ratios),
        max(ratios),
        ", ".join(targets),
        flops / 1e12,
        flops / mine / 1e9,
        flops / mine / statistics.median(found["rate"]),
    )


def published_memory_row(name: str) -> Row:
    """Return MB of growth; ratio: our share of the plain growth."""
    growths = []
    for side in SIDES:  # one after the other: each has gigabytes
        growths += in_fresh_processes(published_growth, (name, side))
    mine, theirs = growths
    target = f"<= {PUBLISHED_MEMORY[name]}"
    return Row(
        PUBLISHED.vocabulary,
        "MB growth",
        name,
        RETURNED,
        mine,
        theirs,
        mine / theirs,
        target=target,
    )


def published_tasks(turns: int) -> Iterator[Callable[[], Row]]:
    """Yield what measures each row of the published model."""
    for name in (MEASURING, DESCENT, KL, LORA):
        yield functools.partial(published_time_row, name, turns)
    for name in PUBLISHED_MEMORY:
        yield functools.partial(published_memory_row, name)


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


def measure(measurements: Iterator[Callable[[], Row]]) -> list[Row]:
    """Return every row, each printed as it comes."""
    rows = []
    for task in measurements:
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
        help="few repeats, and of the laptop profile's model the small vocabulary only",
    )
    parser.add_argument(
        "--model",
        choices=("laptop", "published"),
        default="laptop",
        help="the laptop profile's, or one of SmolLM2-135M's shape",
    )
    parser.add_argument("--out", type=Path, help="also write the table to this csv file")
    options = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print(line(*Row._fields))
    size = QUICK if options.quick else FULL
    measurements = tasks(size)
    if options.model == "published":
        measurements = published_tasks(1 if options.quick else size.repeats)
    rows = measure(measurements)
    if options.out:
        write(rows, options.out)


if __name__ == "__main__":
    main()
