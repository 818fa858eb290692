"""Speed and memory of the seven methods on one GPU: `python benchmarks/gpu.py --out benchmarks/results/gpu_NAME.json`.

Speed: a model with random weights takes optimizer steps on random tokens, with the package's own loss, gradient checkpointing, clipping
and `torch.optim.AdamW(fused=True)`; each method starts from a new model. With shape yi-6b weights, gradients and both optimizer states are
bfloat16: 6.06e9 * (2 + 2 + 4) bytes = 48 GB, and 12 GB more for the frozen reference of KL, so that one card of 80 GB may do. Bfloat16
weights lose small updates: this measures speed and memory, not learning. The smaller shapes keep float32 weights, under bfloat16 autocast
on a GPU. Peak memory is that of tensors; the allocator reserves more. Utilisation (MFU) is the standard estimate, which flatters in two
places: N counts the input embedding, which multiplies nothing, and attention is not halved for being causal (4% and 8% for yi-6b).

Study: a smaller model (`medium` after yi-6b) learns one step's documents to half the loss of a guess, so that there is something to forget;
from there each method takes as many steps on them at each of three learning rates. Random tokens have no domain: the general and the
in-distribution method of a pair compute the same. Without .venv: PYTHONPATH=.
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

from unlearn_utils.core import efficiency, losses, methods
from unlearn_utils.data import tokens

Sides = dict[str, losses.Batch]  # "forget" and "retain"
# Dense bfloat16 FLOP/s by the exact name that torch reports, less "NVIDIA", from the vendor's data sheets (some print the double, "with
# sparsity"; RTX 4090: Ada whitepaper, float32 sums). Other builds of a chip (H100 PCIe, H200 NVL) are slower: no entry, no utilisation.
PEAKS = {"H200": 989e12, "H100 80GB HBM3": 989e12, "L4": 121e12, "L40S": 362e12, "GeForce RTX 4090": 165e12}
PEAKS |= {f"A100{kind}": 312e12 for kind in ("-SXM4-40GB", "-SXM4-80GB", "-PCIE-40GB", "-PCIE-80GB", " 80GB PCIe")}
END, PAD, SEED = 0, 1, 0  # token ids that no document holds; the seed of weights, tokens and labels
MAX_GRAD_NORM, SPEED_RATE = 1.0, 2e-5  # as in every profile; the released code's, and speed does not depend on it
STUDY_RATES = (2e-5, 1e-4, 5e-4)  # the released code's for 6e9 parameters, the laptop profile's for 1e6, and the middle of the two
LEARN_RATE, LEARN_STEPS = 3e-4, 300  # before the study: a usual rate for models of this size; at most so many steps


class Run(NamedTuple):
    """A model, tokens of a document, documents of a side in a step, type of the weights; steps that count, device, its FLOP/s."""

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
        """Whether products are bfloat16 though the weights are not, as the Trainer does it on a GPU."""
        return self.device.type == "cuda" and self.weights == torch.float32


def llama(*sizes: int) -> LlamaConfig:
    """Hidden and intermediate width, layers, heads, key/value heads, vocabulary; everything else as in Yi-6B."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
    yi = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 5e6}}
    return LlamaConfig(**dict(zip(names, sizes, strict=True)), **yi, tie_word_embeddings=False)


RUNS = (
    Run("yi-6b", llama(4096, 11008, 32, 32, 4, 64_000), 4096, 1, torch.bfloat16),
    Run("medium", llama(1024, 2816, 24, 16, 16, 32_000), 1024, 4, torch.float32),  # 374e6 parameters
    Run("tiny", llama(32, 64, 2, 4, 2, 128), 32, 2, torch.float32),  # to see on a CPU that it runs
)
SHAPES = {run.shape: run for run in RUNS}


def build(run: Run) -> nn.Module:
    """Seeded random weights, made on the device itself; in training mode the model checkpoints gradients."""
    with torch.random.fork_rng(devices=[]), run.device:  # transformers initialises from the global generator: give it back unchanged
        torch.manual_seed(SEED)
        model = AutoModelForCausalLM.from_config(run.config, dtype=run.weights, attn_implementation="sdpa")
    checkpoint = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable  # its older name
    checkpoint({"use_reentrant": False})
    return model


def documents(run: Run, n: int) -> list[Sides]:
    """n batches of random tokens for each side, the same on every device."""
    size, generator = (n, 2, run.batch, run.sequence), torch.Generator().manual_seed(SEED)
    ids = torch.randint(PAD + 1, run.config.vocab_size, size, generator=generator).tolist()
    both = [[{k: v.to(run.device) for k, v in tokens.collate(side, PAD).items()} for side in pair] for pair in ids]
    return [{"forget": forget, "retain": retain} for forget, retain in both]


def losses(run: Run, method: str, model: nn.Module, reference: nn.Module | None, data: Iterable[Sides]) -> list[Callable[[], Tensor]]:
    """The method's loss on each of the data, replacement labels drawn from the model as it is now."""
    generator, found = torch.Generator().manual_seed(SEED), []
    for forget, retain in map(dict.values, data):
        labels = methods.replacement_labels(method, forget, model.eval(), generator, run.config.vocab_size, (END, PAD))
        found.append(functools.partial(methods.unlearning_loss, method, model, {**forget, "labels": labels}, retain, reference))
    return found


def train(run: Run, model: nn.Module, rate: float, steps: Iterable[Callable[[], Tensor]]) -> Iterator[tuple[float, float]]:
    """(seconds, loss) of an optimizer step on each loss."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=rate, weight_decay=0.0, fused=True)
    wait = torch.cuda.synchronize if run.device.type == "cuda" else lambda: None
    for loss in steps:
        wait()
        began = time.perf_counter()
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.mixed):
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        wait()
        yield time.perf_counter() - began, value.item()


def described(run: Run, method: str) -> dict:
    """What a row says without a measurement; tokens are those of a step."""
    side, dtype = run.batch * run.sequence, str(run.weights).removeprefix("torch.") + " weights, bfloat16 autocast" * run.mixed
    parameters = efficiency.parameter_count(build(run._replace(device=torch.device("meta"))))
    row = {"shape": run.shape, "parameters": parameters, "method": method, "dtype": dtype, "sequence": run.sequence, "batch": run.batch}
    retain = side if methods.get_method(method).retain else 0
    return row | {"forget_tokens": side, "retain_tokens": retain, "optimizer": "torch.optim.AdamW(fused=True)"}


def utilisation(run: Run, parameters: int, trained: int, reference: int, seconds: float) -> float | None:
    """FLOPs of a step over seconds and the device's peak; None where that is unknown. 6 N a trained token, 2 N one that the reference
    reads (Kaplan et al. 2020, arXiv 2001.08361); attention: 12 * layers * hidden * sequence (PaLM, arXiv 2204.02311, appendix B), a
    third of it for the reference. What checkpointing computes again does not count."""
    attention = 12 * run.config.num_hidden_layers * run.config.hidden_size * run.sequence
    flops = trained * (6 * parameters + attention) + reference * (2 * parameters + attention / 3)
    return flops / seconds / run.peak if run.peak else None


def speed(run: Run, method: str) -> dict:
    """Seconds of each step after one that does not count, and what follows from them; losses of all."""
    row, model, kl = described(run, method), build(run), methods.get_method(method).retain == "kl"
    reference = copy.deepcopy(model).eval().requires_grad_(False) if kl else None
    steps = losses(run, method, model, reference, documents(run, 1 + run.steps))
    (_, *seconds), values = zip(*train(run, model, SPEED_RATE, steps), strict=True)
    median, trained = statistics.median(seconds), row["forget_tokens"] + row["retain_tokens"]
    mfu = utilisation(run, row["parameters"], trained, kl * row["retain_tokens"], median)
    peak_gb = torch.cuda.max_memory_allocated() / 1e9 if run.device.type == "cuda" else None
    found = {"seconds_median": median, "seconds_min": min(seconds), "seconds_max": max(seconds), "n": len(seconds), "seconds": seconds}
    return found | {"losses": values, "tokens_per_second": trained / median, "mfu": mfu, "peak_gb": peak_gb}


def learned(run: Run, data: Sides) -> nn.Module:
    """A frozen model that knows both sides to half of ln V, the loss of a guess, or as far as `LEARN_STEPS` go."""
    model = build(run)
    steps = [lambda: sum(losses.next_token_loss(model, side) for side in data.values()) / 2] * LEARN_STEPS
    for _, loss in train(run, model, LEARN_RATE, steps):
        if loss < math.log(run.config.vocab_size) / 2:
            break
    return model.eval().requires_grad_(False)


def study(run: Run, method: str, rate: float, start: nn.Module, data: Sides) -> dict:
    """The method's loss at each step from `start`, and the losses on the true tokens of each side before and after, in nats."""
    model = copy.deepcopy(start).requires_grad_(True)
    steps = losses(run, method, model, start, [data]) * run.steps
    row = {"losses": [value for _, value in train(run, model, rate, steps)]}
    with torch.no_grad(), torch.autocast(run.device.type, torch.bfloat16, enabled=run.mixed):
        for when, one in (("before", start), ("after", model.eval())):
            row |= {f"{side}_{when}": losses.next_token_loss(one, batch).item() for side, batch in data.items()}
    return row


def attempt(run: Run, row: dict, measurement: Callable[[], dict]) -> dict:
    """The row with its measurement, printed; with an error instead if it does not fit."""
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


def measure(run: Run, studied: Run, chosen: Sequence[str], header: dict, path: Path) -> None:
    """Every row; the file is written again after each method, so that whatever happens later leaves it."""
    rows, [data] = {"rows": [], "study": []}, documents(studied, 1)
    start = functools.cache(lambda: learned(studied, data))
    for method in chosen:
        rows["rows"].append(attempt(run, described(run, method), functools.partial(speed, run, method)))
        write(header | rows, path)
    for method, rate in ((m, r) for m in chosen for r in STUDY_RATES):
        row = described(studied, method) | {"learning_rate": rate, "steps": studied.steps}
        rows["study"].append(attempt(studied, row, lambda m=method, r=rate: study(studied, m, r, start(), data)))
        write(header | rows, path)


def write(result: dict, path: Path) -> None:
    """At once or not at all."""
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    unfinished.replace(path)


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; one line on stderr and exit 2 if something is wrong with it."""
    parser = argparse.ArgumentParser(prog="gpu.py", description=__doc__.splitlines()[0])
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")
    parser.add_argument("--out", type=Path, required=True, help="notebooks read benchmarks/results/gpu_*.json")
    parser.add_argument("--shape", choices=SHAPES, default="yi-6b")
    parser.add_argument("--methods", default=",".join(methods.METHODS), help="names with commas between; all if left out")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    for name, default, what in (("steps", 10, "of a method"), ("sequence", None, "tokens"), ("batch", None, "documents of a side")):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what}; {default or 'as the shape has it'} if left out")
    found = parser.parse_args(arguments)
    for name in ("steps", "sequence", "batch"):
        if (value := getattr(found, name)) is not None and value < 1:
            parser.error(f"argument --{name}: must be above 0, not {value}")
    if found.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA GPU here; --device cpu --shape tiny runs everything at a toy scale")
    try:
        found.methods = [methods.get_method(name).name for name in dict.fromkeys(found.methods.split(","))]
        found.out.parent.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return found


def main(arguments: Sequence[str]) -> None:
    """Measure, print, write."""
    chosen, now = options(arguments), datetime.now(UTC).isoformat(timespec="seconds")
    name = torch.cuda.get_device_name() if chosen.device == "cuda" else "CPU"
    header = {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "date": now}
    header["command"] = shlex.join(["python", "benchmarks/gpu.py", *arguments])
    changed = {k: v for k in ("steps", "sequence", "batch") if (v := getattr(chosen, k))}
    changed |= {"device": torch.device(chosen.device), "peak": PEAKS.get(name.removeprefix("NVIDIA "))}
    shapes = (chosen.shape, "medium" if chosen.shape == "yi-6b" else chosen.shape)
    measure(*(SHAPES[shape]._replace(**changed) for shape in shapes), chosen.methods, header, chosen.out)


if __name__ == "__main__":
    main(sys.argv[1:])
