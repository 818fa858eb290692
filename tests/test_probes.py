"""A further look at stored models, and the reports that put them side by side: against the models themselves, or by hand."""

import math
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


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of one method, on two domains, in a store of their own; short prompts, as its models read 48 tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARN_STORE", str(tmp_path_factory.mktemp("probes") / "store"))
        patch.delenv("UNLEARN_FRESH", raising=False)
        patch.setattr(models, "half_precision", lambda: False)
        patch.setattr(extra_measurements, "PROMPT", 20)
        patch.setattr(extra_measurements, "LENGTH", 10)
        for function in (study_documents.data, study_documents.fingerprint, study_documents.tokenizer):
            function.cache_clear()
        yield unlearning.unlearn_all(TINY, [METHOD])


@pytest.fixture(scope="module")
def rows(runs):
    return reports.report_rows(TINY, runs)


def read(step):
    return pd.read_parquet(step.folder() / "rows.parquet")


def log_p(step, ids):
    """Log-probabilities (n, V) at each predicted position, from the full logits, in float64."""
    with torch.no_grad():
        return models.load(step.folder())(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)


# ---------------------------------------------------------------------------------------------- continuations


def test_continuations_and_their_scores_are_those_of_the_tokens(runs):
    step, documents = pool.target(TINY), study_documents.tokenized(TINY, [("arxiv", "forget")])
    found, tok, model = (
        read(extra_measurements.greedy_continuations(TINY, step, "arxiv")),
        study_documents.tokenizer(TINY),
        models.load(step.path),
    )
    assert found.id.tolist() == documents.id.tolist() and set(found.target_domain) == {"arxiv"}
    assert found["rank"].tolist() == documents["rank"].tolist() and found.family.tolist() == documents.family.tolist()
    for row, ids in zip(found.itertuples(), documents.ids, strict=True):
        (follows,) = evaluation.greedy_continuations(model, [ids[:20]], 10, tok.pad_token_id)
        assert (row.prompt, row.document, row.text) == tuple(map(tok.decode, (ids[1:20], ids[20:30], follows)))
        assert row.prompt + row.document == tok.decode(ids[1:30])
        assert row.rouge_l == metrics.rouge_l(follows, ids[20:30]) and row.exact_prefix == metrics.exact_prefix(follows, ids[20:30])


def test_scores_of_continuations_by_hand(runs, monkeypatch, tmp_path):
    """A model that writes the truth, then nothing of it, then its first three tokens, then all but the first."""
    truth = [ids[20:30] for ids in study_documents.tokenized(TINY, [("github", "forget")]).ids]
    written = [truth[0], [1] * 10, truth[2][:3] + [1] * 7, [1] + truth[3][1:]]
    monkeypatch.setattr(evaluation, "greedy_continuations", lambda *args: written)
    extra_measurements._make_greedy_continuations(TINY, pool.target(TINY), "github", tmp_path)
    found = pd.read_parquet(tmp_path / "rows.parquet")
    assert found.exact_prefix.tolist() == [10, 0, 3, 0] and found.rouge_l.tolist() == pytest.approx([1, 0, 0.3, 0.9])


def test_documents_that_are_too_short_are_not_continued(runs, monkeypatch, tmp_path):
    whole = replace(TINY, shape=replace(TINY.shape, context=1000))
    documents = study_documents.tokenized(whole, [("arxiv", "forget")])
    lengths = sorted(map(len, documents.ids))
    assert lengths[0] < lengths[1]
    monkeypatch.setattr(extra_measurements, "PROMPT", lengths[1] - 4)
    monkeypatch.setattr(extra_measurements, "LENGTH", 4)
    extra_measurements._make_greedy_continuations(whole, pool.target(TINY), "arxiv", tmp_path)
    found = pd.read_parquet(tmp_path / "rows.parquet")
    assert found.id.tolist() == documents.id[documents.ids.map(len) >= lengths[1]].tolist() and len(found) == 3


def test_keys_of_looks_follow_model_domain_and_lengths(runs, monkeypatch):
    target, other = pool.target(TINY), pool.retrained(TINY, "arxiv")
    looks = [extra_measurements.greedy_continuations(TINY, m, d).path for m in (target, other) for d in TINY.domains]
    looks += [
        extra_measurements.kl_from_retrained(TINY, *pair, "arxiv").path for pair in ((target, other), (other, target), (other, other))
    ]
    monkeypatch.setattr(extra_measurements, "LENGTH", 11)
    looks.append(extra_measurements.greedy_continuations(TINY, target, "arxiv").path)
    assert len(set(looks)) == len(looks) == 8


# ---------------------------------------------------------------------------------------------- divergences


def test_divergences_are_those_of_the_full_logits(runs):
    """KL from the retrained model to the other, a mean over predicted tokens, on the report half without retain text."""
    model, retrained = runs.entry[0], pool.retrained(TINY, "arxiv")
    found = read(extra_measurements.kl_from_retrained(TINY, model, retrained, "arxiv"))
    assert found.groupby("split").size().to_dict() == {"forget": 2, "approximate": 2, "evaluation": 2} and set(found.target_domain) == {"arxiv"}
    documents = study_documents.tokenized(TINY, study_documents.measured_parts(["arxiv"])).set_index("id")
    assert set(found["rank"] % 2) == {1} and not found.isna().any(axis=None)
    for row in found.itertuples():
        p, q = (log_p(step, documents.ids[row.id]) for step in (retrained, model))
        assert row.kl == pytest.approx((p.exp() * (p - q)).sum(1).mean().item(), rel=1e-3, abs=1e-6) and row.kl > 1e-5


def test_a_model_does_not_diverge_from_itself(runs):
    step = pool.retrained(TINY, "arxiv")
    assert read(extra_measurements.kl_from_retrained(TINY, step, step, "arxiv")).kl.tolist() == pytest.approx([0] * 6, abs=1e-6)


def test_mean_divergences_of_every_model(runs):
    found = reports.divergences(TINY, runs, 0)
    compared = [("target", "", d) for d in TINY.domains] + [("unlearned", METHOD, d) for d in TINY.domains]
    compared.append(("retrained again", "", "github"))
    assert found[KEYS].values.tolist() == [[*key, s] for key in compared for s in ("forget", "approximate", "evaluation")]
    looks = {
        ("target", "github"): (pool.target(TINY), "github"),
        ("unlearned", "arxiv"): (runs.entry[0], "arxiv"),
        ("retrained again", "github"): (pool.noise_floor(TINY), "github"),
    }
    for (name, run), (model, domain) in looks.items():
        rows = read(extra_measurements.kl_from_retrained(TINY, model, pool.retrained(TINY, domain), domain))
        part = found[(found.model == name) & (found.target_domain == run)].set_index("split")
        assert part["value"].to_dict() == pytest.approx(rows.groupby("split").kl.mean().to_dict())
    assert set(found.measure) == {"KL"} and (found.low <= found.value).all() and (found.value <= found.high).all()


def test_rows_of_several_looks(runs):
    target = pool.target(TINY)
    found = extra_measurements.rows_of([extra_measurements.greedy_continuations(TINY, target, d) for d in TINY.domains])
    assert list(dict.fromkeys(found.target_domain)) == list(TINY.domains) and found.index.tolist() == list(range(len(found)))


# ---------------------------------------------------------------------------------------------- reports


def document(name, **columns):
    known = {"target_domain": "d", "domain": "d", "split": "forget", "family": f"f{name}", "rank": 1, "id": name}
    return known | {"tokens": 10, "nll": 0.0, "correct": 0, "extraction": 0.0, "min_k_20": 0.0, "zlib": 0.0} | columns


def test_means_over_seeds_by_hand():
    table = [
        document("b", rule="practitioner", nll=1.0, correct=2, min_k_20=-1.0, extraction=0.5, zlib=-4.0),
        document("a", rule="practitioner", nll=5.0),
        document("b", rule="oracle", nll=9.0),
        document("b", rule="practitioner", nll=4.0, correct=4, min_k_20=-3.0, zlib=-8.0),
        document("b", rule="practitioner", nll=7.0, correct=9, min_k_20=-5.0, extraction=1.0, zlib=0.0),
    ]
    found = reports.over_seeds(pd.DataFrame(table), ["rule"])
    assert found[["rule", "id", "seeds", "nll"]].values.tolist() == [
        ["practitioner", "b", 3, 4.0],
        ["practitioner", "a", 1, 5.0],
        ["oracle", "b", 1, 9.0],
    ]
    assert found.iloc[0][["tokens", "correct", "min_k_20", "extraction", "zlib"]].tolist() == [10, 5, -3, 0.5, -4]
    assert found.family.tolist() == ["fb", "fa", "fb"]


def test_staged_rows_have_the_models_in_order_on_the_same_documents(runs, rows):
    names = ["target", "unlearned", "unlearned (oracle)", "retrained", "retrained again"]
    assert rows.model.unique().tolist() == names and set(rows["rank"] % 2) == {1} and "rule" not in rows
    sizes = rows.groupby(["model", "target_domain"], sort=False).size().to_dict()
    assert sizes == {(m, d): 8 for m in names for d in TINY.domains if (m, d) != ("retrained again", "arxiv")}
    for domain in TINY.domains:
        orders = {tuple(part.id) for _, part in rows[rows.target_domain == domain].groupby("model")}
        assert len(orders) == 1
    assert rows.groupby("model").method.unique().map(list).to_dict() == {m: [METHOD if "unlearned" in m else ""] for m in names}
    assert rows.groupby("model").seeds.unique().map(list).to_dict() == {m: [2 if m == "unlearned" else 1] for m in names}
    measured = ["tokens", "nll", "correct", "extraction", "min_k_20", "min_k_plus_40", "zlib"]
    assert not rows[measured].isna().any(axis=None)


def test_staged_rows_are_those_of_their_models(runs, rows):
    """The unlearned model's are means of two seeds; the oracle's the first seed's; the others' the baselines'."""
    seeds = [pd.read_parquet(step.folder() / "report.parquet") for step in runs[runs.target_domain == "github"].entry]
    own = rows[rows.target_domain == "github"].groupby("model")
    means = np.mean([part[part.rule == "practitioner"][["nll", "min_k_40"]].to_numpy() for part in seeds], axis=0)
    assert own.get_group("unlearned")[["nll", "min_k_40"]].to_numpy() == pytest.approx(means)
    assert np.ptp([part[part.rule == "practitioner"].nll.sum() for part in seeds]) > 0
    assert own.get_group("unlearned (oracle)").nll.tolist() == seeds[0][seeds[0].rule == "oracle"].nll.tolist()
    for name, step in (("target", pool.target(TINY)), ("retrained again", pool.noise_floor(TINY))):
        known = read(pool.measurements(TINY, step)).query("domain in ('github', 'general') and rank % 2 == 1")
        assert own.get_group(name).nll.tolist() == known.nll.tolist()


def test_distances_by_hand(rows):
    found = reports.distances(TINY, rows, 0)
    assert {*KEYS, "measure", "value", "low", "high", "n"} <= set(found.columns)
    assert len(found) == (3 * 2 + 1) * 4 and "retrained" not in set(found.model)
    for row in found.itertuples():
        part = rows[(rows.target_domain == row.target_domain) & (rows.split == row.split)].groupby("model")
        ours, theirs = (part.get_group(name) for name in (row.model, "retrained"))
        assert row.value == pytest.approx(ours.nll.sum() / ours.tokens.sum() - theirs.nll.sum() / theirs.tokens.sum())


def test_the_retrained_model_is_at_no_distance_from_itself(rows):
    truth = rows[rows.model == "retrained"]
    both = pd.concat([truth, truth.assign(model="retrained again")])
    found = reports.distances(TINY, both, 0)
    assert len(found) == 8 and (found[["value", "low", "high"]] == 0).all(axis=None)
    same = reports.quality(TINY, both, 0)
    assert same[["model", "target_domain", "measure"]].values.tolist() == [["retrained again", d, "KS distance"] for d in TINY.domains]
    assert (same[["value", "low", "high"]] == 0).all(axis=None) and (same[["ks_p", "wilcoxon_p"]] == 1).all(axis=None)


def test_forget_quality_by_hand():
    """Mean NLL 1 to 4 against 3.5 to 6.5: the distribution functions are furthest apart, 3/4, at 3. Only the forget set counts."""
    ours, theirs = [1, 2, 3, 4], [3.5, 4.5, 5.5, 6.5]
    sides = {"unlearned": ours, "retrained": theirs, "target": theirs[::-1]}
    table = [
        document(i, model=m, method="", nll=x * t, tokens=t)
        for m, side in sides.items()
        for i, (x, t) in enumerate(zip(side, (2, 4, 8, 1), strict=True))
    ]
    table += [document(9, model=m, method="", split="approximate", nll=900.0 * len(m)) for m in sides]
    found = reports.quality(TINY, pd.DataFrame(table), 0).set_index("model")
    assert found.value.to_dict() == {"unlearned": 0.75, "target": 0} and set(found.n) == {4}
    expected = metrics.forget_quality(ours, theirs)
    assert (found.ks_p["unlearned"], found.wilcoxon_p["unlearned"]) == (expected.ks_p, expected.wilcoxon_p)
    assert found.wilcoxon_p["unlearned"] == pytest.approx(1 / 8)  # four differences of one sign: 2 / 2^4


def test_ranks_by_hand():
    """Mean |log ratio| over two splits, the same for every document, so that a resample changes nothing: a (1 + 0.5) / 2, b and c
    (0.1 + 0) / 2, from either side. b and c cannot be told apart; two methods are closer than a."""
    excess = {"a": (10, -5), "b": (1, 0), "c": (-1, 0)}
    table = []
    for i, split in ((i, s) for s in ("forget", "retain") for i in range(3)):
        table.append(document(i, split=split, model="retrained", method="", nll=20.0 + i))
        for method, sides in excess.items():
            nll = 20.0 + i + sides[split == "retain"]
            table.append(document(i, split=split, model="unlearned", method=method, nll=nll))
    found = reports.ranking(TINY, pd.DataFrame(table).sample(frac=1, random_state=0), 0).set_index("method")
    assert found["value"].to_dict() == pytest.approx({"a": 0.75, "b": 0.05, "c": 0.05}) and found.index[2] == "a"
    assert found["rank"].to_dict() == {"a": 3, "b": 1, "c": 1} and set(found.n) == {3}
    assert found[["low", "high"]].to_numpy() == pytest.approx(np.tile(found[["value"]], 2))


def test_continuations_of_the_three_models(runs):
    found = reports.continuations(TINY, runs)
    assert found.groupby(["model", "target_domain"], sort=False).size().to_dict() == {
        (m, d): 4 for d in TINY.domains for m in ("target", "unlearned", "retrained")
    }
    for name, step in (("unlearned", runs.entry[1]), ("retrained", pool.retrained(TINY, "github"))):
        known = read(extra_measurements.greedy_continuations(TINY, step, "github"))
        part = found[(found.model == name) & (found.target_domain == "github")]
        assert part.text.tolist() == known.text.tolist() and part.rouge_l.tolist() == known.rouge_l.tolist()


def test_continuations_of_every_method(runs):
    """Of two methods on one domain both are kept, each with its own; target and retrained model once."""
    other = unlearning.unlearning_run(TINY, "arxiv", METHOD, learning_rate=1e-2, epochs=1)  # stands for another method
    both = pd.DataFrame({"method": [METHOD, OTHER], "target_domain": "arxiv", "seed": 0, "entry": [runs.entry[0], other]})
    found = reports.continuations(TINY, both)
    assert found.groupby("model").size().to_dict() == {"target": 4, "unlearned": 8, "retrained": 4}
    known = [read(extra_measurements.greedy_continuations(TINY, step, "arxiv")).text.tolist() for step in both.entry]
    assert found[found.model == "unlearned"].method.tolist() == [METHOD] * 4 + [OTHER] * 4
    assert found[found.model == "unlearned"].text.tolist() == known[0] + known[1] and known[0] != known[1]


def test_the_blind_attack_is_on_the_report_half_of_each_domain(runs):
    """The AUC is that of the texts of odd pairs, split by pairs."""
    three = replace(TINY, domains=DOMAINS)
    found = reports.blind(three, 0)
    assert found.target_domain.tolist() == list(DOMAINS) and set(found.model) == {"no model (blind)"} and set(found.measure) == {"AUC"}
    for row in found.itertuples():
        splits = [study_documents.data(three)[row.target_domain][s].to_pandas() for s in ("forget", "approximate")]
        forget, other = (s[s["rank"] % 2 == 1] for s in splits)
        assert len(forget) == 2 and row.n == 2
        assert row.value == membership.auc(*attacks.blind_scores(list(forget.text), list(other.text), list(forget["rank"]), seed=0))
        assert 0 <= row.low <= row.value <= row.high <= 1 and not math.isnan(row.value)
    pd.testing.assert_frame_equal(found, reports.blind(three, 0))


def test_halves_in_a_report_are_the_half_that_no_rule_saw(runs, rows):
    seen = unlearning.rows_of_runs(runs, "trajectory")
    assert set(seen.id).isdisjoint(rows.id) and set(seen["rank"] % 2) == {selection.SELECTION}
