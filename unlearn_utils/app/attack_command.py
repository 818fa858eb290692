"""The command `attack`: how much of what was unlearned comes back.

A retrained model under the same attacks is the control. Where there is none, documents that the
model before unlearning has not seen stand for it. Imports are lazy, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn_utils.app import evaluate_command, option_checks, terminal, tune_command
from unlearn_utils.app.unlearn_arguments import DOCUMENTS

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from unlearn_utils.app.settings import RunSettings
    from unlearn_utils.app.user_documents import Tables
    from unlearn_utils.app.user_run import FoundModel

RATES = (1e-5, 1e-4, 1e-3)  # ours: one in each of three decades around the paper's 2e-5
STEPS, MOST_STEPS = 8, 10_000
BATCH = 4  # chunks of a step
SHARE = 1 / 4  # of the forget documents, which relearning reads
LEAST = 2  # documents of a set, which is divided
READ = 32  # documents of a set that are measured, each by its first chunk
BITS = (8, 4)
PREFIXES, LENGTH = (16, 32, 64), 32  # tokens that a model is given, and that it then writes
MODEL, BASE, RETRAINED = "model", "base", "retrained"
SETS = ("forget", "unseen", "general")


# -------------------------------------------------------------------------------------- the options


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of `attack`."""
    models = {
        MODEL: "that has unlearned: a folder, or a model of the hub",
        BASE: "the model before unlearning",
        RETRAINED: "a model that was trained without the forget documents: the control",
    }
    for name, words in models.items():
        command.add_argument(
            f"--{name}", required=name != RETRAINED, type=option_checks.text, help=words
        )
    documents = {
        "forget": DOCUMENTS,
        "unseen": "documents like the forgotten ones that no model has seen",
        "general": "other text",
    }
    for name, words in documents.items():
        command.add_argument(
            f"--{name}",
            required=name == "forget",
            type=option_checks.path,
            metavar="PATH",
            help=words,
        )
    command.add_argument(
        "--out", required=True, type=option_checks.path, metavar="DIR", help="a new or empty folder"
    )
    command.add_argument(
        "--learning-rates",
        type=tune_command.rates,
        metavar="A,B,C",
        default=list(RATES),
        help="of relearning; default: 1e-5,1e-4,1e-3",
    )
    command.add_argument("--steps", type=int, default=STEPS, help=f"of relearning; default {STEPS}")
    command.add_argument(
        "--context", type=int, help="tokens of a chunk; default: 4096, or what the models read"
    )
    command.add_argument(
        "--micro-batch",
        type=int,
        default=BATCH,
        help=f"chunks at a time, for less memory; divides the batch of {BATCH}",
    )
    command.add_argument(
        "--gradient-checkpointing", action="store_true", help="less memory, about a third more time"
    )


def named_models(options: argparse.Namespace) -> dict[str, str]:
    """Return the models that are given, by what they are."""
    given = {name: getattr(options, name) for name in (MODEL, BASE, RETRAINED)}
    return {name: one for name, one in given.items() if one is not None}


def paths_of(options: argparse.Namespace) -> dict[str, Path]:
    """Return the documents that are given, by their set."""
    given = {name: getattr(options, name) for name in SETS}
    return {name: path for name, path in given.items() if path is not None}


def check_options(options: argparse.Namespace) -> None:
    """Check all that can be checked before a model is read. Raise ValueError if it is wrong."""
    if not 1 <= options.steps <= MOST_STEPS:
        raise ValueError(f"--steps {options.steps}: choose 1 to {MOST_STEPS}")
    if options.micro_batch < 1 or BATCH % options.micro_batch:
        raise ValueError(
            f"--micro-batch {options.micro_batch}: must be positive and divide the batch of {BATCH}"
        )
    read = {}
    for name, path in paths_of(options).items():
        option_checks.check_documents(f"--{name}", path)
        read[f"--{name}"] = path
    models = named_models(options)
    for name, given in models.items():
        if Path(given).is_dir():
            read[f"--{name}"] = Path(given)
    option_checks.check_new_folder("--out", options.out)
    out = Path(os.path.realpath(options.out))
    option_checks.check_outside("--out", out, read)
    option_checks.check_writable("--out", out)
    for given in dict.fromkeys(models.values()):  # the last, for it may ask the hub
        option_checks.check_model(given)


# -------------------------------------------------------------------------------------- the command


@dataclass(frozen=True)
class Inputs:
    """Models and documents, ready to begin.

    Attributes:
        models: by what they are.
        sources: chunks that relearning reads, by the set that they are of.
        measured: a chunk a document, of every set; none of them is in `sources`.
        rates: of relearning, from small to large.
        steps: of a run.
        run: settings of a run, but for its recipe.
        relearned: forget documents that relearning reads, of how many.
    """

    models: Mapping[str, FoundModel]
    sources: Tables
    measured: pd.DataFrame
    rates: list[float]
    steps: int
    run: RunSettings
    relearned: tuple[int, int]

    @property
    def attacked(self) -> list[str]:
        """The models that go through every attack."""
        return [name for name in (MODEL, RETRAINED) if name in self.models]

    @property
    def pad_id(self) -> int:
        """The token that pads."""
        return self.models[MODEL].tokenizer.pad_token_id


@dataclass
class Found:
    """What the attacks came to, as rows of documents.

    Attributes:
        before: of each model.
        relearned: of each source, rate and model, at every mark, with its step.
        rounded: of each number of bits and model.
        share: of the parameters, which were rounded.
        continued: of each prefix and model.
    """

    before: dict[str, pd.DataFrame] = field(default_factory=dict)
    relearned: dict[tuple[str, float, str], pd.DataFrame] = field(default_factory=dict)
    rounded: dict[tuple[int, str], pd.DataFrame] = field(default_factory=dict)
    share: float = 0.0
    continued: dict[tuple[int, str], pd.DataFrame] = field(default_factory=dict)


def attack(options: argparse.Namespace) -> None:
    """Attack a model, print a table and a verdict, and write both and a figure."""
    from unlearn_utils.app import attack_report, output_folder

    evaluate_command.check_one_process()
    check_options(options)
    inputs = prepare(options)
    with output_folder.new_folder(options.out.resolve()) as new:
        found = run(inputs)
        table = attack_report.table(inputs, found)
        table.to_csv(new / attack_report.TABLE, index=False)
        curves = attack_report.curves(inputs, found)
        curves.to_csv(new / attack_report.CURVES, index=False)
        attack_report.draw(curves, new / attack_report.FIGURE)
    terminal.say(attack_report.to_read(table))
    terminal.say("\n".join(attack_report.verdict(inputs, found, table)))
    files = (attack_report.TABLE, attack_report.CURVES, attack_report.FIGURE)
    terminal.say(f"{options.out.resolve()}: {', '.join(files)}")


def prepare(options: argparse.Namespace) -> Inputs:
    """Read and check what the attacks need, say it, and plan the memory."""
    import pandas as pd

    from unlearn_utils.app import settings, user_documents, user_run
    from unlearn_utils.app.settings import RunSettings
    from unlearn_utils.engine import attacks, models

    documents = user_documents.read_sets(paths_of(options))
    found = {name: user_run.find(given) for name, given in named_models(options).items()}
    for one in found.values():
        if one.stored.adapters:
            raise ValueError(
                f"{one.stored.name} holds LoRA adapters alone; attack what --merge writes"
            )
    check_same_kind(found)
    context = min(settings.context_of(one.config, options.context) for one in found.values())
    chunks = []
    for one in found.values():
        chunks.append(user_documents.cut_sets(documents, one.tokenizer, context, one.config))
    evaluate_command.check_same_tokens([one.stored.name for one in found.values()], chunks)
    sources, measured, relearned = {}, [], (0, 0)
    for name, table in chunks[0].items():
        share = SHARE if name == "forget" else 1 / 2
        sources[name], rest = divided(name, table, share)
        measured.append(rest)
        if name == "forget":
            relearned = (sources[name].family.nunique(), table.family.nunique())
    run = RunSettings(
        method=attacks.RELEARNING,
        recipe=attacks.recipe(options.learning_rates[0], options.steps, BATCH, 1),
        micro_batch=options.micro_batch,
        seed=0,
        lora=None,
        merge=False,
        bf16=models.half_precision(),
        gradient_checkpointing=options.gradient_checkpointing,
    )
    lines = user_documents.describe_sets(documents, chunks[0], context)
    terminal.say("\n".join([*lines, *plan_memory(found[MODEL], run, context)]))
    for one in found.values():  # before the first is measured, which takes time
        user_run.fetch(one.stored)
    together = pd.concat(measured, ignore_index=True)
    rates = options.learning_rates
    return Inputs(found, sources, together, rates, options.steps, run, relearned)


def check_same_kind(found: Mapping[str, FoundModel]) -> None:
    """Check that the others are models of the attacked one's kind. Raise ValueError if not."""
    ours = found[MODEL]
    for name, one in found.items():
        if one.config.model_type != ours.config.model_type:
            raise ValueError(
                f"--{name} {one.stored.name} is a {one.config.model_type} and --{MODEL} "
                f"{ours.stored.name} a {ours.config.model_type}: they must be of one kind"
            )


def divided(name: str, chunks: pd.DataFrame, share: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what relearning reads of a set, and what is measured, which is of other documents.

    Documents are taken in the order of the hash of their text.

    Args:
        name: of the set.
        chunks: of all its documents.
        share: of them that relearning reads.

    Returns:
        Every chunk of the first documents; the first chunk of each of the others, `READ` at most.

    Raises:
        ValueError: the set cannot be divided.
    """
    families = sorted(chunks.family.unique())
    if len(families) < LEAST:
        raise ValueError(
            f"--{name}: one document; {LEAST} are needed, one to relearn from and one to measure"
        )
    some = families[: max(1, round(share * len(families)))]
    rest = families[len(some) : len(some) + READ]
    firsts = chunks[chunks.family.isin(rest)].groupby("family").head(1)
    return chunks[chunks.family.isin(some)], firsts


def plan_memory(model: FoundModel, run: RunSettings, context: int) -> list[str]:
    """Return the plan of memory in words. Raise ValueError if what is certain of it does not fit.

    It is that of the unlearned model; the others are loaded one at a time, too.
    """
    import torch

    from unlearn_utils.app import memory_plan

    stored = model.config.dtype or torch.float32  # the weights may not be here yet
    request = memory_plan.request_of(model.config, run, context, stored)
    planned = memory_plan.plan(request)
    where, free = memory_plan.available()
    changes = memory_plan.alternatives(request, run.micro_batch, None)
    lines = memory_plan.describe(planned, where, free, changes)
    if planned.certain > free:
        raise ValueError(" ".join(lines))
    return lines


# -------------------------------------------------------------------------------------- the attacks


def run(inputs: Inputs) -> Found:
    """Measure every model, say the plan, and attack."""
    from unlearn_utils.app import user_run

    found = Found()
    for name, one in inputs.models.items():
        terminal.say(f"measuring {one.stored.name_and_commit}")
        began = time.perf_counter()
        model = user_run.load(one.stored)
        loaded = time.perf_counter()
        found.before[name] = measured(inputs, model)
        if name == MODEL:
            user_run.check_numbers(one.stored, found.before[name])
            terminal.say(plan(inputs, loaded - began, time.perf_counter() - loaded))
        found.continued |= continued(inputs, name, model)
        del model  # before the next is loaded
    for name in inputs.attacked:
        for bits in BITS:
            found.rounded[bits, name], found.share = rounded(inputs, name, bits)
    total = len(inputs.sources) * len(inputs.rates) * len(inputs.attacked) * inputs.steps
    with closing(terminal.Progress("relearning", total, apart=30)) as progress:
        for source in inputs.sources:
            for rate in inputs.rates:
                for name in inputs.attacked:
                    rows = relearned(inputs, found.before[name], source, rate, name, progress)
                    found.relearned[source, rate, name] = rows
    return found


def plan(inputs: Inputs, loading: float, reading: float) -> str:
    """Return runs, steps and minutes in words. A training pass takes as long as three readings.

    loading, reading: seconds that loading a model, and the measured documents, took once.
    """
    from unlearn_utils.engine import attacks

    tokens = sum(map(len, inputs.measured.ids))
    runs = len(inputs.sources) * len(inputs.rates)
    readings = (runs * (len(attacks.marks(inputs.steps)) - 1) + len(BITS)) * tokens
    for source in inputs.sources.values():
        of_step = BATCH * sum(map(len, source.ids)) / len(source)
        readings += 3 * len(inputs.rates) * inputs.steps * of_step
    of_model = reading * readings / tokens + loading * (runs + len(BITS))
    of_all = len(inputs.attacked) * of_model
    shown = ", ".join(f"{rate:g}" for rate in inputs.rates)
    prefixes = ", ".join(map(str, prefixes_of(inputs)))
    asked = f"prefixes of {prefixes} tokens"
    if not prefixes:
        asked = f"no prefix, for no forget document has {PREFIXES[0]} + {LENGTH} tokens"
    return (
        f"plan: weights rounded to {' and '.join(map(str, BITS))} bits; {asked}; "
        f"relearning from {', '.join(inputs.sources)} at rates {shown}: "
        f"{runs} runs of {inputs.steps} steps, of {' and '.join(inputs.attacked)}; "
        f"about {tune_command.minutes(of_all)} (an estimate)"
    )


def measured(inputs: Inputs, model: nn.Module) -> pd.DataFrame:
    """Return the rows of the measured documents under a model."""
    from unlearn_utils.engine import evaluation

    return evaluation.measure_briefly(model, inputs.measured, inputs.pad_id)


def continued(
    inputs: Inputs, name: str, model: nn.Module
) -> Iterator[tuple[tuple[int, str], pd.DataFrame]]:
    """Yield the rows of each prefix for which a forget document is long enough, by their key."""
    from unlearn_utils.engine import attacks

    forget = inputs.measured[inputs.measured.split == "forget"]
    for prefix in prefixes_of(inputs):
        rows = attacks.continued(model, forget, prefix, LENGTH, inputs.pad_id)
        yield (prefix, name), rows


def prefixes_of(inputs: Inputs) -> list[int]:
    """Return the prefixes for which a forget document that is measured is long enough."""
    from unlearn_utils.engine import attacks

    forget = inputs.measured[inputs.measured.split == "forget"]
    longest = attacks.counted_tokens(forget).max()
    return [prefix for prefix in PREFIXES if prefix + LENGTH <= longest]


def rounded(inputs: Inputs, name: str, bits: int) -> tuple[pd.DataFrame, float]:
    """Return the rows under a model of fewer bits, and the share of what was rounded."""
    from unlearn_utils.app import user_run
    from unlearn_utils.engine import attacks

    model = user_run.load(inputs.models[name].stored)
    share = attacks.round_weights(model, bits)
    return measured(inputs, model), share


def relearned(
    inputs: Inputs,
    before: pd.DataFrame,
    source: str,
    rate: float,
    name: str,
    progress: terminal.Progress,
) -> pd.DataFrame:
    """Return the rows at every mark of a relearning run, the first of the model as it was."""
    from dataclasses import replace

    from unlearn_utils.app import user_run
    from unlearn_utils.engine import attacks

    marks = attacks.Marks(inputs.measured, inputs.pad_id, attacks.marks(inputs.steps))
    marks.frames.append(before.assign(step=0))

    def watch(step: int, model: nn.Module) -> None:
        marks(step, model)
        progress.advance()

    chunks = inputs.sources[source]
    recipe = attacks.recipe(rate, inputs.steps, BATCH, len(chunks))
    one = inputs.models[name]
    model = user_run.load(one.stored)
    settings = replace(inputs.run, recipe=recipe)
    user_run.unlearn(model, one.stored, {"forget": chunks}, settings, one.tokenizer, watch)
    return marks.rows()
