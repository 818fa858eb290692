"""Run by test_contributing.py in a copy of the package that has a new method, score and claim.

Runs the method's paths on a tiny model and prints, as JSON, where all three are seen.
"""

import argparse
import contextlib
import io
import json
import math
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from unlearn_utils.app import cards, commands
from unlearn_utils.core import methods, tables
from unlearn_utils.engine import models, training
from unlearn_utils.findings import (
    claims,
    comparison,
    evidence,
    plots,
    plots_of_paths,
    pool_tables,
    robustness,
)
from unlearn_utils.profiles import PROFILES, Corpus, Grid, Pretraining, Shape, Unlearning
from unlearn_utils.study import costs, method_paths, pool, single_run
from unlearn_utils.study.study_documents import tokenizer

TINY = replace(
    PROFILES["smoke"],
    name="tiny",
    corpus=Corpus(pairs=4, retain=6, general=6, evaluation=4, measured=4),
    shape=Shape(vocabulary=400, hidden=16, intermediate=32, layers=2, heads=2, context=48),
    pretraining=Pretraining(epochs=12, batch=4),
    unlearning=Unlearning(learning_rate=2e-3, batch=2),
    grid=Grid(learning_rates=(1e-3, 2e-3), epochs=1, usual_epochs=2, retain_documents=(1,)),
    domains=("arxiv", "github"),
    workers=1,
    resamples=20,
)


def one_step(name, micro_batch):
    """Return the loss of one step on documents of unequal lengths, always from the same start."""
    method = methods.get_method(name)
    start = pool.target(TINY).folder()
    model = models.load(start)
    forget, retain = single_run.token_ids_of_sides(TINY, "arxiv", name)
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


def loss_by_hand(name):
    """Return the loss of the first step, and KTO's formula from plain logits of both models."""
    method = methods.get_method(name)
    torch.manual_seed(0)
    start = pool.target(TINY).folder()
    model, reference = models.load(start), models.load(start)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    forget, _ = single_run.token_ids_of_sides(TINY, "arxiv", name)
    each = []
    for ids in forget:
        ids = torch.tensor([ids])
        sums = []
        for one in (model, reference):
            log_probs = one(ids).logits[:, :-1].log_softmax(-1)
            sums.append(-log_probs.gather(2, ids[:, 1:, None]).sum().item())
        rise = sums[0] - sums[1]
        each.append(1 / (1 + math.exp(0.1 * rise)))
    collate = training.paired(
        training.Job(method, forget, [], TINY.unlearning, tokenizer(TINY).pad_token_id, 0)
    )
    batch = collate([(number, 0) for number in range(len(forget))])["forget"]
    ours = methods.unlearning_loss(method, model, batch, reference=reference).item()
    return ours, float(np.mean(each))


def accuracy_gained():
    """Return accuracy on the forget sets, of models that saw them less the others: of domains."""
    rows = pool.pool_rows(TINY)
    gained = []
    for domain in TINY.domains:
        forget = rows[(rows.domain == domain) & (rows.split == "forget")]
        sums = forget.groupby("seen")[["correct", "tokens"]].sum()
        accuracy = sums.correct / sums.tokens
        saw = accuracy.index.str.contains(domain)
        gained.append(accuracy[saw].mean() - accuracy[~saw].mean())
    return float(np.mean(gained))


def of_method(name):
    """Return where a method is seen: on the command line, in tables, in a figure, at what cost."""
    (path,) = method_paths.make_all([method_paths.usual_run(TINY, 0, "arxiv", name)])
    rows = pd.read_parquet(path.path / "rows.parquet")
    forget = rows[rows.split == "forget"].groupby("step").nll.sum()
    data = comparison.plane_data(TINY)
    points = comparison.plane_points(comparison.models_table(TINY))
    figure, (ax,) = plots.panels(1)
    here = data.target_domain == "arxiv"
    plots_of_paths.plane(data[here], points[points.target_domain == "arxiv"], ax)
    counted = pd.read_parquet(costs.flops(TINY, "arxiv", name).folder() / "rows.parquet")
    others = [other for other in methods.METHODS if other != name]
    return {
        "listed": command_line(),
        "card": cards.method_table().set_index("name").loc[name].to_dict(),
        "runs": Counter(
            run.method for run in method_paths.every_run(TINY) if run.retain_documents is None
        ),
        "equal": list(comparison.equal_table(TINY).method.unique()),
        "ranked": list(comparison.ranking_table(TINY).model.unique()),
        "robust": list(robustness.robustness_table(TINY).method.unique()),
        "coverage": list(evidence.coverage(TINY).model),
        "drawn": [label.replace(" ", "_") for label in ax.get_legend_handles_labels()[1]],
        "style": list(map(str, plots.method_style(name))),
        "other styles": [list(map(str, plots.method_style(other))) for other in others],
        "forget NLL": [float(forget.iloc[0]), float(forget.iloc[-1])],
        "micro-batches": [one_step(name, 4), one_step(name, 1)],
        "loss": loss_by_hand(name),
        "flops": float(counted.flops.iloc[0]),
    }


def of_score(title):
    """Return where a score is seen: in the pool's rows, and as an AUC."""
    rows = pool.pool_rows(TINY)
    scored = tables.auc_table(rows[rows.domain == "arxiv"], ["seen"], [title], 0, 20)
    pool_tables.SCORES = (*pool_tables.SCORES, title)
    return {
        "columns": list(rows.columns),
        "scored": scored[["seen", "measure", "value"]].values.tolist(),
        "shown": list(pool_tables.membership_table(TINY).measure.unique()),
    }


def of_claim(name):
    """Return the row of a claim, and by hand what it measures."""
    claims.CLAIMS = tuple(claim for claim in claims.CLAIMS if claim.id == name)
    (row,) = claims.measure_all(TINY).to_dict("records")
    words = ("id", "sense", "threshold", "value", "low", "high", "verdict", "because")
    return {"claim": {word: row[word] for word in words}, "accuracy gained": accuracy_gained()}


def main(name, title, claim):
    pool.pool_rows(TINY)
    found = {**of_method(name), **of_score(title), **of_claim(claim)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
