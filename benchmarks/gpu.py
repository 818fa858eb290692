"""Speed and memory of the methods on one GPU: `python benchmarks/gpu.py --out FILE.json`.

Speed: a model with random weights takes optimizer steps on random tokens, with the package's own
loss, gradient checkpointing, clipping and `torch.optim.AdamW(fused=True)`; each method starts from
a new model. With shape yi-6b weights, gradients and both optimizer states are bfloat16:
6.06e9 * (2 + 2 + 4) bytes = 48 GB, and 12 GB more for the frozen reference of KL, so that one card
of 80 GB may do. Bfloat16 weights lose small updates: this measures speed and memory, not learning.
The smaller shapes keep float32 weights, under bfloat16 autocast on a GPU. Peak memory is that of
tensors; the allocator reserves more. Utilisation (MFU) is the standard estimate, which flatters in
two places: N counts the input embedding, which multiplies nothing, and attention is not halved for
being causal (4% and 8% for yi-6b).

Study: a smaller model (`medium` after yi-6b) learns one step's documents to half the loss of a
guess, so that there is something to forget; from there each method takes as many steps on them at
each of three learning rates. Random tokens have no domain: the general and the in-distribution
method of a pair compute the same.

Notebooks read benchmarks/results/gpu_*.json. Without .venv: PYTHONPATH=.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import json
import math
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from unlearn_utils.cache import paths
from unlearn_utils.core import efficiency, losses, methods
from unlearn_utils.core.methods import METHODS, Method
from unlearn_utils.data import tokens

Sides = dict[str, losses.Batch]  # "forget" and "retain"

# Dense bfloat16 FLOP/s by the exact name that torch reports, less "NVIDIA", from the vendor's data
# sheets (some print the double, "with sparsity"; RTX 4090: Ada whitepaper, float32 sums). Other
# builds of a chip (H100 PCIe, H200 NVL) are slower: no entry, no utilisation.
PEAKS = {
    "H200": 989e12,
    "H100 80GB HBM3": 989e12,
    "A100-SXM4-40GB": 312e12,
    "A100-SXM4-80GB": 312e12,
    "A100-PCIE-40GB": 312e12,
    "A100-PCIE-80GB": 312e12,
    "A100 80GB PCIe": 312e12,
    "L4": 121e12,
    "L40S": 362e12,
    "GeForce RTX 4090": 165e12,
}
END, PAD = 0, 1  # token ids that no document holds
SEED = 0  # of weights, tokens and labels
MAX_GRAD_NORM = 1.0  # as in every profile
SPEED_RATE = 2e-5  # the released code's; speed does not depend on it
# the released code's for 6e9 parameters, the laptop profile's for 1e6, and the middle of the two
STUDY_RATES = (2e-5, 1e-4, 5e-4)
# before the study: a usual rate for models of this size; at most so many steps
LEARN_RATE = 3e-4
LEARN_STEPS = 300


# ------------------------------------------------------------------------------- models and tokens


class Run(NamedTuple):
    """What is measured, and where.

    Attributes:
        shape: the model's name here.
        config: the model.
        sequence: tokens of a document.
        batch: documents of a side in a step.
        weights: their type.
        steps: those that count.
        device: where it runs.
        peak: the device's FLOP/s; None: unknown.
    """

    shape: str
    config: LlamaConfig
    sequence: int
    batch: int
    weights: torch.dtype
    steps: int = 10
    device: torch.device = torch.device("cpu")
    peak: float | None = None

    @property
    def mixed(self) -> bool:
        """Whether products are bfloat16 though the weights are not, as the Trainer does it."""
        return self.device.type == "cuda" and self.weights == torch.float32


def llama(
    hidden: int, intermediate: int, layers: int, heads: int, key_value_heads: int, vocabulary: int
) -> LlamaConfig:
    """Return a Llama of these sizes; everything else is as in Yi-6B."""
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5e6},
        tie_word_embeddings=False,
    )


YI_6B = Run("yi-6b", llama(4096, 11008, 32, 32, 4, 64_000), 4096, 1, torch.bfloat16)
MEDIUM = Run("medium", llama(1024, 2816, 24, 16, 16, 32_000), 1024, 4, torch.float32)  # 374e6
TINY = Run("tiny", llama(32, 64, 2, 4, 2, 128), 32, 2, torch.float32)  # to see that it runs
SHAPES = {run.shape: run for run in (YI_6B, MEDIUM, TINY)}


def build_model(run: Run) -> nn.Module:
    """Return a model with seeded random weights, made on the device itself.

    In training mode it checkpoints gradients.
    """
    # transformers initialises from the global generator: give it back unchanged
    with torch.random.fork_rng(devices=[]), run.device:
        torch.manual_seed(SEED)
        model = AutoModelForCausalLM.from_config(
            run.config, dtype=run.weights, attn_implementation="sdpa"
        )
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable({"use_reentrant": False})
    else:  # its older name
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def random_batches(run: Run, number: int) -> list[Sides]:
    """Return batches of random tokens for both sides, the same on every device."""
    generator = torch.Generator().manual_seed(SEED)
    size = (number, 2, run.batch, run.sequence)
    ids = torch.randint(PAD + 1, run.config.vocab_size, size, generator=generator).tolist()
    found = []
    for forget, retain in ids:
        sides = {}
        for side, documents in (("forget", forget), ("retain", retain)):
            batch = tokens.collate(documents, PAD)
            sides[side] = {name: tensor.to(run.device) for name, tensor in batch.items()}
        found.append(sides)
    return found


# ------------------------------------------------------------------------------------------- steps


def step_losses(
    run: Run,
    method: Method,
    model: nn.Module,
    reference: nn.Module | None,
    batches: Iterable[Sides],
) -> list[Callable[[], Tensor]]:
    """Return the method's loss on each batch, as functions of nothing.

    Replacement labels are drawn from the model as it is now.
    """
    generator = torch.Generator().manual_seed(SEED)
    found = []
    for sides in batches:
        labels = methods.replacement_labels(
            method, sides["forget"], model.eval(), generator, run.config.vocab_size, (END, PAD)
        )
        forget = {**sides["forget"], "labels": labels}
        loss = functools.partial(
            methods.unlearning_loss, method, model, forget, sides["retain"], reference
        )
        found.append(loss)
    return found


def take_steps(
    run: Run, model: nn.Module, rate: float, steps: Iterable[Callable[[], Tensor]]
) -> Iterator[tuple[float, float]]:
    """Take an optimizer step on each loss, and yield its seconds and the loss."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=rate, weight_decay=0.0, fused=True)
    for loss in steps:
        _wait(run)
        began = time.perf_counter()
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.mixed):
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        _wait(run)
        yield time.perf_counter() - began, value.item()


def _wait(run: Run) -> None:
    """Wait until a GPU has done what it was asked to."""
    if run.device.type == "cuda":
        torch.cuda.synchronize()


# ------------------------------------------------------------------------------------ measurements


def describe(run: Run, method: Method) -> dict:
    """Return what a row says without a measurement; tokens are those of a step."""
    side = run.batch * run.sequence
    dtype = str(run.weights).removeprefix("torch.")
    if run.mixed:
        dtype += " weights, bfloat16 autocast"
    meta = build_model(run._replace(device=torch.device("meta")))
    return {
        "shape": run.shape,
        "parameters": efficiency.parameter_count(meta),
        "method": method.name,
        "dtype": dtype,
        "sequence": run.sequence,
        "batch": run.batch,
        "forget_tokens": side,
        "retain_tokens": side if method.retain is not None else 0,
        "optimizer": "torch.optim.AdamW(fused=True)",
    }


def utilisation(
    run: Run, parameters: int, trained: int, reference: int, seconds: float
) -> float | None:
    """Return the FLOPs of a step over seconds and the device's peak; None where that is unknown.

    A trained token takes 6 N, one that the reference reads 2 N (Kaplan et al. 2020, arXiv
    2001.08361); attention takes 12 * layers * hidden * sequence (PaLM, arXiv 2204.02311, appendix
    B), a third of it for the reference. What checkpointing computes again does not count.

    Args:
        parameters: N.
        trained: tokens of a step, of both sides.
        reference: tokens of a step that the reference reads.
        seconds: of a step.
    """
    if run.peak is None:
        return None
    attention = 12 * run.config.num_hidden_layers * run.config.hidden_size * run.sequence
    flops = trained * (6 * parameters + attention) + reference * (2 * parameters + attention / 3)
    return flops / seconds / run.peak


def measure_speed(run: Run, method: Method) -> dict:
    """Return the seconds of each step after one that does not count, and what follows from them.

    The losses are those of all steps.
    """
    row = describe(run, method)
    model = build_model(run)
    reference = None
    if method.needs_reference:
        reference = copy.deepcopy(model).eval().requires_grad_(False)
    steps = step_losses(run, method, model, reference, random_batches(run, 1 + run.steps))
    taken = list(take_steps(run, model, SPEED_RATE, steps))
    seconds = [one for one, _ in taken[1:]]
    median = statistics.median(seconds)

    by_side = {"forget": row["forget_tokens"], "retain": row["retain_tokens"]}
    trained = sum(by_side.values())
    read = sum(by_side[side] for side, term in method.terms.items() if term.needs_reference)
    peak_gb = None
    if run.device.type == "cuda":
        peak_gb = torch.cuda.max_memory_allocated() / 1e9
    return {
        "seconds_median": median,
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "n": len(seconds),
        "seconds": seconds,
        "losses": [loss for _, loss in taken],
        "tokens_per_second": trained / median,
        "mfu": utilisation(run, row["parameters"], trained, read, median),
        "peak_gb": peak_gb,
    }


def learn(run: Run, sides: Sides) -> nn.Module:
    """Return a frozen model that knows both sides to half of ln V, the loss of a guess.

    It stops earlier after `LEARN_STEPS`.
    """
    model = build_model(run)

    def loss() -> Tensor:
        return sum(losses.next_token_loss(model, batch) for batch in sides.values()) / 2

    for _, value in take_steps(run, model, LEARN_RATE, [loss] * LEARN_STEPS):
        if value < math.log(run.config.vocab_size) / 2:
            break
    return model.eval().requires_grad_(False)


def measure_forgetting(
    run: Run, method: Method, rate: float, start: nn.Module, sides: Sides
) -> dict:
    """Return the method's loss at each step from `start`.

    With it come the losses on the true tokens of each side before and after, in nats.
    """
    model = copy.deepcopy(start).requires_grad_(True)
    steps = step_losses(run, method, model, start, [sides]) * run.steps
    row = {"losses": [loss for _, loss in take_steps(run, model, rate, steps)]}
    with torch.no_grad(), torch.autocast(run.device.type, torch.bfloat16, enabled=run.mixed):
        for when, one in (("before", start), ("after", model.eval())):
            for side, batch in sides.items():
                row[f"{side}_{when}"] = losses.next_token_loss(one, batch).item()
    return row


def attempt(run: Run, row: dict, measurement: Callable[[], dict]) -> dict:
    """Print the row with its measurement and return it; with an error if it does not fit."""
    if run.device.type == "cuda":
        gc.collect()  # what the method before has left
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        row = row | measurement()
    except torch.OutOfMemoryError:
        row = row | {"error": "out of memory"}
    print(row, flush=True)
    return json.loads(json.dumps(row), parse_constant=lambda _: None)  # JSON has no NaN


def measure(run: Run, studied: Run, chosen: Sequence[Method], header: dict, path: Path) -> None:
    """Measure every row.

    The file is written again after each method, so that whatever happens later leaves it.

    Args:
        run: whose speed is measured.
        studied: whose forgetting is measured.
        header: where the numbers come from.
    """
    found = {"rows": [], "study": []}
    (sides,) = random_batches(studied, 1)
    start = functools.cache(lambda: learn(studied, sides))
    for method in chosen:
        measurement = functools.partial(measure_speed, run, method)
        found["rows"].append(attempt(run, describe(run, method), measurement))
        write(header | found, path)
    for method in chosen:
        for rate in STUDY_RATES:
            row = describe(studied, method) | {"learning_rate": rate, "steps": studied.steps}

            def measurement(method: Method = method, rate: float = rate) -> dict:
                return measure_forgetting(studied, method, rate, start(), sides)

            found["study"].append(attempt(studied, row, measurement))
            write(header | found, path)


def write(result: dict, path: Path) -> None:
    """Write the file at once or not at all."""
    paths.write_whole(path, json.dumps(result, indent=1, allow_nan=False) + "\n")


# -------------------------------------------------------------------------------------- the script


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options; print one line on stderr and exit with 2 if something is wrong."""
    parser = argparse.ArgumentParser(prog="gpu.py", description=__doc__.splitlines()[0])
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")
    parser.add_argument(
        "--out", type=Path, required=True, help="notebooks read benchmarks/results/gpu_*.json"
    )
    parser.add_argument("--shape", choices=SHAPES, default="yi-6b")
    parser.add_argument(
        "--methods", default=",".join(METHODS), help="names with commas between; all if left out"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", type=int, default=10, help="of a method; 10 if left out")
    parser.add_argument("--sequence", type=int, help="tokens; as the shape has it if left out")
    parser.add_argument(
        "--batch", type=int, help="documents of a side; as the shape has it if left out"
    )
    options = parser.parse_args(arguments)
    for name in ("steps", "sequence", "batch"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"argument --{name}: must be above 0, not {value}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            "torch sees no CUDA GPU here; --device cpu --shape tiny runs everything at a toy scale"
        )
    try:
        names = dict.fromkeys(options.methods.split(","))
        options.methods = [methods.get_method(name) for name in names]
        options.out.parent.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return options


def main(arguments: Sequence[str]) -> None:
    """Measure, print, write."""
    options = parse(arguments)
    device = "CPU"
    if options.device == "cuda":
        device = torch.cuda.get_device_name()
    header = {
        "device": device,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/gpu.py", *arguments]),
    }
    changed = {
        "device": torch.device(options.device),
        "peak": PEAKS.get(device.removeprefix("NVIDIA ")),
    }
    for name in ("steps", "sequence", "batch"):
        value = getattr(options, name)
        if value is not None:
            changed[name] = value
    studied = "medium" if options.shape == "yi-6b" else options.shape
    measure(
        SHAPES[options.shape]._replace(**changed),
        SHAPES[studied]._replace(**changed),
        options.methods,
        header,
        options.out,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
