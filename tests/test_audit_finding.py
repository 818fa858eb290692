"""The finding of notebook 20: each number in it is that of the committed table."""

import pytest
from committed import interval, of_study, study, words

from unlearn_utils.core.methods import METHODS
from unlearn_utils.findings import metrics_audited

AUDIT = "notebooks/20_audit.ipynb"
DOMAINS = ("arxiv", "books", "github")
OTHERS = ("do nothing", "another retrained model")
LIKE, LIRA = "share of documents like retrained", "AUC of U-LiRA, by document"
KNEW = "Spearman's correlation with margin that the target had over retrained"


@pytest.fixture(scope="module")
def table():
    return study("table20_equal")


def rows(table, measure, model=None):
    """The rows of a measure: of one model, or of the methods that reach equal forgetting."""
    part = table[(table.measure == measure) & table["value"].notna()]
    if model:
        return part[part.model == model]
    return part[~part.model.isin(OTHERS)]


def ends(part):
    """The rows with the least and the largest value."""
    return [part.loc[part["value"].idxmin()], part.loc[part["value"].idxmax()]]


def test_documents_that_are_like_retrained(table):
    again = rows(table, LIKE, "another retrained model").set_index("target_domain")["value"]
    assert f"{again['arxiv']:.0%}, {again['books']:.0%} and {again['github']:.0%}" in words(AUDIT)
    shares = []
    for domain in DOMAINS:
        of_methods = rows(table, LIKE)
        least, most = ends(of_methods[of_methods.target_domain == domain])
        shares.append(f"{least['value']:.0%} to {most['value']:.0%}")
    assert f"{shares[0]}, {shares[1]} and {shares[2]}" in words(AUDIT)
    assert rows(table, LIKE).model.nunique() == 6


def test_models_are_told_from_retrained_ones(table):
    for part in (rows(table, LIRA), rows(table, LIRA, "another retrained model")):
        least, most = ends(part)
        assert f"{interval(least)} to {interval(most)}" in words(AUDIT)


def test_what_was_memorised_most_stays_most(table):
    least, most = ends(rows(table, KNEW))
    assert f"target had is {least['value']:.2f} to {most['value']:.2f}" in words(AUDIT)


def test_single_documents_at_equal_forgetting(table):
    area = "AUC of the log-probability, by document"
    methods, again = (ends(rows(table, area, model)) for model in (None, OTHERS[1]))
    told = [f"{row['value']:.2f}" for row in (*methods, *again)]
    assert "{} to {} beside {} to {}".format(*told) in words(AUDIT)
    assert methods[1]["value"] < again[0]["value"]


# ---------------------------------------------------------------- what stands beside the tables

METHOD_AREAS = ("AUC of the margin, by document", "AUC of U-LiRA, by document")


def told(rows):
    """The least and the largest value of rows, as they stand in prose."""
    return f"{rows['value'].min():.2f} to {rows['value'].max():.2f}"


def of_methods(rows):
    return rows[~rows.model.isin(OTHERS)]


def of_model(rows, model):
    return rows[rows.model == model]


@pytest.fixture(scope="module")
def at_step():
    """The audit at the step nearest to retraining, of the forget sets."""
    found = study("table20_audit")
    return found[found.split == "forget"]


def test_every_method_is_found_out_at_the_step_nearest_to_retraining(at_step):
    areas = at_step[at_step.measure.isin(METHOD_AREAS)]
    least = of_methods(areas)["value"].min()
    again = told(of_model(areas, OTHERS[1]))
    said = f"both AUCs are {least:.2f} or more for all of them, and {again} for another"
    assert said in words(AUDIT)


def test_retain_text_at_that_step():
    found = study("table20_audit")
    areas = found[(found.split == "retain") & (found.measure == METHOD_AREAS[0])]
    ours, again, before = (
        told(part)
        for part in (of_methods(areas), of_model(areas, OTHERS[1]), of_model(areas, OTHERS[0]))
    )
    said = f"methods are at {ours} and another retrained model at {again}; the target was at "
    assert f"{said}{before}" in words(AUDIT)


def test_documents_at_that_step(at_step):
    shares = at_step[at_step.measure == "share of documents remembered"]
    assert f"{of_methods(shares)['value'].min():.0%} or more of a domain's" in words(AUDIT)
    assert 0.05 < of_model(shares, OTHERS[1])["value"].min() < 0.11
    documents = of_methods(study("table20_documents"))
    kept = documents.told == "remembered"
    apart = documents[~kept]
    assert len(apart) == 1 and set(apart.target_domain) == {"github"}
    features = ["difficulty", "shared"]
    for _, part in documents.groupby("target_domain"):
        by_document = part.groupby("id").agg(
            {"deviations": "mean", **dict.fromkeys(features, "first")}
        )
        ordered = by_document.sort_values("deviations")
        most, least = ordered.tail(3).mean(), ordered.head(3).mean()
        assert most.difficulty > least.difficulty and most.shared < least.shared


def test_what_goes_with_what_is_left_at_that_step():
    causes = study("table20_causes")
    causes = of_methods(causes[causes.target_domain == "mean"])
    knew, hard, shared = (
        told(causes[causes.measure.str.startswith(measure)])
        for measure in ("margin", "loss", "share")
    )
    assert f"a correlation of {knew}" in words(AUDIT)
    assert f"({hard}), those that share text with what is retained less ({shared})" in words(AUDIT)


def test_within_one_model(at_step):
    alone = of_methods(at_step[at_step.measure == "AUC of the margin, forget against unseen"])
    known = at_step[at_step.measure.str.startswith(("AUC over reference", "AUC of RMIA"))]
    least = of_methods(known)["value"].min()
    assert f"with an AUC of {least:.2f} or more. By the margin alone" in words(AUDIT)
    assert f"without them, it is {told(alone)}:" in words(AUDIT)


def test_what_chance_alone_does():
    pooled = study("table20_pool")
    pooled = pooled[pooled.split == "forget"]

    def some(measure, models, rows):
        part = pooled[pooled.measure.str.startswith(measure) & (pooled.models == models)]
        values = rows(part)["value"]
        return values.min(), values.max()

    def again(part):
        return of_model(part, OTHERS[1])

    overlap = [
        some("KLoM, 95th", 6, again),
        some("KLoM, 95th", 6, of_methods),
        some("KLoM, 95th", 12, again),
        some("KLoM, 95th", 12, lambda part: of_model(part, OTHERS[0])),
    ]
    one, two, three, four = (f"{low:.1f} to {high:.1f}" for low, high in overlap)
    assert f"retrained model is at {one} and the methods are at {two}" in words(AUDIT)
    assert f"a retrained model is at {three}, and the targets are at {four}" in words(AUDIT)
    ceilings = pooled[pooled.measure.str.startswith("KLoM, 95th")].ceiling
    assert f"where {ceilings.max():.1f} is the most" in words(AUDIT)
    part = of_methods(pooled[pooled.measure.str.startswith("epsilon") & (pooled.models == 6)])
    assert (part.ceiling - part["value"]).max() < 0.0151
    low, high = some("epsilon", 6, again)
    assert f"Retrained models are at {low:.2f} to {high:.2f} with six" in words(AUDIT)


def test_faithfulness():
    table = study("table20_faithfulness")
    pool = table[table.axis == "pool"]
    extraction = pool[pool.measure == "extraction strength"].set_index("of")["value"]
    assert f"extraction strength ({extraction['forget set'].min():.2f} or more)" in words(AUDIT)
    guess = f"{extraction['document'].min():.2f} to {extraction['document'].max():.2f}"
    assert f"little better than a guess ({guess})" in words(AUDIT)
    others = pool[pool.measure != "extraction strength"]
    assert others["value"].min() > 0.995
    once = table[(table.axis == "exposures") & (table.setting == 1)].set_index("measure")["value"]
    assert once[["loss", "zlib"]].min() > 0.995
    plain = once[once.index.str.fullmatch(r"Min-\d+%")]
    curved = once[once.index.str.fullmatch(r"Min-\d+%\+\+")]
    said = (
        f"Min-K% in {plain.min():.2f} to {plain.max():.2f} of the pairs, accuracy in "
        f"{once['accuracy']:.2f}, Min-K%++ in {curved.min():.2f} to {curved.max():.2f}, and "
        f"extraction strength in {once['extraction strength']:.2f}"
    )
    assert said in words(AUDIT)


def tau(measure, other):
    return of_study("table20_agreement", target_domain="mean", measure=measure, other=other)


def test_which_metrics_agree():
    distance, deviations = "distance to retraining", "deviations from the pool, mean of documents"
    zlib, loss = (tau(f"AUC {name}, from 0.5", distance) for name in ("zlib", "loss"))
    assert f"tau {interval(zlib)} for zlib" in words(AUDIT)
    assert f"{interval(zlib)} and {interval(loss)}. With the deviations" in words(AUDIT)
    perplexity = "forget perplexity beside the target's on unseen text"
    assert words(AUDIT).count(interval(tau(perplexity, deviations))) == 2
    with_truth = tau("forget perplexity beside the retrained model's", deviations)
    assert with_truth["value"] == tau(perplexity, deviations)["value"]
    assert tau(perplexity, "forget perplexity beside the retrained model's")["value"] == 1
    general = tau("general perplexity over the target's", distance)
    assert f"in common with that distance ({interval(general)})" in words(AUDIT)
    assert f"has little ({interval(tau('extraction strength', distance))})" in words(AUDIT)
    table = study("table20_agreement")
    without = table[(table.target_domain == "mean") & (table.other == distance)]
    without = without[~without.measure.isin([distance, *metrics_audited.NEEDS_RETRAINED])]
    first, second = without.sort_values("value", ascending=False).measure[:2]
    assert (first, second) == ("AUC zlib, from 0.5", "AUC loss, from 0.5")


def test_robustness_of_metrics():
    every = study("table20_robustness")

    def share(measure, method="mean", source="forget", setting=0.0003):
        part = every[(every.measure == measure) & (every.method == method)]
        return part[(part.source == source) & (part.setting == setting)]["value"].item()

    shares = {
        name: share(name)
        for name in ("forget perplexity", "accuracy", "Min-40%", "extraction strength")
    }
    three = [shares[name] for name in ("forget perplexity", "accuracy", "Min-40%")]
    said = "a robustness of {:.2f}, accuracy {:.2f} and Min-40% {:.2f}".format(*three)
    assert said in words(AUDIT)
    assert f"is {min(three):.0%} to {max(three):.0%} of what they change" in words(AUDIT)
    assert f"looks no more robust ({shares['extraction strength']:.2f})" in words(AUDIT)
    for name in ("forget perplexity", "accuracy", "Min-40%"):
        assert share(name, source="-", setting=4) > 0.97
    methods = {name: share("Min-40%", name) for name in METHODS}
    most = methods.pop("random_label")
    others = f"{min(methods.values()):.2f} to {max(methods.values()):.2f}"
    assert f"random labels have {most:.2f} and the six others {others}" in words(AUDIT)
