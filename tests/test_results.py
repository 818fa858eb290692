"""The committed results: what the texts say about them, and what every later comparison assumes."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from unlearn_utils.core import tables

ROOT = Path(__file__).resolve().parents[1]
DOMAINS = ["arxiv", "books", "github"]


@pytest.fixture(scope="module")
def readme():
    return re.sub(r"\s+", " ", (ROOT / "README.md").read_text())


def table(name):
    return pd.read_csv(ROOT / "figures" / f"{name}.csv")


def rows(frame, **wanted):
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    return frame


def span(values, digits=2):
    return f"{values.min():.{digits}f} to {values.max():.{digits}f}"


def fairness():
    """How much harder the retrained models find the forget documents, by domain."""
    differences = table("table02_differences")
    fair = rows(differences, measure="retrained: forget / approximate")
    return fair.set_index("target_domain")


def test_the_retrained_models_find_forget_and_approximate_equally_hard():
    fair = fairness()
    assert set(fair.index) == set(DOMAINS) and (fair.n >= 60).all()
    assert ((fair.low < 0) & (fair.high > 0)).all()


def test_a_blind_classifier_finds_nothing():
    blind = table("table01_blind")
    assert ((blind.low < 0.5) & (blind.high > 0.5)).all() and len(blind) == 3


def test_the_readme_states_the_fairness_of_the_splits(readme):
    fair = fairness()
    assert ", ".join(tables.text(fair.loc[d], sign="+") for d in DOMAINS) in readme
    auc = rows(table("table02_membership"), measure="AUC Min-40%")
    assert f"(AUC {span(rows(auc, model='retrained').value)})" in readme
    assert f"({span(rows(auc, model='target').value)})" in readme


def test_the_readme_states_the_bias_of_the_proxy(readme):
    both = table("table02_differences")
    near = rows(both, measure="target / retrained, both on approximate")
    assert (near.high < 0).all()
    least, most = near.value.max(), near.value.min()
    assert f"log ratio {least:.2f} to {most:.2f}, every interval below 0" in readme
    noise = rows(both, measure="noise: seed 1 / seed 0, both on forget").iloc[0]
    assert tables.text(noise, sign="+") in readme


def test_the_readme_states_the_ranking(readme):
    ranks = table("table10_ranking").set_index("method")
    first, second = (ranks.loc[f"ascent_{x}_in_distribution"] for x in ("descent", "kl"))
    assert (first["rank"], second["rank"]) == (1, 2)
    assert f"first ({tables.text(first)})" in readme and f"second ({tables.text(second)})" in readme
    last = [ranks.loc[f"ascent_{x}_general"] for x in ("descent", "kl")]
    assert sorted(r["rank"] for r in last) >= [6, 6]
    assert f"are last ({last[0].value:.2f}, {last[1].value:.2f})" in readme


def test_the_readme_states_that_no_method_passes_for_retraining(readme):
    auc = rows(table("table10_comparison"), measure="AUC Min-40%")
    found, retrained = rows(auc, model="unlearned").value, rows(auc, model="retrained").value
    assert f"(AUC at least {found.min():.2f}, retrained at most {retrained.max():.2f})" in readme
    kl = rows(table("table10_divergence"), split="forget")
    ours = rows(kl, model="unlearned").value
    target = rows(kl, model="target").value
    again = rows(kl, model="retrained again").value
    said = (
        f"at least {ours.min():.2f} nats a token, target at most {target.max():.2f}, "
        f"another retrained model {again.max():.2f}"
    )
    assert ours.min() > target.max() and said in readme


def test_the_readme_states_what_shifted_labels_do(readme):
    shifted = rows(table("table13_differences"), defect="1 shifted labels").set_index("split")
    forget, general = np.exp(shifted.loc[["forget", "evaluation"], "value"])
    assert f"is {forget:.1f} times, general perplexity {general:.1f} times" in readme


def claimed(folder, id):
    """The row of a claim in a folder's table."""
    claims = pd.read_csv(ROOT / "figures" / folder / "table14_claims.csv")
    return claims.set_index("id").loc[id]


def test_the_readme_states_the_regret_of_tuning_by_the_proxy(readme):
    here, study = claimed("", "C4a"), claimed("study", "C4a")
    said = (
        f"{tables.text(here)} farther from retraining than the best cell, "
        f"{tables.text(study)} in the study"
    )
    assert said in readme and (here.verdict, study.verdict) == ("supported", "supported")


def test_the_readme_states_the_ratio_of_flops(readme):
    ratios = []
    for number in range(3, 10):
        counted = table(f"table{number:02}_flops")
        flops = counted.pivot(index="target_domain", columns="method", values="flops")
        unlearning = flops.drop(columns="retraining").iloc[:, 0]
        ratios.append((flops.retraining / unlearning).mean())
    assert f"{min(ratios):.0f} to {max(ratios):.0f} times fewer FLOPs" in readme


def test_every_number_has_an_interval_and_an_n():
    for path in sorted((ROOT / "figures").glob("table*.csv")):
        frame = pd.read_csv(path)
        if {"value", "low"} <= set(frame):
            assert frame[["value", "low", "high", "n"]].notna().all().all(), path.name
            assert (frame.n > 0).all() and (frame.low <= frame.high).all(), path.name
