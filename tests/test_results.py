"""The committed results: what README and the results page say, and what every table holds to."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from committed import ROOT, STUDY, interval, laptop, of_laptop, study, value, words

from unlearn_utils.core.methods import METHODS

DOMAINS = ["arxiv", "books", "github"]
RESULTS = "docs/results.md"
CLAIMED = "ascent_descent_in_distribution"


def span(values, digits=2):
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def listed(values, digits=2):
    """`a, b and c`"""
    *first, last = [f"{one:.{digits}f}" for one in values]
    return f"{', '.join(first)} and {last}"


def rows_of(table, **keys):
    """The values of every expected row of a table with these keys that has one."""
    wanted = {f"{column.replace('__', ' ')}={cell}" for column, cell in keys.items()}
    found = {}
    for (name, key), row in laptop().items():
        if name == table and wanted <= set(key.split("; ")) and row["value"]:
            found[key] = float(row["value"])
    return found


# -------------------------------------------------------------------------- what the tables hold to


def tables_with_values():
    for folder in (ROOT / "figures", STUDY):
        for path in sorted(folder.glob("table*.csv")):
            frame = pd.read_csv(path)
            computed = path.stem == "table12_tuned"  # arithmetic, over no sample
            if {"value", "low"} <= set(frame) and not computed:
                yield path, frame


def test_every_number_has_an_interval_and_an_n():
    seen = 0
    for path, frame in tables_with_values():
        known = frame[frame["value"].notna()]
        if "kind" in known:  # what is computed is over no sample
            known = known[known.kind != "computed"]
        assert known[["low", "high", "n"]].notna().all().all(), path
        assert (known.n > 0).all() and (known.low <= known.high).all(), path
        seen += len(known)
    assert seen > 500


def test_no_row_has_two_values():
    for path, frame in tables_with_values():
        keys = list(frame.columns[: frame.columns.get_loc("value")])
        twice = frame[frame.duplicated(keys, keep=False)]
        assert not len(twice), (path, twice[keys].head(2).to_dict("records"))


def test_a_run_of_the_default_profile_has_the_study_s_rows():
    """So every trained value has a rerun interval: keys never depend on results."""
    if not (STUDY / "table14_claims.csv").exists():
        pytest.skip("no study is committed yet")
    trained = 0
    for (table, key), row in laptop().items():
        file = STUDY / f"{table}.csv"
        exact = row["low"] == row["high"]
        if not file.exists() or exact or "by_replicate" not in study(table):
            continue
        if row["value"]:
            assert row["rerun_low"], (table, key)
            trained += 1
    assert trained > 300


# ------------------------------------------------------------------------------------ the splits


def test_the_splits_are_fair():
    measure = "retrained: forget less unseen"
    fair = [of_laptop("table02_differences", target_domain=d, measure=measure) for d in DOMAINS]
    assert all(row["low"] < 0 < row["high"] for row in fair)
    assert ", ".join(interval(row) for row in fair) in words(RESULTS)
    for model, said in (("retrained", "models (AUC {})"), ("target", "the targets ({})")):
        auc = rows_of("table02_membership", model=model, measure="AUC Min-40%").values()
        assert len(auc) == 3 and said.format(span(auc)) in words(RESULTS)


def test_a_blind_classifier_finds_nothing():
    blind = pd.read_csv(ROOT / "figures" / "table01_blind.csv")
    assert ((blind.low < 0.5) & (blind.high > 0.5)).all() and len(blind) == 3


def test_the_proxy_reads_too_low():
    measure = "target less retrained, on unseen"
    by_domain = [
        -value("table02_differences", target_domain=domain, measure=measure) for domain in DOMAINS
    ]
    assert f"by {span(by_domain)} nats in the three domains" in words(RESULTS)
    mean = of_laptop("table02_differences", target_domain="mean", measure=measure)
    assert f"mean {interval(mean)}." in words(RESULTS)
    assert f"too low: {interval(mean)} nats a token" in words("README.md")
    noise = "SD between retrained models, on unseen"
    floor = of_laptop("table02_differences", target_domain="mean", measure=noise)
    assert f"on that text, is {interval(floor)}." in words(RESULTS)


# -------------------------------------------------------------------------------- the comparison


def damage(method):
    keys = {"method": method, "forget__gap": -0.25, "measure": "damage, mean of three"}
    return [value("table10_equal", target_domain=domain, **keys) for domain in DOMAINS]


def test_what_methods_damage_at_equal_forgetting():
    page = words(RESULTS)
    assert f"text by {listed(damage(CLAIMED))} nats (arxiv, books, github)" in page
    assert f"gradient ascent by {listed(damage('gradient_ascent'))}," in page
    assert f"random labels by {listed(damage('random_label'))}." in page


def distance(model):
    return of_laptop("table10_ranking", model=model, target_domain="mean", measure="distance")


def test_who_is_nearest_to_retraining():
    page = words(RESULTS)
    second = "ascent_kl_in_distribution"
    assert f"is {interval(distance(CLAIMED), 3)} for ascent + descent" in page
    assert f"{interval(distance(second), 3)} for ascent + KL with it" in page
    others = [distance(name)["value"] for name in METHODS if name not in (CLAIMED, second)]
    assert f"and {span(others, 3)} for the others" in page
    assert min(others) > distance(second)["value"] > distance(CLAIMED)["value"]
    nothing, again = distance("do nothing"), distance("another retrained model")
    assert f"Doing nothing is at {interval(nothing, 3)}" in page
    assert f"another retrained model at {interval(again, 3)}" in page
    numbers = [distance(CLAIMED), distance(second), nothing, again]
    first = words("README.md")
    for row, said in zip(numbers, ("distance of {}", "({})", "is at {}", "at {}"), strict=True):
        assert said.format(f"{row['value']:.3f}") in first


def test_what_membership_inference_still_finds():
    page = words(RESULTS)
    measure = "AUC over retrained"
    at_zero = rows_of("table10_membership", at="gap 0", measure=measure)
    assert len(at_zero) == 4 and "four of the seven methods" in page
    assert f"is {span(at_zero.values())} above the retrained model's" in page
    target = value("table10_membership", model="do nothing", at="as it is", measure=measure)
    again = value(
        "table10_membership", model="another retrained model", at="as it is", measure=measure
    )
    assert f"the target's is {target:.2f} above, another retrained model's {again:.2f}" in page
    assert f"an AUC {interval(claim('F3'))} above the retrained" in words("README.md")


# -------------------------------------------------------------------------------- hyperparameters


def claim(name):
    return of_laptop("table14_claims", id=name)


def test_how_much_of_the_plane_works():
    page = words(RESULTS)
    keys = {"target_domain": "arxiv", "plane": "four kinds of text"}
    robust, window, worse = (
        rows_of("table11_robustness", measure=measure, **keys)
        for measure in ("robustness", "window", "worse than doing nothing")
    )
    assert len(robust) == len(window) == len(worse) == len(METHODS)
    low, high = min(robust.values()), max(robust.values())
    assert f"between {low:.3f} and {high:.3f} of the way" in page
    assert f"{min(worse.values()):.0%} to {max(worse.values()):.0%} of the settings" in page
    assert f"method={CLAIMED}" in max(robust, key=robust.get).split("; ")
    assert "method=adversarial" in max(window, key=window.get).split("; ")
    assert f"higher by {interval(claim('C2'), 3)}" in page
    assert f"not wider ({interval(claim('C2 window'), 3)})" in page


def test_what_guidelines_cost():
    page = words(RESULTS)
    assert f"lies {interval(claim('C4c'))} nats farther" in page
    others = [claim(name)["value"] for name in ("C4a", "C4b", "C4d")]
    assert f"lose {span(others)}." in page and claim("C4c")["value"] > 4 * max(others)


# ---------------------------------------------------------------------------------- cost, defects


def test_the_ratio_of_flops():
    counted = pd.read_csv(ROOT / "figures" / "table12_flops.csv")
    flops = counted.pivot(index="target_domain", columns="method", values="value")
    ratios = [(flops.retraining / flops[name]).mean() for name in METHODS]
    assert f"{min(ratios):.0f} to {max(ratios):.0f} times fewer FLOPs" in words(RESULTS)


def test_the_ratio_at_the_paper_s_scale():
    computed = pd.read_csv(ROOT / "figures" / "table12_ratio.csv")
    computed = computed[computed.kind == "computed"]
    said = f"{computed.value.min():.0e} to {computed.value.max():.0e}".replace("e+0", "e")
    assert f"{said} times fewer" in words(RESULTS)
    one, tuned = (f"{claim(name)['value']:.0e}".replace("e+0", "e") for name in ("C1", "C1 tuned"))
    assert f"at least {tuned}." in words(RESULTS)
    assert f"is {one} times cheaper" in words("README.md")
    assert f"it is {tuned} times." in words("README.md")


def test_what_shifted_labels_do():
    measure = "log perplexity, official less corrected"
    keys = {"defect": "1 shifted labels", "measure": measure}
    forget, general = (
        np.exp(value("table13_differences", split=split, **keys))
        for split in ("forget", "evaluation")
    )
    said = f"is {forget:.1f} times, general perplexity {general:.1f} times"
    assert said in words(RESULTS)


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


def test_no_page_has_a_number_that_is_still_to_come():
    for page in (RESULTS, "README.md"):
        assert not re.search(r"FINDING|NUMBER", words(page))
