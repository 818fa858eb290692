"""Run by test_contributing.py in a copy of the package that has a new method and a new score.

Trains the method on a tiny model and prints, as JSON, where it and the score are seen.
"""

import argparse
import contextlib
import io
import json
import math
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from unlearn_utils.app import cards, commands
from unlearn_utils.core import methods, tables
from unlearn_utils.engine import models, training
from unlearn_utils.findings import plots, reports
from unlearn_utils.profiles import PROFILES, Corpus, Pretraining, Shape, Unlearning
from unlearn_utils.study import costs, grid, pool, single_run, unlearning
from unlearn_utils.study.study_documents import tokenizer

TINY = replace(
    PROFILES["smoke"],
    name="tiny",
    corpus=Corpus(pairs=4, retain=6, general=6, evaluation=4, measured=4),
    shape=Shape(vocabulary=400, hidden=16, intermediate=32, layers=2, heads=2, context=48),
    pretraining=Pretraining(epochs=6, batch=4),
    unlearning=Unlearning(learning_rate=2e-3, batch=2, epochs=2),
    domains=("arxiv",),
    seeds=2,
    workers=1,
    resamples=20,
)


def one_step(method, micro_batch):
    """Return the loss of one step on documents of unequal lengths, always from the same start."""
    start = pool.target(TINY).folder()
    model = models.load(start)
    forget, retain = single_run.token_ids_of_sides(TINY, "arxiv", method)
    forget = [forget[0][:9], forget[1], forget[2][:20], forget[3][:30]]
    recipe = replace(TINY.unlearning, batch=4, epochs=1)
    job = training.Job(
        method, forget, retain, recipe, tokenizer(TINY).pad_token_id, 0, models.load(start)
    )
    with torch.no_grad():  # away from the original model, where the loss of every sequence is alike
        for number, weight in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(number)
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    with models.matmul_precision(bf16=False):
        (step,) = training.unlearn(model, job, training.Execution(micro_batch=micro_batch))
    return step["loss"]


def command_line():
    """Return what `python -m unlearn_utils methods` prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        commands.show_methods(argparse.Namespace())
    return printed.getvalue()


def loss_by_hand(method):
    """Return the loss of the first step, and NPO's formula from plain logits of both models."""
    torch.manual_seed(0)
    start = pool.target(TINY).folder()
    model, reference = models.load(start), models.load(start)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    forget, _ = single_run.token_ids_of_sides(TINY, "arxiv", method)
    each = []
    for ids in forget:
        ids = torch.tensor([ids])
        sums = []
        for one in (model, reference):
            log_probs = one(ids).logits[:, :-1].log_softmax(-1)
            sums.append(-log_probs.gather(2, ids[:, 1:, None]).sum().item())
        rise = sums[0] - sums[1]
        each.append(-(2 / 0.1) * -math.log1p(math.exp(-0.1 * rise)))
    collate = training.paired(
        training.Job(method, forget, [], TINY.unlearning, tokenizer(TINY).pad_token_id, 0)
    )
    batch = collate([(number, 0) for number in range(len(forget))])["forget"]
    ours = methods.unlearning_loss(method, model, batch, reference=reference).item()
    return ours, float(np.mean(each))


def main(name, title, column):
    method = methods.get_method(name)
    others = [other for other in methods.METHODS if other != name]
    runs = unlearning.unlearn_all(TINY, [*list(methods.METHODS)[:1], name])
    rows = reports.report_rows(TINY, runs)
    compared = tables.summarise(rows, ["name", "model", "target_domain"], ["perplexity"], 0, 20)
    near = rows[rows.domain != "general"]
    scored = tables.auc_table(near, ["name"], [title], 0, 20)
    distances = reports.distances(TINY, rows, 0)
    points = distances[distances.split.isin(["forget", "evaluation"]) & (distances.method != "")]
    figure, (ax,) = plots.panels(1)
    plots.tradeoff(points, ax)
    trajectory = unlearning.rows_of_runs(runs, "trajectory").query("method == @name")
    forget = trajectory[trajectory.split == "forget"].groupby("step").nll.sum()
    counted = pd.read_parquet(costs.flops(TINY, "arxiv", name).folder() / "rows.parquet")
    ours, by_hand = loss_by_hand(method)
    found = {
        "listed": command_line(),
        "compared": sorted(set(compared["name"])),
        "drawn": ax.get_legend_handles_labels()[1],
        "style": list(map(str, plots.method_style(name))),
        "other styles": [list(map(str, plots.method_style(other))) for other in others],
        "ranked": reports.ranking(TINY, rows, 0).method.tolist(),
        "grid": sorted({setting.method for setting in grid.plan(TINY)}),
        "forget NLL": [float(forget.iloc[0]), float(forget.iloc[-1])],
        "micro-batches": [one_step(method, 4), one_step(method, 1)],
        "loss": [ours, by_hand],
        "card": cards.method_table().set_index("name").loc[name].to_dict(),
        "flops": float(counted.flops.iloc[0]),
        "columns": list(rows.columns),
        "scored": scored[["name", "measure", "value"]].values.tolist(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
