"""The committed results: what the texts say about them, and what every later comparison assumes."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from unlearn_utils import profiles
from unlearn_utils.core import tables
from unlearn_utils.study import selection

ROOT = Path(__file__).resolve().parents[1]
DOMAINS = ["arxiv", "books", "github"]


def words(page):
    """A page as one line: sentences are wrapped anywhere."""
    return re.sub(r"\s+", " ", (ROOT / page).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def results():
    return words("docs/results.md")


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


def test_the_results_page_states_the_fairness_of_the_splits(results):
    fair = fairness()
    assert ", ".join(tables.text(fair.loc[d], sign="+") for d in DOMAINS) in results
    auc = rows(table("table02_membership"), measure="AUC Min-40%")
    assert f"(AUC {span(rows(auc, model='retrained').value)})" in results
    assert f"({span(rows(auc, model='target').value)})" in results


def test_the_results_page_states_the_bias_of_the_proxy(results):
    both = table("table02_differences")
    near = rows(both, measure="target / retrained, both on approximate")
    assert (near.high < 0).all()
    least, most = near.value.max(), near.value.min()
    assert f"log ratio is {least:.2f} to {most:.2f}, every interval below 0" in results
    noise = rows(both, measure="noise: seed 1 / seed 0, both on forget").iloc[0]
    assert tables.text(noise, sign="+") in results


def test_the_results_page_states_the_ranking(results):
    ranks = table("table10_ranking").set_index("method")
    first = ranks.loc["ascent_descent_in_distribution"]
    second = ranks.loc["ascent_kl_in_distribution"]
    assert (first["rank"], second["rank"]) == (1, 2)
    assert f"first ({tables.text(first)})" in results
    assert f"second ({tables.text(second)})" in results

    last = [ranks.loc["ascent_descent_general"], ranks.loc["ascent_kl_general"]]
    assert sorted(r["rank"] for r in last) >= [6, 6]
    assert f"are last ({last[0].value:.2f}, {last[1].value:.2f})" in results


def test_the_readme_describes_the_figure_of_the_trade_off():
    page = words("README.md")
    filled = rows(table("fig10_tradeoff"), model="unlearned")
    places = filled.pivot(index=["target_domain", "method"], columns="split", values="value")

    beyond = places[places.forget > 0].index.tolist()
    general = ["ascent_descent_general", "ascent_kl_general"]
    assert beyond == [("github", method) for method in general]
    assert "filled marks lie to its left, but the two with general retain text on github" in page

    distance = np.hypot(places.forget, places.evaluation).unstack("method")
    assert set(distance.idxmin(axis=1)) == {"ascent_descent_general"}
    assert "ascent and descent with general retain text comes nearest in every panel" in page


def test_the_results_page_states_that_no_method_passes_for_retraining(results):
    auc = rows(table("table10_comparison"), measure="AUC Min-40%")
    found, retrained = rows(auc, model="unlearned").value, rows(auc, model="retrained").value
    assert f"(AUC at least {found.min():.2f}, retrained at most {retrained.max():.2f})" in results
    kl = rows(table("table10_divergence"), split="forget")
    ours = rows(kl, model="unlearned").value
    target = rows(kl, model="target").value
    again = rows(kl, model="retrained again").value
    said = (
        f"at least {ours.min():.2f} nats a token, target at most {target.max():.2f}, "
        f"another retrained model {again.max():.2f}"
    )
    assert ours.min() > target.max() and said in results


def test_the_results_page_states_what_shifted_labels_do(results):
    shifted = rows(table("table13_differences"), defect="1 shifted labels").set_index("split")
    forget, general = np.exp(shifted.loc[["forget", "evaluation"], "value"])
    assert f"is {forget:.1f} times, general perplexity {general:.1f} times" in results


def claimed(folder, id):
    """The row of a claim in a folder's table."""
    claims = pd.read_csv(ROOT / "figures" / folder / "table14_claims.csv")
    return claims.set_index("id").loc[id]


def test_the_results_page_states_the_regret_of_tuning_by_the_proxy(results):
    here, study = claimed("", "C4a"), claimed("study", "C4a")
    said = (
        f"{tables.text(here)} farther from retraining than the best cell, "
        f"and {tables.text(study)} in the study"
    )
    assert said in results and (here.verdict, study.verdict) == ("supported", "supported")


def test_the_results_page_states_the_ratio_of_flops(results):
    ratios = []
    for number in range(3, 10):
        counted = table(f"table{number:02}_flops")
        flops = counted.pivot(index="target_domain", columns="method", values="flops")
        unlearning = flops.drop(columns="retraining").iloc[:, 0]
        ratios.append((flops.retraining / unlearning).mean())
    assert f"{min(ratios):.0f} to {max(ratios):.0f} times fewer FLOPs" in results


def test_the_results_page_states_the_ratio_at_the_paper_s_scale(results):
    computed = rows(table("table12_ratio"), kind="computed")
    assert (
        f"{computed.value.min():.0e} to {computed.value.max():.0e}".replace("e+0", "e") in results
    )


def test_the_results_page_states_how_narrow_the_range_is(results):
    grid = profiles.STUDY.grid
    cells = len(grid.learning_rates) * len(grid.marks) * len(grid.domains)
    assert f"{cells} cells a method on three domains" in results
    assert f"within {selection.BAND} of the retrained model's" in results
    assert f"up by less than {selection.BOUND:.0%}" in results

    measured = pd.read_csv(ROOT / "figures" / "study" / "table11_robustness.csv")
    share = rows(measured, measure="acceptable share").set_index("method").value
    assert f"at most {share.max():.0%} of any method's" in results
    assert share["ascent_descent_in_distribution"] == share["gradient_ascent"] == 0
    assert claimed("study", "C2").verdict == "inconclusive"


def test_the_speed_page_states_what_was_measured_on_a_gpu():
    page = words("docs/speed.md")
    file = ROOT / "benchmarks" / "results" / "gpu_h200.json"
    measured = json.loads(file.read_text(encoding="utf-8"))["rows"]
    steps = {row["method"]: row for row in measured if row["shape"] == "yi-6b"}
    stated = {
        "gradient ascent": "gradient_ascent",
        "ascent + descent": "ascent_descent_general",
        "ascent + KL": "ascent_kl_general",
    }
    for name, method in stated.items():
        step = steps[method]
        seconds, memory = step["seconds_median"], step["peak_gb"]
        assert f"| {name} | {seconds:.2f} s | {memory:.0f} GB |" in page


def test_every_number_has_an_interval_and_an_n():
    for path in sorted((ROOT / "figures").glob("table*.csv")):
        frame = pd.read_csv(path)
        if {"value", "low"} <= set(frame):
            assert frame[["value", "low", "high", "n"]].notna().all().all(), path.name
            assert (frame.n > 0).all() and (frame.low <= frame.high).all(), path.name
