"""The command `unlearn`: documents and a model in, a folder with the new model out.

Every process of a launcher runs it alike. Imports are lazy, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from unlearn_utils.app import errors, option_checks, terminal, unlearn_arguments

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from unlearn_utils.app.model_files import StoredModel
    from unlearn_utils.app.settings import RunSettings
    from unlearn_utils.app.user_documents import Documents, Tables


class Inputs(NamedTuple):
    """What a run reads, checked.

    Attributes:
        base: the model.
        tokenizer: of the model.
        documents: of each set, with what of it was not read.
        chunks: of each set.
        context: tokens of a chunk.
        run: settings, with the epochs that steps come to.
    """

    base: StoredModel
    tokenizer: PreTrainedTokenizerBase
    documents: Mapping[str, Documents]
    chunks: Tables
    context: int
    run: RunSettings


def unlearn(options: argparse.Namespace) -> None:
    """Check everything, plan the memory, train, measure before and after, write the new model."""
    from unlearn_utils.app import cards, output_folder, tune_command, verdict
    from unlearn_utils.engine import distributed

    if options.until is not None:
        tune_command.unlearn_until(options)
        return
    with distributed.raise_together():
        unlearn_arguments.check_options(options)
        run = unlearn_arguments.run_settings(options)
        out = options.out.resolve()
        checkpoints = unlearn_arguments.checkpoints_folder(options)
    with output_folder.new_folder(out) as folder:
        inputs = prepare(options, run, folder, checkpoints)
        run = inputs.run
        before, changed, history = train(inputs, run, folder, checkpoints)
        with distributed.raise_together():
            after = output_folder.measure_saved(
                folder, inputs.chunks, run, inputs.base, inputs.tokenizer
            )
            parts = [before.assign(model="before"), after.assign(model="after")]
            results = cards.results_table(parts, "forget")
            found = verdict.of_run(results, before, after)
            record = cards.run_record(
                inputs.base,
                run,
                inputs.documents,
                inputs.chunks,
                inputs.context,
                changed,
                history,
            )
            record["verdict"] = found._asdict()
            results = cards.with_settings(results, record)
        chosen = unlearn_arguments.chosen_settings(options)
        distributed.on_main_process(
            lambda: cards.write_files(folder, record, results, inputs.base.folder, chosen)
        )
    distributed.on_main_process(lambda: remove_checkpoints(checkpoints))
    terminal.say("\n".join([terminal.results_text(results), *found.in_words()]))
    terminal.say(cards.describe_weights(record))
    terminal.say(f"{out}: the model, its tokenizer, README.md, results.csv, run.json")


def prepare(
    options: argparse.Namespace, run: RunSettings, folder: Path, checkpoints: Path | None
) -> Inputs:
    """Read and check what the run needs, say it, and plan the memory.

    The first process reads the documents for all.

    Args:
        folder: where the new model goes.
        checkpoints: where checkpoints go, if there are any.
    """
    from unlearn_utils.app import settings, user_documents, user_run
    from unlearn_utils.engine import distributed

    paths = {name: getattr(options, name) for name in ("forget", "retain", "unseen", "general")}
    documents = distributed.on_main_process(lambda: user_documents.read_sets(paths))
    with distributed.raise_together():
        base, config, tokenizer = user_run.find(options.model, options.revision)
        if base.adapters:
            raise ValueError(
                f"{base.name} holds LoRA adapters alone; unlearn with --merge first, and go on "
                "from that"
            )
        context = settings.context_of(config, options.context)
    chunks = distributed.on_main_process(
        lambda: user_documents.cut_sets(documents, tokenizer, context, config)
    )
    with distributed.raise_together():
        run = unlearn_arguments.with_epochs(run, options.steps, len(chunks["forget"]))
    inputs = Inputs(base, tokenizer, documents, chunks, context, run)
    with distributed.raise_together(), errors.reading(options.model):
        lines = describe_inputs(inputs)
        lines += plan_memory(inputs, config, run, folder, checkpoints)
        terminal.say("\n".join(lines))
        user_run.fetch(base)
    return inputs


def describe_inputs(inputs: Inputs) -> list[str]:
    """Return a line on the model, and a line on each set."""
    from unlearn_utils.app import user_documents

    origin = inputs.base.name_and_commit
    if not inputs.base.commit:
        origin += ", a local folder"
    described = user_documents.describe_sets(inputs.documents, inputs.chunks, inputs.context)
    return [origin, *described]


def plan_memory(
    inputs: Inputs,
    config: PreTrainedConfig,
    run: RunSettings,
    folder: Path,
    checkpoints: Path | None,
) -> list[str]:
    """Return the plan in words. Raise ValueError as `memory_plan.check`."""
    from unlearn_utils.app import memory_plan

    disk = None
    if checkpoints is not None:  # it is made later
        disk = option_checks.existing_folder(checkpoints)
    return memory_plan.check(config, run, inputs.context, folder, disk)


def train(
    inputs: Inputs, run: RunSettings, folder: Path, checkpoints: Path | None
) -> tuple[pd.DataFrame, float | None, list[dict]]:
    """Unlearn and save.

    Returns:
        Measurements before; the share of weights that changed, None for adapters; the history.
    """
    from unlearn_utils.app import output_folder, user_run
    from unlearn_utils.engine import distributed, training

    recipe = run.recipe
    steps = training.steps_of(len(inputs.chunks["forget"]), recipe.batch, recipe.epochs)
    with closing(terminal.Progress("unlearning", steps)) as progress:
        followed = replace(run, method=progress.follow(run.method))
        model, before, history = user_run.load_and_unlearn(
            inputs.base, inputs.chunks, followed, inputs.tokenizer, progress.watch, checkpoints
        )
    output_folder.save_model(model, inputs.base, folder)
    del model  # before the next is loaded
    changed = distributed.on_main_process(
        lambda: output_folder.complete_model(inputs.base, run.merge, folder)
    )
    return before, changed, history


def remove_checkpoints(checkpoints: Path | None) -> None:
    """Remove the checkpoints of a run that is saved.

    The folder that was given for them goes too, unless something else is in it. What cannot be
    removed is said: the run is whole.
    """
    if checkpoints is None or not checkpoints.exists():
        return
    try:
        shutil.rmtree(checkpoints)
        if not any(checkpoints.parent.iterdir()):
            checkpoints.parent.rmdir()
    except OSError as error:
        terminal.say(f"checkpoints of no more use could not be removed: {error}")
