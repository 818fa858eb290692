"""Commands for a user's own documents and models: unlearn, evaluate, compare, methods. Imports are lazy, so that --help is instant."""

from __future__ import annotations

import argparse
import hashlib
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn_utils.app import task_commands
from unlearn_utils.app.terminal import fail, interrupted, progress, quiet, say, show

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from unlearn_utils.app import user_documents
    from unlearn_utils.app.settings import LoraSettings, RunSettings

DEFAULTS = {"learning_rate": 2e-5, "epochs": 1, "batch": 4, "retain_weight": 1.0}  # `cards.SOURCES` says where they come from
DOCUMENTS = "a .txt, .md, .py, .tex, .jsonl or .parquet file (column text or content), or a folder of them"


def add(commands) -> None:
    """Adds the commands to a parser's subparsers; `run` runs what was chosen."""
    _add_unlearn(commands.add_parser("unlearn", help="make a model unlearn documents; writes a new model"))
    one = commands.add_parser("evaluate", help="a model on documents, or on tasks, alone or against another")
    one.add_argument("--model", required=True, help="a folder, or a model of the hub")
    one.add_argument("--against", metavar="MODEL", help="another, compared on the same documents or questions")
    several = commands.add_parser("compare", help="the same of several models, as a table")
    several.add_argument("--models", required=True, nargs="+", metavar="MODEL")
    for command in (one, several):
        which = command.add_mutually_exclusive_group(required=True)
        which.add_argument("--documents", type=Path, metavar="PATH", help=DOCUMENTS)
        task_commands.add(command, which)
        command.add_argument("--unseen", type=Path, metavar="PATH", help="documents that no model has seen, for membership inference")
        command.add_argument("--context", type=int, help="tokens of a chunk; default: 4096, or what the models read")
        command.add_argument("--out", type=Path, metavar="CSV", help="a file to write, tidy")
    one.set_defaults(call=lambda o: evaluate([o.model, *([o.against] if o.against else [])], o))
    several.set_defaults(call=lambda o: evaluate(o.models, o))
    commands.add_parser("methods", help="the methods and what each minimises").set_defaults(call=show_methods)


def _add_unlearn(command: argparse.ArgumentParser) -> None:
    """The options of `unlearn`."""
    command.add_argument("--model", required=True, help="a folder as save_pretrained writes it, or a model of the hub")
    command.add_argument("--revision", help="of a model of the hub; default: main, whose commit is printed")
    command.add_argument("--forget", required=True, type=Path, metavar="PATH", help=DOCUMENTS)
    command.add_argument("--retain", type=Path, metavar="PATH", help="what the model shall keep; methods with a retain term need it")
    command.add_argument("--unseen", type=Path, metavar="PATH", help="documents like the forgotten ones that the model has not seen")
    command.add_argument("--method", required=True, metavar="NAME", help="see: python -m unlearn_utils methods")
    command.add_argument("--out", required=True, type=Path, metavar="DIR", help="a new or empty folder")
    command.add_argument("--learning-rate", type=float, help="default: 2e-5, as the paper's released code")
    command.add_argument("--epochs", type=int, help="default: 1, as the paper's released code")
    command.add_argument("--batch", type=int, help="chunks an optimizer step, of all processes together; default: 4")
    command.add_argument("--micro-batch", type=int, help="chunks at a time, for less memory; divides the batch, or a process's share of it")
    command.add_argument("--retain-weight", type=float, help="default: 1")
    command.add_argument("--context", type=int, help="tokens of a chunk; default: 4096, or what the model reads if that is less")
    command.add_argument("--seed", type=int, help="default: 0")
    command.add_argument("--lora", metavar="rank=8[,alpha=16]", help="train LoRA adapters only; alpha: twice the rank by default")
    command.add_argument("--gradient-checkpointing", action="store_true", help="less memory, about a third more time")
    command.add_argument("--checkpoints", type=Path, metavar="DIR", help="a folder outside --out, to go on from after a kill")
    command.add_argument("--merge", action="store_true", help="with --lora: write whole weights, the adapters added to them")
    precision = command.add_mutually_exclusive_group()
    precision.add_argument("--bf16", dest="bf16", action="store_true", default=None, help="bfloat16 products; default where it is native")
    precision.add_argument("--float32", dest="bf16", action="store_false", default=None, help="float32 products")
    command.set_defaults(call=unlearn)


def main(arguments: Sequence[str] | None = None) -> int:
    """These commands alone; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m unlearn_utils")
    add(parser.add_subparsers(required=True, metavar="COMMAND"))
    return run(parser.parse_args(arguments))


def run(options: argparse.Namespace) -> int:
    """Runs the chosen command. A mistake of the user's is one line on stderr and exit code 2; a run that cannot end well, exit code 1."""
    with quiet(), interrupted():
        from unlearn_utils.engine import distributed

        try:
            options.call(options)
        except (ValueError, OSError) as error:
            return fail(error, 2)
        except (MemoryError, FloatingPointError) as error:
            return fail(error, 1)
        distributed.leave()
    return 0


# ---------------------------------------------------------------------------------------------- unlearn


def lora_of(text: str | None) -> LoraSettings | None:
    """`rank=8` or `rank=8,alpha=16`. Raises ValueError for anything else."""
    from unlearn_utils.app.settings import LoraSettings

    if text is None:
        return None
    found = re.fullmatch(r"rank=([1-9]\d*)(?:,alpha=([1-9]\d*))?", text)
    if not found:
        raise ValueError(f"--lora {text}: expected rank=8 or rank=8,alpha=16, whole numbers above 0")
    return LoraSettings(int(found[1]), float(found[2] or 2 * int(found[1])))


def run_of(options: argparse.Namespace) -> RunSettings:
    """The settings as given, or their defaults. Raises ValueError for one that cannot be."""
    from unlearn_utils.app.settings import RunSettings
    from unlearn_utils.core import methods
    from unlearn_utils.engine import distributed, models
    from unlearn_utils.profiles import Unlearning

    method, lora = methods.get_method(options.method), lora_of(options.lora)
    values = {name: default if (given := getattr(options, name)) is None else given for name, default in DEFAULTS.items()}
    recipe = Unlearning(**values)
    processes = distributed.process_state().num_processes
    if recipe.batch % processes:
        raise ValueError(f"--batch {recipe.batch}: it is that of all {processes} processes together; choose a multiple of {processes}")
    share, among = recipe.batch // processes, f" among {processes} processes" if processes > 1 else ""
    micro_batch = share if options.micro_batch is None else options.micro_batch
    if micro_batch < 1 or share % micro_batch:
        raise ValueError(f"--micro-batch {micro_batch}: must be positive and divide the batch of {recipe.batch}{among}")
    if options.gradient_checkpointing and distributed.launcher_checkpoints():
        raise ValueError("--gradient-checkpointing: this launcher's configuration does it already (fsdp_activation_checkpointing)")
    if not 0 < recipe.retain_weight < math.inf:
        raise ValueError(f"--retain-weight must be positive, not {recipe.retain_weight}")
    if method.retain and options.retain is None:
        raise ValueError(f"--retain is missing: {method.name} has a retain term; give text that the model shall keep")
    if options.merge and not lora:
        raise ValueError("--merge adds LoRA adapters to the weights, so it needs --lora")
    bf16 = models.half_precision() if options.bf16 is None else options.bf16
    seed = 0 if options.seed is None else options.seed
    return RunSettings(method.name, recipe, micro_batch, seed, lora, options.merge, bf16, options.gradient_checkpointing)


def checkpoints_of(options: argparse.Namespace) -> Path | None:
    """The folder in --checkpoints that is this run's alone: others may share it. Raises ValueError where none can be made."""
    if options.checkpoints is None:
        return None
    folder, out = options.checkpoints.resolve(), options.out.resolve()
    if not (folder.is_dir() or (folder.parent.is_dir() and not folder.exists())):
        raise ValueError(f"--checkpoints {folder}: no folder, and none can be made there")
    if out in (folder, *folder.parents):
        raise ValueError(f"--checkpoints {folder}: must be outside of --out")
    return folder / f"{out.name}-{hashlib.sha256(str(out).encode()).hexdigest()[:8]}"


def unlearn(options: argparse.Namespace) -> None:
    """Checks everything, plans the memory, trains, measures before and after, writes the new model."""
    from unlearn_utils.app import cards, user_run
    from unlearn_utils.engine import distributed

    with distributed.raise_together():
        run, out = run_of(options), options.out.resolve()
        checkpoints = checkpoints_of(options)
    with cards.whole(out) as part:
        base, tokenizer, texts, sets, context = prepared(options, run, part, checkpoints)
        watch = progress(math.ceil(len(sets["forget"]) * run.recipe.epochs / run.recipe.batch))
        model, before, history = user_run.load_and_unlearn(base, sets, run, tokenizer, watch, checkpoints)
        cards.save(model, base, part)
        del model  # before the next is loaded
        changed = distributed.on_main_process(lambda: cards.finish(base, run.merge, part))
        with distributed.raise_together():
            after = cards.measured(part, sets, run, base, tokenizer)
            found = cards.results([before.assign(model="before"), after.assign(model="after")], "forget")
            record = cards.record(base, run, texts, sets, context=context, changed=changed, history=history)
        distributed.on_main_process(lambda: cards.write(part, record, found, base.folder, given(options)))
    distributed.on_main_process(lambda: remove(checkpoints))
    show(found)
    say(cards.weights(record))
    say(f"{out}: the model, its tokenizer, README.md, results.csv, run.json")


def prepared(options: argparse.Namespace, run: RunSettings, part: Path, checkpoints: Path | None) -> tuple:
    """Base model on disk, tokenizer, documents, their chunks, context; said and planned. The first process reads the documents for all."""
    from unlearn_utils.app import memory_plan, model_files, settings, user_documents
    from unlearn_utils.engine import distributed

    texts = distributed.on_main_process(
        lambda: {name: user_documents.read(path) for name in ("forget", "retain", "unseen") if (path := getattr(options, name))}
    )
    with distributed.raise_together():
        base = model_files.find(options.model, options.revision)
        if base.adapters:
            raise ValueError(f"{base.name} holds LoRA adapters alone; unlearn with --merge first, and go on from that")
        config, tokenizer = model_files.config_of(base), model_files.tokenizer_of(base)
        context = settings.context_of(config, options.context)
    sets = distributed.on_main_process(lambda: chunked(texts, tokenizer, context, config))
    with distributed.raise_together():
        disk = checkpoints and next(folder for folder in checkpoints.parents if folder.exists())
        origin = f"{base.name}, {f'commit {base.commit}' if base.commit else 'a local folder'}"
        say("\n".join([origin, *told(texts, sets, context), *memory_plan.check(config, run, context, part, disk)]))
        model_files.fetch(base)
    return base, tokenizer, texts, sets, context


def remove(checkpoints: Path | None) -> None:
    """Removes the checkpoints of a run that is saved, and the folder that was given for them unless something else is in it."""
    if checkpoints and checkpoints.exists():
        shutil.rmtree(checkpoints)
        if not any(checkpoints.parent.iterdir()):
            checkpoints.parent.rmdir()


def given(options: argparse.Namespace) -> list[str]:
    """Settings that differ from their defaults."""
    from unlearn_utils.app import cards

    return [name for name in cards.SOURCES if getattr(options, name, None) not in (None, DEFAULTS.get(name))]


def chunked(
    texts: Mapping[str, pd.DataFrame], tokenizer: PreTrainedTokenizerBase, context: int, config: PreTrainedConfig
) -> user_documents.Sets:
    """The documents of each set as chunks. Raises ValueError as `own.chunks` and `own.check_apart`."""
    from unlearn_utils.app import user_documents

    sets = {
        name: user_documents.chunks(table, name, tokenizer, context, config.get_text_config().vocab_size) for name, table in texts.items()
    }
    user_documents.check_apart(sets)
    return sets


def told(texts: Mapping[str, pd.DataFrame], sets: user_documents.Sets, context: int) -> list[str]:
    """A line on each set: documents, chunks, and documents so short that nothing is left of them."""
    lines = []
    for name, found in sets.items():
        short = sorted(set(texts[name].name) - set(found.name))
        dropped = f"; too short, so left out: {', '.join(short[:5])} ({len(short)} in all)" if short else ""
        lines.append(f"{name}: {len(texts[name])} documents, {len(found)} chunks of up to {context} tokens{dropped}")
    return lines


# ---------------------------------------------------------------------------------------------- evaluate, compare, methods


def evaluate(names: Sequence[str], options: argparse.Namespace) -> None:
    """Measures models on the same documents or the same tasks, prints a table, writes it if asked."""
    from unlearn_utils.cache import paths
    from unlearn_utils.engine import distributed

    task_commands.check(options)
    with distributed.raise_together():
        if (processes := distributed.process_state().num_processes) > 1:
            raise ValueError(f"this command is one process, and {processes} were started: only unlearn runs in several")

    if options.out and options.out.exists():
        raise ValueError(f"--out {options.out}: already there; choose another file")
    names = list(dict.fromkeys(names))
    table = task_commands.results(names, options, say) if options.tasks else on_documents(names, options)
    show(table)
    if options.out:
        paths.write_whole(options.out, table.to_csv(index=False))


def on_documents(names: Sequence[str], options: argparse.Namespace) -> pd.DataFrame:
    """Results of the models on the same chunks; of two models also the log ratio of perplexities.

    Raises ValueError if a tokenizer cuts a document otherwise than the first model's: perplexities a token would not compare.
    """
    import pandas as pd

    from unlearn_utils.app import cards, model_files, settings, user_documents, user_run
    from unlearn_utils.core import tables

    texts = {name: user_documents.read(path) for name in ("documents", "unseen") if (path := getattr(options, name))}
    found = {name: model_files.find(name) for name in names}
    configs, tokenizers = [model_files.config_of(c) for c in found.values()], [model_files.tokenizer_of(c) for c in found.values()]
    context = min(settings.context_of(config, options.context) for config in configs)
    sets = [chunked(texts, t, context, c) for t, c in zip(tokenizers, configs, strict=True)]
    for name, other in zip(names, sets, strict=True):
        if any(list(other[split].ids) != list(sets[0][split].ids) for split in texts):
            raise ValueError(f"{name} and {names[0]} cut the documents into different tokens: their perplexities do not compare")
    say("\n".join(told(texts, sets[0], context)))
    rows = []
    for checkpoint in found.values():
        model_files.fetch(checkpoint)
        say(f"measuring {checkpoint.name}{f', commit {checkpoint.commit}' if checkpoint.commit else ''}")
        rows.append(user_run.measure(model_files.load(checkpoint), sets[0], tokenizers[0]).assign(model=checkpoint.name))
    table = cards.results(rows, "documents")
    if len(rows) == 2:
        ratio = tables.log_ratios(*rows, ["split"], "log ratio of perplexities")
        table = pd.concat([table, ratio.assign(model=" / ".join(names))], ignore_index=True)
    return table


def show_methods(options: argparse.Namespace) -> None:
    """Prints the table of methods."""
    from unlearn_utils.app import cards

    table = cards.method_table()
    widths = [2 + max(map(len, (name, *table[name]))) for name in table]
    for row in (table.columns, *table.to_numpy()):
        print("".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
