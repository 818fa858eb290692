"""The committed results: what the texts say about them, and what every later comparison assumes."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from unlearn_utils import tables

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


def test_the_retrained_models_find_forget_and_approximate_equally_hard():
    fair = rows(table("table02_differences"), measure="retrained: forget / approximate").set_index("run")
    assert set(fair.index) == set(DOMAINS) and (fair.n >= 60).all()
    assert ((fair.low < 0) & (fair.high > 0)).all()


def test_a_blind_classifier_finds_nothing():
    blind = table("table01_blind")
    assert ((blind.low < 0.5) & (blind.high > 0.5)).all() and len(blind) == 3


def test_the_readme_states_the_fairness_of_the_splits(readme):
    fair = rows(table("table02_differences"), measure="retrained: forget / approximate").set_index("run")
    assert ", ".join(tables.text(fair.loc[d], sign="+") for d in DOMAINS) in readme
    auc = rows(table("table02_membership"), measure="AUC Min-40%")
    assert f"(AUC {span(rows(auc, model='retrained').value)})" in readme
    assert f"({span(rows(auc, model='target').value)})" in readme


def test_the_readme_states_the_bias_of_the_proxy(readme):
    both = table("table02_differences")
    near = rows(both, measure="target / retrained, both on approximate")
    assert (near.high < 0).all()
    assert f"log ratio {near.value.max():.2f} to {near.value.min():.2f}, every interval below 0" in readme
    noise = rows(both, measure="noise: seed 1 / seed 0, both on forget").iloc[0]
    assert tables.text(noise, sign="+") in readme


def test_the_readme_states_what_gradient_ascent_did(readme):
    distances = table("table03_distances")
    assert np.expm1(rows(distances, split="forget").value).abs().max() < 0.1  # "within 10%"
    near = np.exp(rows(distances, split="approximate").value)
    assert near.min() > 1.5 and near.max() < 2
    auc = rows(table("table03_membership"), measure="AUC Min-40%", when="chosen")
    assert f"(AUC {span(auc.value)})" in readme
    last = rows(table("table03_perplexity"), measure="perplexity", when="last", split="forget")
    assert last.value.min() > 6000


def test_the_readme_states_the_ratio_of_flops(readme):
    flops = table("table03_flops").pivot(index="run", columns="method", values="flops")
    assert {f"{ratio:.0f}" for ratio in flops.retraining / flops.gradient_ascent} == {"67"}
    assert "67 times fewer FLOPs" in readme


def test_every_number_has_an_interval_and_an_n():
    for path in sorted((ROOT / "figures").glob("table*.csv")):
        frame = pd.read_csv(path)
        if {"value", "low"} <= set(frame):
            assert frame[["value", "low", "high", "n"]].notna().all().all(), path.name
            assert (frame.n > 0).all() and (frame.low <= frame.high).all(), path.name
