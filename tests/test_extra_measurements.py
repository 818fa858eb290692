"""A further look at stored models, and the reports that put models side by side.

They are compared with the models themselves, or with tables by hand.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from unlearn_utils.core import membership, metrics
from unlearn_utils.engine import attacks, evaluation, models
from unlearn_utils.findings import reports
from unlearn_utils.profiles import DOMAINS, PROFILES, Corpus, Pretraining, Shape, Unlearning
from unlearn_utils.study import extra_measurements, pool, selection, study_documents, unlearning

TINY = replace(
    PROFILES["smoke"],
    name="tiny",
    corpus=Corpus(pairs=4, retain=6, general=6, evaluation=4, measured=4),
    shape=Shape(vocabulary=400, hidden=16, intermediate=32, layers=2, heads=2, context=48),
    pretraining=Pretraining(epochs=3, batch=4),
    unlearning=Unlearning(learning_rate=2e-3, batch=1, epochs=2),
    domains=("arxiv", "github"),
    noise_domain="github",
    seeds=2,
    workers=1,
    resamples=20,
)
METHOD, OTHER = "gradient_ascent", "ascent_kl_general"
KEYS = ["model", "method", "target_domain", "split"]
COMPARED = ("forget", "approximate", "evaluation")  # splits whose divergence is taken


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of one method, on two domains, in a store of their own.

    Prompts are short, as its models read 48 tokens.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARN_STORE", str(tmp_path_factory.mktemp("extra") / "store"))
        patch.delenv("UNLEARN_FRESH", raising=False)
        patch.setattr(models, "half_precision", lambda: False)
        patch.setattr(extra_measurements, "PROMPT", 20)
        patch.setattr(extra_measurements, "LENGTH", 10)
        study_documents.data.cache_clear()
        study_documents.fingerprint.cache_clear()
        study_documents.tokenizer.cache_clear()
        yield unlearning.unlearn_all(TINY, [METHOD])


@pytest.fixture(scope="module")
def rows(runs):
    return reports.report_rows(TINY, runs)


def read(artifact):
    return pd.read_parquet(artifact.folder() / "rows.parquet")


def forget_documents(domain):
    return study_documents.tokenized(TINY, [(domain, "forget")])


def log_probabilities(artifact, ids):
    """Return those at each predicted position, (n, V), from the full logits, in float64."""
    with torch.no_grad():
        logits = models.load(artifact.folder())(torch.tensor([ids])).logits
    return logits[0, :-1].double().log_softmax(-1)


# ----------------------------------------------------------------------------------- continuations


def test_continuations_and_their_scores_are_those_of_the_tokens(runs):
    target = pool.target(TINY)
    documents = forget_documents("arxiv")
    found = read(extra_measurements.greedy_continuations(TINY, target, "arxiv"))
    for column in ("id", "rank", "family"):
        assert found[column].tolist() == documents[column].tolist()
    assert set(found.target_domain) == {"arxiv"}

    tokenizer = study_documents.tokenizer(TINY)
    model = models.load(target.path)
    for row, ids in zip(found.itertuples(), documents.ids, strict=True):
        prompt, true = ids[:20], ids[20:30]
        (written,) = evaluation.greedy_continuations(model, [prompt], 10, tokenizer.pad_token_id)
        assert row.prompt == tokenizer.decode(prompt[1:])
        assert row.document == tokenizer.decode(true)
        assert row.prompt + row.document == tokenizer.decode(ids[1:30])
        assert row.text == tokenizer.decode(written)
        assert row.rouge_l == metrics.rouge_l(written, true)
        assert row.exact_prefix == metrics.exact_prefix(written, true)


def test_scores_of_continuations_by_hand(runs, monkeypatch, tmp_path):
    """A model writes the truth, nothing of it, its first three tokens, and all but the first."""
    true = [ids[20:30] for ids in forget_documents("github").ids]
    written = [true[0], [1] * 10, true[2][:3] + [1] * 7, [1] + true[3][1:]]
    monkeypatch.setattr(evaluation, "greedy_continuations", lambda *args: written)
    extra_measurements._make_greedy_continuations(TINY, pool.target(TINY), "github", tmp_path)
    found = pd.read_parquet(tmp_path / "rows.parquet")
    assert found.exact_prefix.tolist() == [10, 0, 3, 0]
    assert found.rouge_l.tolist() == pytest.approx([1, 0, 0.3, 0.9])


def test_documents_that_are_too_short_are_not_continued(runs, monkeypatch, tmp_path):
    longer = replace(TINY, shape=replace(TINY.shape, context=1000))
    documents = study_documents.tokenized(longer, [("arxiv", "forget")])
    lengths = documents.ids.map(len)
    shortest, second, *_ = sorted(lengths)
    assert shortest < second
    monkeypatch.setattr(extra_measurements, "PROMPT", second - 4)
    monkeypatch.setattr(extra_measurements, "LENGTH", 4)
    extra_measurements._make_greedy_continuations(longer, pool.target(TINY), "arxiv", tmp_path)
    found = pd.read_parquet(tmp_path / "rows.parquet")
    assert found.id.tolist() == documents.id[lengths >= second].tolist()
    assert len(found) == 3


def test_keys_of_looks_follow_model_domain_and_lengths(runs, monkeypatch):
    target = pool.target(TINY)
    other = pool.retrained(TINY, "arxiv")
    looks = []
    for model in (target, other):
        for domain in TINY.domains:
            looks.append(extra_measurements.greedy_continuations(TINY, model, domain))
    for model, retrained in ((target, other), (other, target), (other, other)):
        looks.append(extra_measurements.kl_from_retrained(TINY, model, retrained, "arxiv"))
    monkeypatch.setattr(extra_measurements, "LENGTH", 11)
    looks.append(extra_measurements.greedy_continuations(TINY, target, "arxiv"))
    assert len({look.path for look in looks}) == len(looks) == 8


# ------------------------------------------------------------------------------------- divergences


def test_divergences_are_those_of_the_full_logits(runs):
    """KL from the retrained model to the other, a mean over predicted tokens.

    It is taken on the report half, without retain text.
    """
    model = runs.entry[0]
    retrained = pool.retrained(TINY, "arxiv")
    found = read(extra_measurements.kl_from_retrained(TINY, model, retrained, "arxiv"))
    assert found.groupby("split").size().to_dict() == dict.fromkeys(COMPARED, 2)
    assert set(found.target_domain) == {"arxiv"}
    assert set(found["rank"] % 2) == {1}
    assert not found.isna().any(axis=None)

    parts = study_documents.measured_parts(["arxiv"])
    documents = study_documents.tokenized(TINY, parts).set_index("id")
    for row in found.itertuples():
        true = log_probabilities(retrained, documents.ids[row.id])
        own = log_probabilities(model, documents.ids[row.id])
        kl = (true.exp() * (true - own)).sum(1).mean().item()
        assert row.kl == pytest.approx(kl, rel=1e-3, abs=1e-6)
        assert row.kl > 1e-5


def test_a_model_does_not_diverge_from_itself(runs):
    model = pool.retrained(TINY, "arxiv")
    found = read(extra_measurements.kl_from_retrained(TINY, model, model, "arxiv"))
    assert found.kl.tolist() == pytest.approx([0] * 6, abs=1e-6)


def test_mean_divergences_of_every_model(runs):
    found = reports.divergences(TINY, runs, 0)
    assert set(found.measure) == {"KL"}
    assert (found.low <= found.value).all()
    assert (found.value <= found.high).all()

    expected = []
    for model, method, domain in (
        ("target", "", "arxiv"),
        ("target", "", "github"),
        ("unlearned", METHOD, "arxiv"),
        ("unlearned", METHOD, "github"),
        ("retrained again", "", "github"),
    ):
        expected += [[model, method, domain, split] for split in COMPARED]
    assert found[KEYS].values.tolist() == expected


@pytest.mark.parametrize(
    ("name", "domain"),
    [("target", "github"), ("unlearned", "arxiv"), ("retrained again", "github")],
)
def test_a_mean_divergence_is_that_of_its_model(runs, name, domain):
    models = {
        "target": pool.target(TINY),
        "unlearned": runs.entry[0],
        "retrained again": pool.noise_floor(TINY),
    }
    truth = pool.retrained(TINY, domain)
    rows = read(extra_measurements.kl_from_retrained(TINY, models[name], truth, domain))
    found = reports.divergences(TINY, runs, 0)
    part = found[(found.model == name) & (found.target_domain == domain)].set_index("split")
    assert part["value"].to_dict() == pytest.approx(rows.groupby("split").kl.mean().to_dict())


def test_rows_of_several_looks(runs):
    looks = []
    for domain in TINY.domains:
        looks.append(extra_measurements.greedy_continuations(TINY, pool.target(TINY), domain))
    found = extra_measurements.rows_of(looks)
    assert found.target_domain.tolist() == ["arxiv"] * 4 + ["github"] * 4
    assert found.index.tolist() == list(range(8))


# ----------------------------------------------------------------------------------------- reports


def document(name, **columns):
    known = {"target_domain": "d", "domain": "d", "split": "forget", "family": f"f{name}"}
    known |= {"rank": 1, "id": name, "tokens": 10, "nll": 0.0, "correct": 0}
    return known | {"extraction": 0.0, "min_k_20": 0.0, "zlib": 0.0} | columns


def test_means_over_seeds_by_hand():
    first = {"nll": 1.0, "correct": 2, "min_k_20": -1.0, "extraction": 0.5, "zlib": -4.0}
    second = {"nll": 4.0, "correct": 4, "min_k_20": -3.0, "zlib": -8.0}
    third = {"nll": 7.0, "correct": 9, "min_k_20": -5.0, "extraction": 1.0, "zlib": 0.0}
    table = [
        document("b", rule="practitioner", **first),
        document("a", rule="practitioner", nll=5.0),
        document("b", rule="oracle", nll=9.0),
        document("b", rule="practitioner", **second),
        document("b", rule="practitioner", **third),
    ]
    table = pd.DataFrame(table)
    for column in membership.columns():
        if column not in table:
            table[column] = 0.0
    found = reports.over_seeds(table, ["rule"])
    assert found[["rule", "id", "seeds", "nll"]].values.tolist() == [
        ["practitioner", "b", 3, 4.0],
        ["practitioner", "a", 1, 5.0],
        ["oracle", "b", 1, 9.0],
    ]
    measured = ["tokens", "correct", "min_k_20", "extraction", "zlib"]
    assert found.iloc[0][measured].tolist() == [10, 5, -3, 0.5, -4]
    assert found.family.tolist() == ["fb", "fa", "fb"]


def test_a_score_that_stored_rows_lack_is_an_error_and_not_dropped():
    with pytest.raises(KeyError, match="min_k_plus_20"):
        reports.over_seeds(pd.DataFrame([document("a", rule="practitioner", zlib=0.0)]), ["rule"])


def test_report_rows_have_the_models_in_order_on_the_same_documents(runs, rows):
    names = ["target", "unlearned", "unlearned (oracle)", "retrained", "retrained again"]
    assert rows.model.unique().tolist() == names
    assert set(rows["rank"] % 2) == {1}
    assert "rule" not in rows
    sizes = rows.groupby("target_domain").model.value_counts()
    assert sizes["github"].to_dict() == dict.fromkeys(names, 8)
    assert sizes["arxiv"].to_dict() == dict.fromkeys(names[:-1], 8)
    for domain in TINY.domains:
        here = rows[rows.target_domain == domain]
        orders = {tuple(part.id) for _, part in here.groupby("model")}
        assert len(orders) == 1
    measured = ["tokens", "nll", "correct", "extraction", "min_k_20", "min_k_plus_40", "zlib"]
    assert not rows[measured].isna().any(axis=None)


def test_report_rows_say_whose_they_are_and_of_how_many_seeds(rows):
    for model, part in rows.groupby("model"):
        assert set(part.method) == {METHOD if "unlearned" in model else ""}
        assert set(part.seeds) == {2 if model == "unlearned" else 1}


def test_report_rows_are_those_of_their_models(runs, rows):
    """The unlearned model's are means of two seeds; the oracle's are the first seed's.

    The others' are the baselines'.
    """
    seeds = []
    for artifact in runs[runs.target_domain == "github"].entry:
        seeds.append(pd.read_parquet(artifact.folder() / "report.parquet").set_index("rule"))
    own = rows[rows.target_domain == "github"].set_index("model")

    measured = ["nll", "min_k_40"]
    by_seed = [part.loc["practitioner", measured].to_numpy() for part in seeds]
    assert own.loc["unlearned", measured].to_numpy() == pytest.approx(np.mean(by_seed, axis=0))
    assert by_seed[0].sum() != by_seed[1].sum()
    oracle = seeds[0].loc["oracle"]
    assert own.nll["unlearned (oracle)"].tolist() == oracle.nll.tolist()

    baselines = {"target": pool.target(TINY), "retrained again": pool.noise_floor(TINY)}
    for name, model in baselines.items():
        known = read(pool.measurements(TINY, model))
        known = known[known.domain.isin(["github", "general"])]
        assert own.nll[name].tolist() == selection.half(known, selection.REPORT).nll.tolist()


def test_distances_by_hand(rows):
    found = reports.distances(TINY, rows, 0)
    assert {*KEYS, "measure", "value", "low", "high", "n"} <= set(found.columns)
    assert len(found) == (3 * 2 + 1) * 4
    assert "retrained" not in set(found.model)
    for row in found.itertuples():
        here = rows[(rows.target_domain == row.target_domain) & (rows.split == row.split)]
        ours = here[here.model == row.model]
        truth = here[here.model == "retrained"]
        expected = ours.nll.sum() / ours.tokens.sum() - truth.nll.sum() / truth.tokens.sum()
        assert row.value == pytest.approx(expected)


def test_the_retrained_model_is_at_no_distance_from_itself(rows):
    truth = rows[rows.model == "retrained"]
    both = pd.concat([truth, truth.assign(model="retrained again")])
    found = reports.distances(TINY, both, 0)
    assert len(found) == 8
    assert (found[["value", "low", "high"]] == 0).all(axis=None)
    same = reports.quality(TINY, both, 0)
    assert same.target_domain.tolist() == ["arxiv", "github"]
    assert set(same.model) == {"retrained again"}
    assert set(same.measure) == {"KS distance"}
    assert (same[["value", "low", "high"]] == 0).all(axis=None)
    assert (same[["ks_p", "wilcoxon_p"]] == 1).all(axis=None)


def test_forget_quality_by_hand():
    """Mean NLL 1 to 4 against 3.5 to 6.5: the distributions are furthest apart, 3/4, at 3.

    Only the forget set counts.
    """
    ours, theirs = [1, 2, 3, 4], [3.5, 4.5, 5.5, 6.5]
    sides = {"unlearned": ours, "retrained": theirs, "target": theirs[::-1]}
    table = []
    for model, side in sides.items():
        for i, (mean, tokens) in enumerate(zip(side, (2, 4, 8, 1), strict=True)):
            row = document(i, model=model, method="", nll=mean * tokens, tokens=tokens)
            table.append(row)
        other = document(9, model=model, method="", split="approximate", nll=900.0 * len(model))
        table.append(other)
    found = reports.quality(TINY, pd.DataFrame(table), 0).set_index("model")
    assert found.value.to_dict() == {"unlearned": 0.75, "target": 0}
    assert set(found.n) == {4}
    expected = metrics.forget_quality(ours, theirs)
    assert found.ks_p["unlearned"] == expected.ks_p
    assert found.wilcoxon_p["unlearned"] == expected.wilcoxon_p
    # four differences of one sign: 2 / 2^4
    assert found.wilcoxon_p["unlearned"] == pytest.approx(1 / 8)


def test_ranks_by_hand():
    """The distance is a mean |log ratio| over two splits: a (1 + 0.5) / 2, b and c (0.1 + 0) / 2.

    It is the same for every document, so that a resample changes nothing. b and c come from either
    side and cannot be told apart; two methods are closer than a.
    """
    excess = {  # over the retrained model, of 10 tokens
        "a": {"forget": 10, "retain": -5},
        "b": {"forget": 1, "retain": 0},
        "c": {"forget": -1, "retain": 0},
    }
    table = []
    for split in ("forget", "retain"):
        for i in range(3):
            table.append(document(i, split=split, model="retrained", method="", nll=20.0 + i))
            for method, more in excess.items():
                nll = 20.0 + i + more[split]
                row = document(i, split=split, model="unlearned", method=method, nll=nll)
                table.append(row)
    shuffled = pd.DataFrame(table).sample(frac=1, random_state=0)
    found = reports.ranking(TINY, shuffled, 0).set_index("method")
    assert found.index[2] == "a"
    assert found["value"].to_dict() == pytest.approx({"a": 0.75, "b": 0.05, "c": 0.05})
    assert found["rank"].to_dict() == {"a": 3, "b": 1, "c": 1}
    assert set(found.n) == {3}
    for bound in ("low", "high"):
        assert found[bound].tolist() == pytest.approx(found["value"].tolist())


def test_continuations_of_the_three_models(runs):
    found = reports.continuations(TINY, runs)
    expected = {}
    for domain in TINY.domains:
        for model in ("target", "unlearned", "retrained"):
            expected[model, domain] = 4
    sizes = found.groupby(["model", "target_domain"], sort=False).size()
    assert sizes.to_dict() == expected
    here = found[found.target_domain == "github"]
    models = {"unlearned": runs.entry[1], "retrained": pool.retrained(TINY, "github")}
    for name, model in models.items():
        known = read(extra_measurements.greedy_continuations(TINY, model, "github"))
        part = here[here.model == name]
        assert part.text.tolist() == known.text.tolist()
        assert part.rouge_l.tolist() == known.rouge_l.tolist()


def test_continuations_of_every_method(runs):
    """Of two methods on one domain both are kept, each with its own.

    Those of the target and of the retrained model come once.
    """
    # stands for another method
    other = unlearning.unlearning_run(TINY, "arxiv", METHOD, learning_rate=1e-2, epochs=1)
    both = pd.DataFrame({"method": [METHOD, OTHER], "entry": [runs.entry[0], other]})
    both = both.assign(target_domain="arxiv", seed=0)
    found = reports.continuations(TINY, both)
    sizes = found.groupby("model").size().to_dict()
    assert sizes == {"target": 4, "unlearned": 8, "retrained": 4}

    texts = []
    for artifact in both.entry:
        known = read(extra_measurements.greedy_continuations(TINY, artifact, "arxiv"))
        texts.append(known.text.tolist())
    unlearned = found[found.model == "unlearned"]
    assert unlearned.method.tolist() == [METHOD] * 4 + [OTHER] * 4
    assert unlearned.text.tolist() == texts[0] + texts[1]
    assert texts[0] != texts[1]


def test_the_blind_attack_is_on_the_report_half_of_each_domain(runs):
    """The AUC is that of the texts of odd pairs, split by pairs."""
    three = replace(TINY, domains=DOMAINS)
    found = reports.blind(three, 0)
    assert found.target_domain.tolist() == list(DOMAINS)
    assert set(found.model) == {"no model (blind)"}
    assert set(found.measure) == {"AUC"}
    for row in found.itertuples():
        splits = study_documents.data(three)[row.target_domain]
        forget = selection.half(splits["forget"].to_pandas(), selection.REPORT)
        other = selection.half(splits["approximate"].to_pandas(), selection.REPORT)
        assert row.n == len(forget) == 2
        texts = list(forget.text), list(other.text)
        scores = attacks.blind_scores(*texts, list(forget["rank"]), seed=0)
        assert row.value == membership.auc(*scores)
        assert 0 <= row.low <= row.value <= row.high <= 1
    pd.testing.assert_frame_equal(found, reports.blind(three, 0))


def test_rows_of_a_report_are_the_half_that_no_rule_saw(runs, rows):
    seen = unlearning.rows_of_runs(runs, "trajectory")
    assert set(seen["rank"] % 2) == {selection.SELECTION}
    assert set(seen.id).isdisjoint(rows.id)
