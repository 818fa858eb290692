"""The command `audit`: a model beside several that were retrained without the forget documents.

Imports are lazy, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from unlearn_utils.app import evaluate_command, option_checks, terminal
from unlearn_utils.app.unlearn_arguments import DOCUMENTS

if TYPE_CHECKING:
    import pandas as pd

    from unlearn_utils.core.arrays import Floats

LEAST = 3  # retrained models: each is judged beside the others
DOCUMENTS_LEAST = 2  # of each set
CANNOT = (
    "A retrained model is judged beside the others, so its column shows what chance does. KLoM, "
    "U-LiRA and epsilon are not measured: they need many unlearned and many retrained models."
)
FORGET, UNSEEN = "forget", "unseen"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of `audit`."""
    command.add_argument(
        "--model",
        required=True,
        type=option_checks.text,
        metavar="MODEL",
        help="the unlearned one: a folder, or a model of the hub",
    )
    command.add_argument(
        "--retrained",
        required=True,
        type=option_checks.text,
        nargs="+",
        metavar="MODEL",
        help=f"{LEAST} or more that were trained alike without the forget documents",
    )
    for name in (FORGET, UNSEEN):
        command.add_argument(
            f"--{name}", required=True, type=option_checks.path, metavar="PATH", help=DOCUMENTS
        )
    command.add_argument("--context", type=int, help="tokens of a chunk; default: as `evaluate`")
    command.add_argument(
        "--out", type=option_checks.path, metavar="CSV", help="a file to write, tidy"
    )


def check_options(options: argparse.Namespace) -> None:
    """Check all that can be checked before a model is read.

    Raises:
        ValueError: an option cannot be followed.
    """
    names = named_models(options)
    if len(names) < 1 + LEAST:
        raise ValueError(
            f"--retrained: {len(names) - 1} models beside --model, and {LEAST} different ones are "
            "needed, for each is judged beside the others"
        )
    for name in (FORGET, UNSEEN):
        option_checks.check_documents(f"--{name}", getattr(options, name))
    if options.out is not None:
        evaluate_command.check_new("--out", options.out)
    for name in names:  # the last, for it may ask the hub
        option_checks.check_model(name)


def named_models(options: argparse.Namespace) -> list[str]:
    """Return the names of the models, each once; the first is the unlearned one."""
    return list(dict.fromkeys([options.model, *options.retrained]))


def audit(options: argparse.Namespace) -> None:
    """Measure the margins of all models, print the table, and write it if asked."""
    from unlearn_utils.cache import paths

    evaluate_command.check_one_process()
    check_options(options)
    table = audit_table(margins_of(named_models(options), options))
    if options.out is not None:
        paths.write_whole(options.out.resolve(), table.to_csv(index=False))
    print(terminal.results_text(table), flush=True)
    terminal.say(CANNOT)


def margins_of(names: Sequence[str], options: argparse.Namespace) -> pd.DataFrame:
    """Return the margins of the chunks: split, family, and a column for each model.

    Raises:
        ValueError: as `evaluate_command.measure_on_documents`; a model gives no numbers, or two
            give the same.
    """
    import pandas as pd

    from unlearn_utils.app import settings, user_documents, user_run
    from unlearn_utils.engine import evaluation

    documents = user_documents.read_sets(
        {name: getattr(options, name) for name in (FORGET, UNSEEN)}
    )
    models = [user_run.find(name) for name in names]
    context = min(settings.context_of(model.config, options.context) for model in models)
    chunks = []
    for model in models:
        cut = user_documents.cut_sets(documents, model.tokenizer, context, model.config)
        chunks.append(cut)
    evaluate_command.check_same_tokens(names, chunks)
    terminal.say("\n".join(user_documents.describe_sets(documents, chunks[0], context)))
    for name, table in chunks[0].items():
        if table.family.nunique() < DOCUMENTS_LEAST:
            raise ValueError(
                f"--{name}: one document; {DOCUMENTS_LEAST} are needed, for documents are drawn "
                "again and again, and compared with each other"
            )
    for model in models:  # before the first is measured, which takes time
        user_run.fetch(model.stored)

    every = pd.concat(chunks[0].values(), ignore_index=True)
    found = every[["split", "family"]].copy()
    for name, model in zip(names, models, strict=True):
        terminal.say(f"measuring {model.stored.name_and_commit}")
        loaded = user_run.load(model.stored)
        rows = evaluation.measure_margins(loaded, every, models[0].tokenizer)
        del loaded  # before the next is loaded
        user_run.check_numbers(model.stored, rows)
        found[name] = rows.margin.to_numpy()
    check_different(found)
    return found


def check_different(margins: pd.DataFrame) -> None:
    """Check that no model is there twice, under another name. Raise ValueError if one is.

    margins: of `margins_of`.
    """
    from itertools import combinations

    for one, other in combinations(margins.columns.drop(["split", "family"]), 2):
        if margins[one].equals(margins[other]):
            raise ValueError(
                f"{one} and {other} give the same numbers on every chunk: are they one model? "
                "Each is judged beside the others, so name it once"
            )


def audit_table(margins: pd.DataFrame) -> pd.DataFrame:
    """Return how each model is told from retrained ones.

    Args:
        margins: split, family, and a column for each model, the unlearned one first.

    Returns:
        model, split, measure, value (over chunks), low, high, n (documents). The unlearned model's
        values are means over the choices of all retrained models but one, so that as many stand
        beside each.
    """
    import numpy as np
    import pandas as pd

    from unlearn_utils.core import intervals, tables

    unlearned, *retrained = margins.columns.drop(["split", "family"])
    weights = {}
    for seed, split in enumerate((FORGET, UNSEEN)):
        rows = margins[margins.split == split]
        weights[split] = tables.draw_weights(rows, np.random.default_rng(seed), 1000)
    smaller = int(margins.groupby("split").family.nunique().min())
    lines = []
    for name in (unlearned, *retrained):
        left_out = retrained if name == unlearned else [name]
        each = [told(margins, name, retrained, out, weights) for out in left_out]
        for measure in each[0]:
            draws = np.mean([one[measure] for one in each], axis=0)
            found = intervals.interval(draws[0], draws[1:], 0.95, smaller)
            line = {"model": name, "split": FORGET, "measure": measure}
            lines.append({**line, **found._asdict()})
    return pd.DataFrame(lines)


def told(
    margins: pd.DataFrame,
    name: str,
    retrained: Sequence[str],
    out: str,
    weights: dict[str, Floats],
) -> dict[str, Floats]:
    """Return how one model is told from all retrained models but one, by measure: (draws,)."""
    from unlearn_utils.core import audit as measures
    from unlearn_utils.core import membership

    forget = (margins.split == FORGET).to_numpy()
    own = margins[name].to_numpy()
    beside = margins[[one for one in retrained if one != out]].to_numpy().T
    far = measures.deviations(own, beside)[forget]
    times = weights[FORGET]
    found = {}
    for word in measures.WORDS:
        found[f"share {word}"] = times @ measures.is_told(far, word) / times.sum(1)
    found["deviations, mean"] = times @ far / times.sum(1)
    attacks = {
        "AUC of the margin": own,
        "AUC over reference models": measures.over_reference(own, beside),
        "AUC of RMIA": measures.rmia(own, beside, ~forget),
    }
    for measure, scores in attacks.items():
        both = (scores[forget], scores[~forget], times, weights[UNSEEN])
        found[measure] = membership.weighted_auc(*both)
    return found
