"""The command `tune`, and `unlearn --until`: a rate and a step that nobody has to guess.

Paths of a search are kept beside --out until the new model is written, so that a killed command
goes on. Imports are lazy, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn_utils.app import evaluate_command, option_checks, terminal, unlearn_arguments
from unlearn_utils.core import methods

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from unlearn_utils.app.settings import RunSettings
    from unlearn_utils.app.unlearn_command import Inputs
    from unlearn_utils.engine.trainer import Watch
    from unlearn_utils.engine.tuning import Found, Setting

ALL = "all"
EPOCHS = 4  # of a path at most: twice the plane of notebook 11
SECONDS_APART = 60  # of two lines of a log within a path
SEARCH = "search.json"  # says what the paths of a folder are of


# -------------------------------------------------------------------------------------- the options


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of `tune`."""
    unlearn_arguments.add_model_and_documents(command)
    command.add_argument(
        "--goal",
        choices=unlearn_arguments.GOALS,
        default="unseen",
        help="unseen: the perplexity that --unseen had before, the default; auc: 1/2 for forget "
        "against --unseen",
    )
    command.add_argument(
        "--learning-rates",
        type=rates,
        metavar="A,B,C",
        help="default: from 1e-6 to 1e-2 in half decades, as far as needed",
    )
    unlearn_arguments.add_length(
        command, EPOCHS, f"the most of a path, also 0.5; default: {EPOCHS}", "the most of a path"
    )
    unlearn_arguments.add_sizes(command)
    unlearn_arguments.add_execution(command)
    command.set_defaults(learning_rate=None, checkpoints=None, until=None)


def rates(given: str) -> list[float]:
    """Return learning rates from small to large.

    Raises:
        argparse.ArgumentTypeError: one of them is no positive number.
    """
    found = []
    for word in given.split(","):
        try:
            rate = float(word)
        except ValueError:
            rate = math.nan
        if not 0 < rate < math.inf:
            raise argparse.ArgumentTypeError(f"{word!r} is no positive number")
        found.append(rate)
    return sorted(set(found))


def check_options(options: argparse.Namespace) -> None:
    """Check all that can be checked before the model is read. Raise ValueError if it is wrong."""
    unlearn_arguments.check_goal(options, "tune")
    if options.retain is None:
        raise ValueError(
            "--retain is missing: tune bounds what it may lose; give text that the model shall keep"
        )
    for name in methods_of(options):
        one = argparse.Namespace(**{**vars(options), "method": name})
        unlearn_arguments.check_options(one)
    check_folder(options)


def check_folder(options: argparse.Namespace) -> None:
    """Check that the folder of paths is ours, or not there yet. Raise ValueError if it is not."""
    folder = folder_of(options.out)
    if folder.exists() and not (folder / SEARCH).is_file():
        raise ValueError(f"{folder}: paths of the search go there; remove it, or choose --out anew")
    option_checks.check_writable("--out", folder)


def folder_of(out: Path) -> Path:
    """Return the folder of a search's paths, beside the new model's."""
    whole = out.resolve()
    return whole.with_name(f"{whole.name}.tuning")


def methods_of(options: argparse.Namespace) -> list[str]:
    """Return the names of the methods that are tuned.

    Of two that differ by what kind of text --retain is, `all` has the one of the forget text's own.
    With adapters it leaves out what needs the change of whole weights.
    """
    if options.method != ALL:
        return [options.method]
    names = []
    for method in methods.every().values():
        of_whole = options.lora is not None and method.forget.negated is not None
        if method.retain_text != "general" and not of_whole:
            names.append(method.name)
    return names


# -------------------------------------------------------------------------------------- the command


def tune(options: argparse.Namespace) -> None:
    """Search over rates, and write the model of the best path at its best step."""
    from unlearn_utils.core import tuning

    check_options(options)
    ladder = options.learning_rates or list(tuning.LADDER)
    run(options, methods_of(options), ladder, options.goal)


def unlearn_until(options: argparse.Namespace) -> None:
    """Run one path at the given rate, and write its best step."""
    unlearn_arguments.check_options(options)
    check_folder(options)
    rate = options.learning_rate or unlearn_arguments.DEFAULTS["learning_rate"]
    run(options, [options.method], [rate], options.until)


@dataclass(frozen=True)
class Search:
    """A search, ready to begin.

    Attributes:
        inputs: model and documents.
        run: settings, of which method and rate change.
        methods, rates: that are tried.
        setting: documents that are read on the way, and the goal.
        before: rows of all chunks under the model before unlearning.
        parameters: of the model.
        seconds_of_step: an estimate from how long measuring took.
    """

    inputs: Inputs
    run: RunSettings
    methods: Sequence[str]
    rates: Sequence[float]
    setting: Setting
    before: pd.DataFrame
    parameters: int
    seconds_of_step: float


def run(
    options: argparse.Namespace, names: Sequence[str], ladder: Sequence[float], goal: str
) -> None:
    """Plan, search, and write: as `unlearn`, with the paths beside.

    Raises:
        FloatingPointError: no path has a step that can be chosen.
    """
    from unlearn_utils.app import cards, output_folder, tuning_report, verdict

    evaluate_command.check_one_process(
        "tune and --until are",
        "take the rate and the steps that they find to `unlearn` in several",
    )
    folder = folder_of(options.out)
    settings = [
        unlearn_arguments.run_settings(argparse.Namespace(**{**vars(options), "method": name}))
        for name in names
    ]
    largest = max(settings, key=lambda one: (one.method.needs_reference, one.method.passes))
    search = prepare(options, largest, names, ladder, goal)
    begin(folder, search)
    every = walk(search, folder)
    chosen = report(search, every, folder)

    found, mark = chosen
    recipe = replace(search.run.recipe, learning_rate=found.rate)
    best = replace(search.run, method=methods.get_method(found.method), recipe=recipe)
    inputs = search.inputs
    with output_folder.new_folder(options.out.resolve()) as new:
        changed = save(search, best, found, folder, new)
        after = output_folder.measure_saved(new, inputs.chunks, best, inputs.base, inputs.tokenizer)
        parts = [search.before.assign(model="before"), after.assign(model="after")]
        results = cards.results_table(parts, "forget")
        # what to do is the search's to say
        judged = verdict.of_run(results, search.before, after)._replace(advice="")
        record = cards.run_record(
            inputs.base,
            best,
            inputs.documents,
            inputs.chunks,
            inputs.context,
            changed,
            found.history[: mark["step"]],
        )
        record["verdict"] = judged._asdict()
        record["tuning"] = tuning_report.summary(search, every, chosen)
        results = cards.with_settings(results, record)
        given = unlearn_arguments.chosen_settings(options)
        cards.write_files(new, record, results, parts, inputs.base.folder, given)
        for name in (tuning_report.TABLE, tuning_report.FIGURE):
            shutil.copyfile(folder / name, new / name)
    shutil.rmtree(folder)
    terminal.say("\n".join([terminal.results_text(results), *judged.in_words()]))
    terminal.say(cards.describe_weights(record))
    terminal.say(
        f"{options.out.resolve()}: the model, its tokenizer, README.md, results.csv, "
        "results.json, run.json, paths.csv, paths.png"
    )


def prepare(
    options: argparse.Namespace,
    run: RunSettings,
    names: Sequence[str],
    ladder: Sequence[float],
    goal: str,
) -> Search:
    """Read, check, measure the model before unlearning, set the goal, and say the plan.

    run: of the method that takes most memory.
    """
    import pandas as pd

    from unlearn_utils.app import memory_plan, model_files, settings, unlearn_command, user_run
    from unlearn_utils.engine import training
    from unlearn_utils.engine import tuning as searching

    inputs = unlearn_command.prepare(options, run, options.out.resolve().parent, None)
    run = inputs.run
    chunks = searching.halved(pd.concat(inputs.chunks.values(), ignore_index=True))
    recipe = run.recipe
    steps = training.steps_of(len(inputs.chunks["forget"]), recipe.batch, recipe.epochs)

    stored = model_files.stored_dtype(inputs.base)
    model = user_run.load(inputs.base, settings.weight_dtype(run, stored))
    request = memory_plan.request_of(model.config, run, inputs.context, stored)
    memory_plan.check_disk(
        "weights of two paths take",
        2 * memory_plan.FLOAT32 * request.trained,
        options.out.resolve().parent,
        "--out",
    )
    began = time.perf_counter()
    before = user_run.measure(model, inputs.chunks, inputs.tokenizer)
    seconds = time.perf_counter() - began
    del model
    user_run.check_finite(inputs.base, before)
    with_half = before.assign(half=chunks.half.to_numpy())
    documents = searching.read_on_the_way(chunks)
    read = searching.read_on_the_way(with_half)
    aim, pace = searching.goals_of(goal, with_half, read)
    start = searching.mark_of(read, aim, 0, None)
    setting = searching.Setting(documents, aim, pace, start, inputs.tokenizer.pad_token_id, steps)
    of_step = seconds_of_step(inputs, run, documents, seconds, steps)
    search = Search(inputs, run, names, ladder, setting, before, request.parameters, of_step)
    terminal.say("\n".join(plan(search, searching.doubt(with_half))))
    return search


def seconds_of_step(
    inputs: Inputs, run: RunSettings, documents: pd.DataFrame, seconds: float, steps: int
) -> float:
    """Return about how long a step takes, with its share of reading on the way.

    A training pass takes as long as three readings.

    Args:
        documents: that are read at a mark.
        seconds: that reading all chunks once took.
        steps: of a path.
    """
    from unlearn_utils.engine import tuning as searching

    every = sum(len(ids) for table in inputs.chunks.values() for ids in table.ids)
    forget = inputs.chunks["forget"].ids
    of_batch = run.recipe.batch * sum(map(len, forget)) / len(forget)
    at_marks = searching.MARKS * sum(map(len, documents.ids)) / steps
    return seconds / every * (3 * run.method.passes * of_batch + at_marks)


def plan(search: Search, doubt: float) -> list[str]:
    """Return goal, paths, steps and minutes in words.

    doubt: the standard error of the unseen documents' level.
    """
    from unlearn_utils.app import tuning_report

    aim, steps = search.setting.goal, search.setting.steps
    most = len(search.methods) * len(search.rates)
    shown = ", ".join(f"{rate:g}" for rate in search.rates)
    lines = [
        tuning_report.goal_in_words(aim),
        f"paths: {', '.join(search.methods)}; learning rates {shown}, as far as needed, each path "
        f"ended early; at most {most} paths of {steps} steps, "
        f"{minutes(most * steps * search.seconds_of_step)} (an estimate)",
    ]
    if aim.name == "unseen" and 2 * doubt > aim.value - aim.start:
        needed = (2 * doubt / (aim.value - aim.start)) ** 2
        lines.append(
            f"few unseen documents: their perplexity is known to {2 * doubt:.0%} only, more than "
            f"the whole way to the goal; about {math.ceil(needed)} times as many would tell"
        )
    return lines


def minutes(seconds: float) -> str:
    """Return a time in words."""
    whole = math.ceil(seconds / 60)
    return "a minute" if whole <= 1 else f"{whole} minutes"


def begin(folder: Path, search: Search) -> None:
    """Make the folder of paths, or find it as it was left by the same search.

    Raises:
        ValueError: it is another search's.
    """
    from unlearn_utils.app import cards
    from unlearn_utils.cache import paths

    inputs = search.inputs
    settings = asdict(search.run) | {"method": list(search.methods)}
    settings["recipe"].pop("learning_rate")
    said = {
        **settings,
        "rates": list(search.rates),
        "goal": search.setting.goal.name,
        "model": weights_as_they_lie(inputs.base.folder),
        "context": inputs.context,
        "documents": {name: list(table.id) for name, table in inputs.chunks.items()},
        "versions": cards.versions(),
    }
    file = folder / SEARCH
    if not file.exists():
        folder.mkdir(exist_ok=True)
        paths.write_whole(file, json.dumps(said))
        return
    stored = json.loads(file.read_text(encoding="utf-8"))
    others = [
        name for name, value in json.loads(json.dumps(said)).items() if stored.get(name) != value
    ]
    if others:
        raise ValueError(
            f"{folder}: begun with other settings ({', '.join(others)}); remove it, or give the "
            "same again"
        )
    done = len(list(folder.glob("*.json"))) - 1
    terminal.say(f"goes on after {done} finished paths of {folder}")


def weights_as_they_lie(folder: Path) -> dict[str, list[int]]:
    """Return size and time of each file of a model's weights, for they are too large to hash."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        status = file.stat()
        found[file.name] = [status.st_size, status.st_mtime_ns]
    return found


def walk(search: Search, folder: Path) -> list[Found]:
    """Return the paths, with a bar and a line a path, and for a single path a line a mark."""
    from unlearn_utils.app import tuning_report, user_run
    from unlearn_utils.engine import tuning as searching

    inputs = search.inputs
    began = time.perf_counter()
    walked: list[int] = []  # steps of each path of this process

    def unlearn(name: str, rate: float, watch: Watch) -> list[dict]:
        recipe = replace(search.run.recipe, learning_rate=rate)
        bar = terminal.Progress(f"{name} at {rate:g}", search.setting.steps, apart=SECONDS_APART)

        def both(step: int, model: nn.Module) -> bool | None:
            bar.watch(step, model)
            return watch(step, model)

        with closing(bar):
            method = bar.follow(methods.get_method(name))
            one = replace(search.run, method=method, recipe=recipe)
            model = user_run.load_to_train(inputs.base, one)
            history = user_run.unlearn(
                model, inputs.base, inputs.chunks, one, inputs.tokenizer, both
            )
        walked.append(len(history))
        return history

    def tell(found: Found) -> None:
        of_step = search.seconds_of_step
        if walked:
            of_step = (time.perf_counter() - began) / sum(walked)
        larger = sum(rate > found.rate for rate in search.rates)
        later = len(search.methods) - 1 - list(search.methods).index(found.method)
        paths = larger + later * len(search.rates)
        left = minutes(paths * search.setting.steps * of_step)
        line = tuning_report.path_in_words(search.setting, found)
        if paths:
            line += f"; at most {left} left"
        terminal.say(line)

    def see(mark: Mapping) -> None:
        if len(search.methods) == len(search.rates) == 1:
            terminal.say(tuning_report.mark_in_words(search.setting, mark))

    return searching.search(
        search.setting, search.methods, search.rates, unlearn, folder, tell, see
    )


def report(search: Search, every: Sequence[Found], folder: Path) -> tuple[Found, dict]:
    """Write the paths as a table and a figure, and return what is chosen.

    Raises:
        FloatingPointError: nothing is.
    """
    from unlearn_utils.app import tuning_report
    from unlearn_utils.cache import paths
    from unlearn_utils.engine import tuning as searching

    chosen = searching.choice(search.setting, every)
    table = tuning_report.table(search.setting, every, chosen)
    paths.write_whole(folder / tuning_report.TABLE, table.to_csv(index=False))
    if chosen is None:
        raise FloatingPointError(
            f"{tuning_report.why_none(search.setting, every)}. No model was written; the paths are "
            f"in {folder / tuning_report.TABLE}"
        )
    tuning_report.draw(search.setting, every, chosen, folder / tuning_report.FIGURE)
    terminal.say(tuning_report.verdict(search.setting, every, chosen))
    return chosen


def save(search: Search, best: RunSettings, found: Found, folder: Path, new: Path) -> float | None:
    """Write the model of the best step; return what `output_folder.complete_model` returns."""
    from unlearn_utils.app import output_folder, user_run
    from unlearn_utils.engine import tuning as searching

    base = search.inputs.base
    model = user_run.load_to_train(base, best)
    searching.restore(model, searching.weights_of(folder, found.method, found.rate))
    output_folder.save_model(model, base, new)
    del model  # before the next is loaded
    return output_folder.complete_model(base, best.merge, new)
