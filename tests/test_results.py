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


def damage(method, measure="damage, mean of three"):
    keys = {"method": method, "forget__gap": -0.25, "measure": measure}
    return [of_laptop("table10_equal", target_domain=domain, **keys) for domain in DOMAINS]


def listed(rows):
    """`a [b, c], d [e, f] and g [h, i]`"""
    *first, last = [interval(row) for row in rows]
    return f"{', '.join(first)} and {last}"


def test_what_methods_damage_at_equal_forgetting():
    page = words(RESULTS)
    assert f"by {listed(damage(CLAIMED))} nats on arxiv, books and github" in page
    assert f"Gradient ascent has by {listed(damage('gradient_ascent'))}." in page
    general = damage("ascent_descent_general", "damage to general text")
    pairs = zip(general, damage(CLAIMED, "damage to general text"), strict=True)
    less = [descent["value"] < claimed["value"] for descent, claimed in pairs]
    assert less == [True, False, True] and np.isnan(general[1]["value"])
    assert "where both have a value (arxiv, github)" in page


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
    said = ("descent with it, {} nats", "KL with it, {}.", "nothing is at {}", "model at {}.")
    for row, words_of_it in zip(numbers, said, strict=True):
        assert words_of_it.format(interval(row, 3)) in first
    measure = "distance - ascent_descent_in_distribution's"
    apart = of_laptop("table10_ranking", model=second, target_domain="mean", measure=measure)
    assert apart["low"] < 0 < apart["high"]
    assert "not told apart" in page and "Not told apart from it" in first
    assert min(distance(name)["low"] for name in METHODS) > again["high"]


def test_what_membership_inference_still_finds():
    page = words(RESULTS)
    measure = "AUC over retrained"
    at_zero = rows_of("table10_membership", at="gap 0", measure=measure)
    assert len(at_zero) == 4 and "four of the seven methods" in page
    ends = []
    for choose in (min, max):
        method = re.search(r"model=(\w+)", choose(at_zero, key=at_zero.get))[1]
        ends.append(of_laptop("table10_membership", model=method, at="gap 0", measure=measure))
    assert f"is {interval(ends[0])} to {interval(ends[1])} above the retrained" in page
    others = {}
    for model in ("do nothing", "another retrained model"):
        keys = {"model": model, "at": "as it is", "measure": measure}
        others[model] = interval(of_laptop("table10_membership", **keys))
    assert f"the target's is {others['do nothing']} above" in page
    assert f"another retrained model's {others['another retrained model']}." in page
    least = interval(claim("F3"))
    assert f"is at least {least} above the retrained model's." in words("README.md")


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
    assert f"between {low:.3f} and {high:.3f}, where 0 is doing nothing" in page
    assert f"{min(worse.values()):.0%} to {max(worse.values()):.0%} of the settings" in page
    assert f"method={CLAIMED}" in max(robust, key=robust.get).split("; ")
    assert "method=adversarial" in max(window, key=window.get).split("; ")
    assert f"higher by {interval(claim('C2'), 3)}" in page
    assert f"not told apart ({interval(claim('C2 window'), 3)})" in page
    assert claim("C2 window")["low"] < 0 < claim("C2 window")["high"]


def test_what_guidelines_cost():
    page = words(RESULTS)
    assert f"lies {interval(claim('C4c'))} nats farther" in page
    others = [claim(name)["value"] for name in ("C4a", "C4b", "C4d")]
    assert f"lose {span(others)}, and are not told apart" in page
    measuring = [claim(name) for name in ("C4a", "C4b", "C4d")]
    assert max(row["low"] for row in measuring) < min(row["high"] for row in measuring)
    assert claim("C4c")["value"] > 4 * max(others)


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
    assert f"and {tuned} times with the runs that tuning takes" in words("README.md")


def test_what_shifted_labels_do():
    measure = "log perplexity, official less corrected"
    keys = {"defect": "1 shifted labels", "measure": measure}
    times = []
    for split in ("forget", "evaluation"):
        row = of_laptop("table13_differences", split=split, **keys)
        times.append(interval({name: np.exp(number) for name, number in row.items()}, 1))
    said = f"is {times[0]} times, general perplexity {times[1]} times"
    assert said in words(RESULTS)


def test_which_defects_change_forgetting_by_more_than_a_tenth():
    found = []
    for number in "123457":
        row = claim(f"F4.{number}")
        assert not row["low"] < 0.0953 < row["high"]
        if row["low"] > 0.0953:
            found.append(number)
    assert found == ["1", "4"]
    assert f"harder by {interval(claim('F4.4'))} nats" in words(RESULTS)


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
