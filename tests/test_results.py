"""The committed results: what README and the results page say, and what every table holds to."""

import json
import re

import numpy as np
import pandas as pd
from committed import (
    EXPECTED,
    PUBLISHED,
    ROOT,
    STUDY,
    claim,
    interval,
    laptop,
    of_study,
    study,
    words,
)

from unlearn_utils.core.methods import METHODS
from unlearn_utils.findings import claims

DOMAINS = ["arxiv", "books", "github"]
RESULTS = "docs/results.md"
CLAIMED = "ascent_descent_in_distribution"


def span(values, digits=2):
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def values_of(table, by, **keys):
    """The values of the study's rows with these keys that have one, by the column `by`."""
    rows = study(table).dropna(subset="value")
    for column, cell in keys.items():
        rows = rows[rows[column] == cell]
    return dict(zip(rows[by], rows["value"], strict=True))


# -------------------------------------------------------------------------- what the tables hold to


def tables_with_values():
    for folder in (ROOT / "figures", STUDY, PUBLISHED):
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
    """So a value that three of them have has a rerun interval: keys never depend on results."""
    trained = 0
    for path in sorted(STUDY.glob("table*.csv")):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        if "by_replicate" not in table:
            continue
        names = list(table.columns[: table.columns.get_loc("value")])
        for row in table[table.replicates.astype(float) > 2].to_dict("records"):
            key = "; ".join(f"{name}={row[name]}" for name in names)
            found = laptop().get((path.stem, key))
            if found and found["value"] and found["low"] != found["high"]:
                assert found["rerun_low"], (path.stem, key)
                trained += 1
    assert trained > 1000


# ------------------------------------------------------------------------------- what prose states

INTERVAL = re.compile(r"[+-]?\d[\d.,]* \[[+-]?\d[\d.,]*, [+-]?\d[\d.,]*\]")
PAGES = ("README.md", "docs/*.md", "notebooks/*.ipynb")


def rounded(row):
    """A committed number with its interval, in every way in which prose states one."""
    for digits in (1, 2, 3, 4):
        yield interval(row, digits)
        yield interval(row, digits, "+")
    if row["high"] < 5:  # a difference of log perplexity, stated as so many times
        yield interval({name: np.exp(row[name]) for name in row}, 1)
    shown = {name: f"{float(f'{row[name]:.3g}'):,.0f}" for name in row}
    yield f"{shown['value']} [{shown['low']}, {shown['high']}]"


def test_every_interval_in_prose_is_of_a_committed_table():
    tables = [pd.read_csv(EXPECTED)]
    tables += [frame for path, frame in tables_with_values() if path.parent in (STUDY, PUBLISHED)]
    known = set()
    for table in tables:
        for row in table[["value", "low", "high"]].dropna().to_dict("records"):
            known.update(rounded(row))
    stated = 0
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            text = words(str(path.relative_to(ROOT)))
            before, _, after = text.partition(claims.START)  # the table is of another test
            for found in INTERVAL.findall(before + after.partition(claims.END)[2]):
                assert found in known, (path.name, found)
                stated += 1
    assert stated > 150


# ------------------------------------------------------------------------------------ the splits


def test_the_splits_are_fair():
    measure = "retrained: forget less unseen"
    fair = [of_study("table02_differences", target_domain=d, measure=measure) for d in DOMAINS]
    assert all(row["low"] < 0 < row["high"] for row in fair)
    assert f"differ by {listed(fair)} nats for arxiv, books and github" in words(RESULTS)
    for model, said in (("retrained", "models (AUC {})"), ("target", "the targets ({})")):
        keys = {"model": model, "measure": "AUC Min-40%"}
        auc = values_of("table02_membership", "target_domain", **keys).values()
        assert len(auc) == 3 and said.format(span(auc)) in words(RESULTS)


def test_a_blind_classifier_finds_nothing():
    blind = pd.read_csv(ROOT / "figures" / "table01_blind.csv")
    assert ((blind.low < 0.5) & (blind.high > 0.5)).all() and len(blind) == 3


def test_the_proxy_reads_too_low():
    measure = "target less retrained, on unseen"
    by_domain = values_of("table02_differences", "target_domain", measure=measure)
    lower = [-by_domain[domain] for domain in DOMAINS]
    assert f"by {span(lower)} nats in the three domains" in words(RESULTS)
    mean = of_study("table02_differences", target_domain="mean", measure=measure)
    assert f"mean {interval(mean, 3)}." in words(RESULTS)
    assert f"too low: {interval(mean, 3)} nats a token" in words("README.md")
    noise = "SD between retrained models, on unseen"
    floor = of_study("table02_differences", target_domain="mean", measure=noise)
    assert f"on that text, is {interval(floor, 3)}." in words(RESULTS)


# -------------------------------------------------------------------------------- the comparison


def damage(method, measure="damage, mean of three"):
    keys = {"method": method, "forget gap": -0.25, "measure": measure}
    return [of_study("table10_equal", target_domain=domain, **keys) for domain in DOMAINS]


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
    assert all(descent["value"] < claimed["value"] for descent, claimed in pairs)
    assert "descent on general text, on each domain." in page


def distance(model):
    return of_study("table10_ranking", model=model, target_domain="mean", measure="distance")


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
    first = words("README.md")
    said = ("domain, at {} nats", "Doing nothing is at {}", "another retrained model at {}.")
    for row, words_of_it in zip((distance(CLAIMED), nothing, again), said, strict=True):
        assert words_of_it.format(interval(row, 3)) in first
    measure = "distance - ascent_descent_in_distribution's"
    apart = of_study("table10_ranking", model=second, target_domain="mean", measure=measure)
    assert f"nearer than the second by {interval(apart, 3)}" in page
    assert f"({apart['rerun_low']:.3f} to {apart['rerun_high']:.3f})" in page
    assert apart["low"] > 0 > apart["rerun_low"]
    assert min(distance(name)["low"] for name in METHODS) > again["high"]


def test_what_membership_inference_still_finds():
    page = words(RESULTS)
    measure = "AUC over retrained"
    at_zero = values_of("table10_membership", "model", at="gap 0", measure=measure)
    assert len(at_zero) == 3 and "three of the seven methods" in page
    ends = []
    for choose in (min, max):
        method = choose(at_zero, key=at_zero.get)
        ends.append(of_study("table10_membership", model=method, at="gap 0", measure=measure))
    assert f"is {interval(ends[0])} to {interval(ends[1])} above the retrained" in page
    others = {}
    for model in ("do nothing", "another retrained model"):
        keys = {"model": model, "at": "as it is", "measure": measure}
        others[model] = interval(of_study("table10_membership", **keys))
    assert f"the target's is {others['do nothing']} above" in page
    assert f"another retrained model's {others['another retrained model']}." in page
    assert min(at_zero, key=at_zero.get) == CLAIMED
    assert f"is {interval(claim('F3'))} above the retrained model's." in words("README.md")


# -------------------------------------------------------------------------------- hyperparameters


def test_how_much_of_the_plane_works():
    page = words(RESULTS)
    keys = {"target_domain": "arxiv", "plane": "four kinds of text"}
    robust, window, worse = (
        values_of("table11_robustness", "method", measure=measure, **keys)
        for measure in ("robustness", "window", "worse than doing nothing")
    )
    assert len(robust) == len(window) == len(worse) == len(METHODS)
    low, high = min(robust.values()), max(robust.values())
    assert f"between {low:.3f} and {high:.3f}, where 0 is doing nothing" in page
    assert f"{min(worse.values()):.0%} to {max(worse.values()):.0%} of the settings" in page
    assert max(robust, key=robust.get) == CLAIMED
    assert max(window, key=window.get) == "adversarial"


def test_claim_c2():
    page, first = words(RESULTS), words("README.md")
    robust, window = claim("C2"), claim("C2 window")
    assert f"higher by {interval(robust, 3)}, more than the 0.01 that was asked for" in page
    assert f"not told apart ({interval(window, 3)})" in page
    assert f"over settings rises by {interval(robust, 3)}" in first
    assert f"not told to widen, {interval(window, 3)}." in first
    assert robust["rerun_low"] > 0.01 and window["low"] < 0 < window["high"]
    assert robust["verdict"] == window["verdict"] == "inconclusive: robustness yes, window open"
    keys = {"target_domain": "mean", "plane": "forget and general", "measure": "window"}
    two = of_study("table11_claim", **keys)
    assert f"is wider too, by {interval(two, 3)}." in page and two["low"] > 0.01


def test_what_guidelines_cost():
    page = words(RESULTS)
    assert f"lies {interval(claim('C4c'))} nats farther" in page
    others = [claim(name)["value"] for name in ("C4a", "C4b", "C4d")]
    assert f"lose {span(others)}, and are not told apart" in page
    measuring = [claim(name) for name in ("C4a", "C4b", "C4d")]
    assert max(row["low"] for row in measuring) < min(row["high"] for row in measuring)
    assert [row["verdict"] for row in measuring] == ["supported", "supported", "inconclusive"]
    nothing = of_study(
        "table10_ranking", model="do nothing", target_domain="arxiv", measure="distance"
    )
    assert claim("C4c")["low"] > nothing["high"]
    harmless = []
    for method in (CLAIMED, "ascent_kl_in_distribution"):
        keys = {"guideline": "usual rate, one epoch, nothing measured", "method": method}
        harmless.append(of_study("table11_regret", **keys))
    assert all(row["low"] < 0 < row["high"] for row in harmless)
    assert f"choice: {interval(harmless[0])} and {interval(harmless[1])}." in page
    first = words("README.md")
    assert f"it ends {interval(claim('C4a'), 3)} nats farther" in first
    assert f"unmeasured, ends {interval(claim('C4c'))} farther" in first


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
        row = of_study("table13_differences", split=split, **keys)
        numbers = {name: np.exp(row[name]) for name in ("value", "low", "high")}
        times.append(interval(numbers, 1))
    said = f"is {times[0]} times, general perplexity {times[1]} times"
    assert said in words(RESULTS)


def test_which_defects_change_forgetting_by_more_than_a_tenth():
    verdicts = {number: claim(f"F4.{number}")["verdict"] for number in "123457"}
    by_verdict = {"1": "supported", "4": "inconclusive", "7": "inconclusive"}
    assert verdicts == dict.fromkeys("123457", "not supported") | by_verdict
    page = words(RESULTS)
    twice = claim("F4.4")
    assert f"harder by {interval(twice)} nats" in page
    assert twice["low"] > 0.0953 > twice["rerun_low"]
    assert f"change it by {interval(claim('F4.7'))}" in page


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
