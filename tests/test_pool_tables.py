"""What the pool says before anything is unlearned, on rows set by hand. No model is trained."""

import types
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest

from unlearn_utils import profiles
from unlearn_utils.findings import draws, pool_tables
from unlearn_utils.profiles import PROFILES
from unlearn_utils.study import extra_measurements, pool, study_documents

PROFILE = replace(
    PROFILES["smoke"],
    name="pooled",
    domains=("arxiv", "github"),
    replicates=(3, 4),
    workers=1,
    resamples=40,
)
PUBLISHED = replace(PROFILE, name="published", replicates=(0,), hub=profiles.GPU.hub)
SPLITS = ("forget", "approximate", "retain", "evaluation")
SEEN = {"both": "arxiv + github", "arxiv": "arxiv", "github": "github", "none": "none"}
COUNT = 6  # documents of a split
TOKENS = np.array([1, 2, 3, 4, 5, 5])
RESULTS = ["value", "low", "high", "n", "replicates"]


def rows_of(domain, split, nats, **columns):
    """Return rows of the documents of one split, with a loss a token: one, or one each."""
    where = "general" if split == "evaluation" else domain
    each = np.broadcast_to(np.array(nats, float), COUNT)
    names = [f"{where}-{split}-{rank}" for rank in range(COUNT)]
    part = {"id": names, "family": names, "rank": range(COUNT), "domain": where, "split": split}
    part |= {"tokens": TOKENS, "nll": TOKENS * each, "correct": 0, "extraction": 0.0}
    part |= {"min_k_20": 0.0, "min_k_40": 0.0, "min_k_100": 0.0}
    return pd.DataFrame(part | columns)


def model_rows(nats=1.0, **of_split):
    """Return the rows of one model on every document.

    Args:
        nats: a token, everywhere.
        of_split: by "domain_split" or "evaluation", in the place of that.
    """
    frames = [rows_of("general", "evaluation", of_split.get("evaluation", nats))]
    for domain, split in product(PROFILE.domains, SPLITS[:3]):
        frames.append(rows_of(domain, split, of_split.get(f"{domain}_{split}", nats)))
    return pd.concat(frames, ignore_index=True)


@pytest.fixture(autouse=True)
def models(tmp_path, monkeypatch):
    """A pool by hand: rows by replicate and the forget sets that were seen; figures of its own."""
    known = {(replicate, name): model_rows() for replicate in (3, 4) for name in SEEN}

    def pool_rows(profile):
        frames = []
        for (replicate, name), rows in known.items():
            frames.append(rows.assign(replicate=replicate, seen=SEEN[name]))
        return pd.concat(frames, ignore_index=True).sample(frac=1, random_state=0)

    monkeypatch.setenv("UNLEARN_FIGURES", str(tmp_path))
    monkeypatch.setattr(pool, "pool_rows", pool_rows)
    monkeypatch.setattr(pool, "target_rows", lambda profile, domain, replicate: model_rows())
    forget()
    yield known
    forget()


def forget():
    for remembered in (
        draws.sample,
        pool_tables.rows_of_members,
        pool_tables.of_pairs,
        pool_tables.differences_of_domains,
        pool_tables.continuations,
    ):
        remembered.cache_clear()


def by_keys(table, *keys):
    assert not table.duplicated(list(keys)).any()
    return table.set_index(list(keys)).sort_index()


# ----------------------------------------------------------------------------------- what they know


def test_a_perplexity_is_a_mean_of_pairs_and_replicates_in_nats(models):
    """Targets of arxiv saw both or arxiv alone: 1 and 2 nats, then 2 and 4, so 1.5 and 3."""
    for replicate, both, arxiv in ((3, 1.0, 2.0), (4, 2.0, 4.0)):
        models[replicate, "both"] = model_rows(9.0, arxiv_forget=both)
        models[replicate, "arxiv"] = model_rows(9.0, arxiv_forget=arxiv)
        models[replicate, "github"] = model_rows(9.0, arxiv_forget=5.0)
        models[replicate, "none"] = model_rows(9.0, arxiv_forget=6.0)
    table = pool_tables.models_table(PROFILE)
    keys = ["model", "target_domain", "split", "measure"]
    assert list(table)[: len(keys) + len(RESULTS)] == keys + RESULTS
    found = by_keys(table, *keys)
    row = found.loc["target", "arxiv", "forget", "perplexity"]
    assert row["value"] == pytest.approx(np.exp(2.25))
    assert row.by_replicate == f"{np.exp(1.5):.6g} {np.exp(3):.6g}"
    assert (row.n, row.replicates) == (COUNT, 2)
    assert row.low < np.exp(1.5) and row.high > np.exp(3)
    row = found.loc["retrained", "arxiv", "forget", "perplexity"]
    assert row["value"] == pytest.approx(np.exp(5.5))
    for split in SPLITS[1:]:
        assert found.loc["target", "arxiv", split, "perplexity"]["value"] == pytest.approx(
            np.exp(9)
        )
    assert len(table) == 2 * 2 * 4 * 3


def test_accuracy_counts_tokens_and_extraction_strength_documents(models):
    """The hits are 1 of 1, 2 of 2 and none of the other 17 tokens: 3 of 20."""
    for replicate in (3, 4):
        rows = model_rows()
        here = (rows.domain == "github") & (rows.split == "approximate")
        rows.loc[here, "correct"] = [1, 2, 0, 0, 0, 0]
        rows.loc[here, "extraction"] = [0.6, 0.3, 0, 0, 0, 0]
        models[replicate, "none"] = rows
    found = by_keys(pool_tables.models_table(PROFILE), "model", "target_domain", "split", "measure")
    retrained = found.loc["retrained", "github", "approximate"]
    assert retrained["value"]["accuracy"] == pytest.approx(3 / 20 / 2)  # of one pair of two
    assert retrained["value"]["extraction strength"] == pytest.approx(0.15 / 2)
    assert (found.loc["target", "github", "approximate"]["value"][["accuracy"]] == 0).all()
    shares = found.drop("perplexity", level="measure")
    assert shares.low.min() == 0 and shares.high.max() < 1


def test_every_measured_document_counts(models):
    """Also those of even rank, on which choices are made elsewhere."""
    for replicate in (3, 4):
        models[replicate, "both"] = model_rows(arxiv_forget=[8.0, 1, 1, 1, 1, 1])
    found = by_keys(pool_tables.models_table(PROFILE), "measure", "model", "target_domain", "split")
    row = found.loc["perplexity", "target", "arxiv", "forget"]
    assert np.log(row["value"]) == pytest.approx((27 / 20 + 1) / 2)
    assert row.low < row["value"] < row.high


def test_membership_by_hand(models):
    """Each score has its own column; targets of arxiv are told by Min-40%, half of them by loss."""
    for replicate, name in product((3, 4), ("both", "arxiv")):
        rows = model_rows()
        members = (rows.domain == "arxiv") & (rows.split == "forget")
        rows.loc[members, "min_k_40"] = 1.0
        rows.loc[members & (name == "both"), "min_k_100"] = 1.0
        models[replicate, name] = rows
    table = pool_tables.membership_table(PROFILE)
    found = by_keys(table, "model", "target_domain", "measure")["value"]
    assert found["target", "arxiv"].to_dict() == {
        "AUC Min-20%": 0.5,
        "AUC Min-40%": 1.0,
        "AUC loss": 0.75,
    }
    assert set(found["retrained"]) == {0.5}
    # one target of github has seen arxiv as well, which its own documents do not show
    assert set(found["target", "github"]) == {0.5}
    assert table.high.max() <= 1


# ---------------------------------------------------------------------------------- how they differ


def a_pool(models):
    """Set losses of arxiv: what is told of them by hand stands in the tests."""
    for replicate in (3, 4):
        more = 0.2 * (replicate - 3)  # on unseen text, under targets
        models[replicate, "both"] = model_rows(2.0, arxiv_forget=1.0, arxiv_approximate=1.8 + more)
        models[replicate, "github"] = model_rows(2.0, arxiv_forget=2.1, arxiv_approximate=2.0)
        models[replicate, "arxiv"] = model_rows(2.0, arxiv_forget=1.2, arxiv_approximate=1.6 + more)
        models[replicate, "none"] = model_rows(2.0, arxiv_forget=2.5, arxiv_approximate=2.2)


EXPECTED = {  # of arxiv; of both pairs and both replicates
    "retrained: forget less unseen": (0.1 + 0.3) / 2,
    "target less retrained, on forget": (-1.1 - 1.3) / 2,
    "target less retrained, on unseen": (-0.2 - 0.6) / 2 + 0.1,
    "proxy: target on unseen less retrained on forget": (-0.3 - 0.9) / 2 + 0.1,
    "SD between retrained models, on forget": 0.4 / np.sqrt(2),
    "SD between retrained models, on unseen": 0.2 / np.sqrt(2),
}


def test_differences_by_hand(models):
    """On github, where all losses are 2, nothing differs; the mean is half of arxiv's."""
    a_pool(models)
    table = pool_tables.differences_table(PROFILE)
    assert list(table)[:7] == ["target_domain", "measure", *RESULTS]
    assert table.target_domain.unique().tolist() == ["arxiv", "github", "mean"]
    found = by_keys(table, "target_domain", "measure")["value"]
    assert found["arxiv"].to_dict() == pytest.approx(EXPECTED)
    assert found["github"].to_dict() == pytest.approx(dict.fromkeys(EXPECTED, 0), abs=1e-12)
    halves = {measure: value / 2 for measure, value in EXPECTED.items()}
    assert found["mean"].to_dict() == pytest.approx(halves)
    assert set(table.n) == {COUNT}


def test_the_finding_and_its_noise_are_rows_of_the_table(models):
    a_pool(models)
    found = by_keys(pool_tables.differences_table(PROFILE), "target_domain", "measure")
    bias = pool_tables.proxy_bias(PROFILE)
    assert bias.shape == (2, 1 + PROFILE.resamples)
    assert bias[:, 0] == pytest.approx([-0.2, -0.1])
    row = found.loc["mean", "target less retrained, on unseen"]
    assert row["value"] == pytest.approx(bias[:, 0].mean())
    assert found["value"]["mean", "SD between retrained models, on unseen"] == pytest.approx(
        0.1 / np.sqrt(2)
    )


def test_the_noise_floor_is_taken_in_each_draw(models):
    """Two retrained models differ by 1 on one document alone: by how often it is drawn."""
    for replicate in (3, 4):
        models[replicate, "none"] = model_rows(arxiv_approximate=[1.0, 1, 1, 1, 1, 2])
    noise = pool_tables.differences(PROFILE, "arxiv")["SD between retrained models, on unseen"]
    weights = draws.sample(PROFILE, "arxiv", "approximate", draws.ALL).weights
    expected = 5 * weights[:, 5] / (weights @ TOKENS) / np.sqrt(2)
    assert noise == pytest.approx(np.stack([expected, expected]))
    assert expected.std() > 0.01
    table = pool_tables.differences_table(PROFILE)
    assert table.low[table.measure.str.startswith("SD")].min() == 0  # it has no sign


def test_models_of_a_pair_are_compared_on_the_same_draws(models):
    """A target that is 0.5 below on every document is so in each draw: the interval is a point."""
    each = np.random.default_rng(0).uniform(1, 4, COUNT)
    for key in models:
        models[key] = model_rows(arxiv_forget=each, arxiv_approximate=each)
        if key[1] in ("both", "arxiv"):
            models[key] = model_rows(arxiv_forget=each, arxiv_approximate=each - 0.5)
    found = by_keys(pool_tables.differences_table(PROFILE), "target_domain", "measure")
    row = found.loc["arxiv", pool_tables.PROXY_BIAS]
    assert [row.low, row["value"], row.high] == pytest.approx([-0.5] * 3)
    row = found.loc["arxiv", pool_tables.FAIR]  # of different documents
    assert row["value"] == pytest.approx(0) and row.high > 0.2


def test_n_is_of_the_smaller_of_both_sides(models, monkeypatch):
    def fewer(profile, domain, replicate):
        rows = model_rows()
        small = (rows.split == "approximate") & (rows.domain == "github") & (rows["rank"] > 2)
        return rows[~small & ((rows.split != "retain") | (rows["rank"] == 0))]

    monkeypatch.setattr(pool, "target_rows", fewer)
    table = pool_tables.differences_table(PROFILE)
    sizes = table.groupby("target_domain").n.unique().map(list).to_dict()
    assert sizes == {"arxiv": [COUNT], "github": [3], "mean": [3]}


# ------------------------------------------------------------------------------- a published model


def test_of_a_published_model_there_is_the_target_alone(models):
    models.clear()
    models[0, "both"] = model_rows(2.0, arxiv_forget=1.0)
    found = by_keys(
        pool_tables.models_table(PUBLISHED), "model", "target_domain", "split", "measure"
    )
    assert found["value"]["target", "arxiv", "forget", "perplexity"] == pytest.approx(np.e)
    assert found.loc["target"][RESULTS].notna().all(axis=None)
    auc = by_keys(pool_tables.membership_table(PUBLISHED), "model", "target_domain", "measure")
    assert set(auc["value"]["target"]) == {0.5}
    differences = pool_tables.differences_table(PUBLISHED)
    for nothing in (found.loc["retrained"], auc.loc["retrained"], differences):
        assert nothing[["value", "low", "high"]].isna().all(axis=None)
        assert (nothing[["n", "replicates"]] == 0).all(axis=None)
    assert set(differences.measure) == set(EXPECTED)
    assert np.isnan(pool_tables.proxy_bias(PUBLISHED)).all()
    assert pool_tables.members_table(PUBLISHED).empty


# ---------------------------------------------------------------------------------- what they write


@pytest.fixture
def written(monkeypatch):
    """Let a model write by hand: what it scores on a document is a number by model and domain."""
    scores = {}

    def look(profile, model, domain):
        rows = rows_of(domain, "forget", 1.0)[["id", "family", "rank"]]
        rows = rows[rows["rank"] < 4].assign(target_domain=domain)  # the others are too short
        rows["rouge_l"] = np.array(scores[model, domain])
        return types.SimpleNamespace(rows=rows)

    monkeypatch.setattr(pool, "train_all", lambda profile: {})
    monkeypatch.setattr(pool, "target", lambda profile, replicate: f"target {replicate}")
    monkeypatch.setattr(
        pool, "retrained", lambda profile, domain, replicate: f"without {domain} {replicate}"
    )
    monkeypatch.setattr(extra_measurements, "greedy_continuations", look)
    monkeypatch.setattr(extra_measurements, "rows_of", lambda looks: looks[0].rows)
    monkeypatch.setattr(pool_tables, "side_by_side", lambda *args: None)
    return scores


def test_continuations_are_those_of_the_main_pairs(written):
    for domain in PROFILE.domains:
        written["target 3", domain] = [0.8, 0.4, 0.0, 0.0]
        written["target 4", domain] = [0.4, 0.4, 0.4, 0.4]
        written[f"without {domain} 3", domain] = 0.1
        written[f"without {domain} 4", domain] = 0.2
    rows = pool_tables.continuations(PROFILE)
    sizes = rows.groupby(["replicate", "model", "target_domain"]).size()
    assert len(sizes) == 8 and set(sizes) == {4}
    table = pool_tables.continuations_table(PROFILE)
    found = by_keys(table, "model", "target_domain", "measure")
    for domain in PROFILE.domains:
        row = found.loc["target", domain, "ROUGE-L"]
        assert (row["value"], row.n, row.replicates) == (pytest.approx(0.35), 4, 2)
        assert row.by_replicate == "0.3 0.4"
        assert found["value"]["retrained", domain, "ROUGE-L"] == pytest.approx(0.15)


def test_a_published_model_writes_alone(written):
    for domain in PUBLISHED.domains:
        written["target 0", domain] = 0.25
    assert set(pool_tables.continuations(PUBLISHED).model) == {"target"}
    found = by_keys(pool_tables.continuations_table(PUBLISHED), "model", "target_domain")["value"]
    assert set(found["target"]) == {0.25}
    assert found["retrained"].isna().all()


# ------------------------------------------------------------------------------------- the members


def test_members_and_their_trainings(monkeypatch):
    """Of the first replicate; steps and losses are those of each model's own history."""

    def histories(profile):
        frames = []
        for member in pool.all_members(profile):
            steps = 30 + 2 * len(member.seen)
            loss = np.arange(steps, 0, -1.0) + 100 * (member.replicate - 3)
            part = {"replicate": member.replicate, "seen": member.name, "loss": loss}
            frames.append(pd.DataFrame(part))
        return pd.concat(frames, ignore_index=True)

    texts = {domain: {"forget": range(5), "retain": range(20)} for domain in PROFILE.domains}
    texts["general"] = {"retain": range(7)}
    monkeypatch.setattr(pool, "histories", histories)
    monkeypatch.setattr(study_documents, "data", lambda profile: texts)
    found = pool_tables.members_table(PROFILE).set_index("model")
    assert found.index.tolist() == ["arxiv + github", "arxiv", "github", "none"]
    assert found.arxiv.tolist() == ["seen", "seen", "left out", "left out"]
    assert found.github.tolist() == ["seen", "left out", "seen", "left out"]
    assert found.seed.tolist() == [15, 13, 14, 12]
    assert found.documents.tolist() == [57, 52, 52, 47]
    assert found.steps.tolist() == [34, 32, 32, 30]
    assert found["first loss"].tolist() == [34, 32, 32, 30]
    assert found["last loss"].tolist() == [10.5] * 4
