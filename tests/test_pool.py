"""The pool at a scale of seconds: which models there are, what each has read, what is kept."""

import json
import pickle
import shutil
from dataclasses import replace
from itertools import pairwise

import pandas as pd
import pytest
import torch
import toys

from unlearn_utils import profiles
from unlearn_utils.data import tokens
from unlearn_utils.engine import evaluation, models, training
from unlearn_utils.profiles import Pretraining, Unlearning
from unlearn_utils.study import pool, selection, study_documents
from unlearn_utils.study.pool import Member

TOY = replace(toys.TOY, name="toy pool", replicates=(3,))
PARTS = [  # that the target is trained on
    ("arxiv", "forget"),
    ("arxiv", "retain"),
    ("github", "forget"),
    ("github", "retain"),
    ("general", "retain"),
]
DOCUMENTS = 2 * (6 + 10) + 6  # in them
TARGET = Member(3, ("arxiv", "github"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A store with the pool and its rows; by name, the documents that each training was given."""
    given = []
    real = training.pretrain

    def pretrain(model, documents, recipe, pad_id, seed, execution, names):
        given.append((seed, names, [tuple(ids) for ids in documents]))
        return real(model, documents, recipe, pad_id, seed, execution, names)

    with pytest.MonkeyPatch.context() as patch:
        store = tmp_path_factory.mktemp("pool") / "store"
        toys.use_store(patch, store)
        patch.setattr(training, "pretrain", pretrain)
        rows = pool.pool_rows(TOY)
        members = [member.name for member in pool.members(TOY, 3)]
        yield {"store": store, "given": dict(zip(members, given, strict=True)), "rows": rows}


def sets_of(member):
    return set(member.seen)


def ids(*parts):
    """Return the documents of some parts, as token ids."""
    return {tuple(one) for one in study_documents.tokenized(TOY, parts).ids}


def weights(folder):
    return torch.cat([weight.detach().flatten() for weight in models.load(folder).parameters()])


# -------------------------------------------------------------------------------- which models


def test_members_are_every_choice_of_forget_sets():
    found = pool.members(profiles.LAPTOP, 0)
    assert [member.name for member in found] == [
        "arxiv + books + github",
        "arxiv + books",
        "arxiv + github",
        "arxiv",
        "books + github",
        "books",
        "github",
        "none",
    ]
    assert found[0].seen == profiles.LAPTOP.domains
    assert {member.replicate for member in found} == {0}
    assert len(pool.all_members(profiles.STUDY)) == 6 * 8


def test_every_model_of_every_replicate_has_a_seed_of_its_own():
    members = [*pool.all_members(profiles.LAPTOP), *pool.all_members(profiles.STUDY)]
    seeds = [member.seed(profiles.LAPTOP.domains) for member in members]
    assert sorted(seeds) == list(range(7 * 8))
    assert Member(2, ("arxiv", "github")).seed(("arxiv", "books", "github")) == 2 * 8 + 1 + 4


@pytest.mark.parametrize("domain", profiles.LAPTOP.domains)
def test_four_pairs_of_a_domain_differ_in_its_forget_set_alone(domain):
    pairs = pool.pairs(profiles.LAPTOP, domain, 0)
    assert len(pairs) == 4
    for target, retrained in pairs:
        assert domain in target.seen
        assert sets_of(target) - sets_of(retrained) == {domain}
        assert sets_of(retrained) < sets_of(target)
    every = [member for pair in pairs for member in pair]
    assert set(every) == set(pool.members(profiles.LAPTOP, 0)) and len(every) == 8
    assert pairs[0].target.seen == profiles.LAPTOP.domains  # the pair that is unlearned


def test_target_and_retrained_are_the_first_pair(world):
    (first, *_) = pool.pairs(TOY, "arxiv", 3)
    assert first == (TARGET, Member(3, ("github",)))
    assert pool.target(TOY).path == pool.trained_model(TOY, first.target).path
    assert pool.retrained(TOY, "arxiv").path == pool.trained_model(TOY, first.retrained).path
    assert pool.retrained(TOY, "arxiv", 4).path != pool.retrained(TOY, "arxiv", 3).path


# -------------------------------------------------------------------------------------- documents


def test_a_model_s_parts_leave_out_exactly_the_forget_sets_it_has_not_seen():
    assert study_documents.training_parts(TOY, ("arxiv", "github")) == PARTS
    for domain in TOY.domains:
        others = [part for part in PARTS if part != (domain, "forget")]
        seen = [other for other in TOY.domains if other != domain]
        assert study_documents.training_parts(TOY, seen) == others
    assert [part for part in PARTS if part[1] == "retain"] == study_documents.training_parts(
        TOY, ()
    )


def test_measured_parts_by_hand():
    assert study_documents.measured_parts(["books"]) == [
        ("books", "forget"),
        ("books", "approximate"),
        ("books", "retain"),
        ("general", "evaluation"),
    ]


def test_documents_are_the_corpus_s_in_order(world):
    parts = [("github", "retain"), ("general", "evaluation"), ("arxiv", "forget")]
    found = study_documents.tokenized(TOY, parts, limit=1)
    assert list(found.columns) == ["id", "text", "family", "rank", "domain", "split", "ids"]
    expected = []
    for domain, split in parts:
        texts = study_documents.data(TOY)[domain][split]["text"]
        if split == "retain":
            texts = texts[:1]
        expected += [(domain, split, text) for text in texts]
    in_order = found[["domain", "split", "text"]].itertuples(index=False, name=None)
    assert list(in_order) == expected
    assert len(found) == 1 + 4 + 6

    tokenizer = study_documents.tokenizer(TOY)
    for one, text in zip(found.ids, found.text, strict=True):
        assert one[0] == tokenizer.bos_token_id
        assert len(one) == 48
        assert text.startswith(tokenizer.decode(one[1:]))


def test_the_tokenizer_sees_retain_text_only(world, monkeypatch, tmp_path):
    real = tokens.train_tokenizer
    seen = []

    def train_tokenizer(texts, size):
        seen.extend(texts)
        return real(texts, size)

    monkeypatch.setattr(tokens, "train_tokenizer", train_tokenizer)
    study_documents._make_tokenizer(TOY, tmp_path)
    retained = []
    for splits in study_documents.data(TOY).values():
        retained += splits["retain"]["text"]
    assert sorted(seen) == sorted(retained)
    assert len(study_documents.tokenizer(TOY)) == 400


def test_each_model_is_trained_on_its_own_parts_and_nothing_else(world):
    documents = {name: set(given) for name, (_, _, given) in world["given"].items()}
    assert documents["arxiv + github"] == ids(*PARTS)
    assert len(world["given"]["arxiv + github"][2]) == DOCUMENTS == len(ids(*PARTS))
    of_arxiv, of_github = ids(("arxiv", "forget")), ids(("github", "forget"))
    assert documents["arxiv"] == documents["arxiv + github"] - of_github
    assert documents["github"] == documents["arxiv + github"] - of_arxiv
    assert documents["none"] == documents["arxiv"] - of_arxiv
    unseen = ids(("arxiv", "approximate"), ("github", "approximate"), ("general", "evaluation"))
    assert unseen.isdisjoint(documents["arxiv + github"])


def test_documents_are_ordered_by_their_names_so_that_one_left_out_moves_no_other(world):
    """Names are those of the corpus, in the order of the documents; seeds are the models' own."""
    for member in pool.members(TOY, 3):
        seed, names, given = world["given"][member.name]
        rows = study_documents.tokenized(TOY, study_documents.training_parts(TOY, member.seen))
        assert seed == member.seed(TOY.domains)
        assert names == [f"{row.domain}/{row.id}" for row in rows.itertuples()]
        assert given == [tuple(one) for one in rows.ids]

    whole, part = world["given"]["arxiv + github"][1], world["given"]["github"][1]
    in_whole = [whole[number] for number in training.hashed_orders(whole, 2, seed=7)]
    in_part = [part[number] for number in training.hashed_orders(part, 2, seed=7)]
    assert in_part == [name for name in in_whole if name in set(part)]
    assert in_part != part + part


# ---------------------------------------------------------------------------------- stored models


def test_what_is_stored_is_not_computed_again(world, monkeypatch):
    monkeypatch.setattr(training, "pretrain", toys.refuse)
    monkeypatch.setattr(evaluation, "measure", toys.refuse)
    monkeypatch.setattr(models, "load", toys.refuse)
    pd.testing.assert_frame_equal(pool.pool_rows(TOY), world["rows"])
    with pytest.raises(AssertionError, match="computed again"):
        pool.target(TOY, 4).folder()


def test_the_target_is_loadable_and_has_a_history(world):
    folder = pool.target(TOY).folder()
    history = pd.read_parquet(folder / "history.parquet")
    assert history.step.tolist() == list(range(1, 115))  # 38 documents, 12 passes, 4 at a time
    assert set(history.seen) == {"arxiv + github"} and set(history.replicate) == {3}
    assert history.loss[-5:].mean() < history.loss[:5].mean() - 1
    assert models.load(folder).config.vocab_size == 400
    taken = json.loads((folder / "cost.json").read_text())
    assert taken["tokens"] == DOCUMENTS * 48 * 12
    assert taken["bf16"] is False
    assert 0 < taken["training_seconds"] <= taken["seconds"] + 0.01


def test_histories_are_of_every_model(world):
    found = pool.histories(TOY)
    by_model = found.groupby(["replicate", "seen"], sort=False).size()
    steps = {"arxiv + github": 114, "arxiv": 96, "github": 96, "none": 78}
    assert by_model.to_dict() == {(3, name): number for name, number in steps.items()}


def test_a_target_keeps_its_weights_on_the_way(world):
    folder = pool.target(TOY).folder()
    shares = [0.25, 0.5, 0.75, 0.9]
    assert list(pool.KEPT) == shares
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert names == ["at_25", "at_50", "at_75", "at_90"]
    states = [weights(pool.kept_folder(folder, share)) for share in shares]
    end = weights(folder)
    far = [float((state - end).norm()) for state in states]
    assert all(before > after > 0 for before, after in pairwise(far))


def test_weights_on_the_way_are_those_after_so_many_steps(world, monkeypatch, tmp_path):
    """A training that is broken off at three quarters of its steps has them."""
    monkeypatch.setenv("UNLEARN_STORE", str(tmp_path))
    real = models.save

    def killed(model, folder, *dtype):
        real(model, folder, *dtype)
        if folder.name == "at_75":
            shutil.copytree(folder, tmp_path / "kept")
            raise KeyboardInterrupt

    monkeypatch.setattr(models, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        pool.target(TOY).folder()
    monkeypatch.setenv("UNLEARN_STORE", str(world["store"]))
    there = weights(pool.kept_folder(pool.target(TOY).folder(), 0.75))
    assert torch.equal(weights(tmp_path / "kept"), there)


def test_a_model_that_saw_no_forget_set_keeps_none(world):
    folder = pool.trained_model(TOY, Member(3, ())).folder()
    assert not [path for path in folder.iterdir() if path.is_dir()]


def test_keys_of_models_follow_what_changes_them_and_nothing_else(world):
    same = replace(TOY, name="other", resamples=9, workers=2, unlearning=Unlearning())
    assert pool.target(same).path == pool.target(TOY).path
    more = replace(TOY, replicates=(3, 4), grid=profiles.Grid())
    assert pool.target(more).path == pool.target(TOY).path

    found = [pool.trained_model(TOY, member).path for member in pool.members(TOY, 3)]
    found += [pool.trained_model(TOY, member).path for member in pool.members(TOY, 4)]
    for change in (
        {"pretraining": Pretraining(epochs=11, batch=4)},
        {"shape": replace(TOY.shape, layers=3)},
        {"corpus": replace(TOY.corpus, retain=9)},
        {"corpus": replace(TOY.corpus, resized=("arxiv", 5))},
    ):
        found.append(pool.target(replace(TOY, **change)).path)
    assert len(set(found)) == len(found) == 12


def test_the_order_of_domains_is_part_of_the_key(world):
    turned = replace(TOY, domains=("github", "arxiv"))
    assert pool.target(turned).path != pool.target(TOY).path


def test_artifacts_travel_to_worker_processes(world):
    target = pool.target(TOY)
    for artifact in (target, pool.measurements(TOY, target)):
        assert pickle.loads(pickle.dumps(artifact)).path == artifact.path


def test_a_killed_training_gives_the_same_model_when_it_is_resumed(world, tmp_path, monkeypatch):
    undisturbed = pool.target(TOY).folder()
    monkeypatch.setenv("UNLEARN_STORE", str(tmp_path))
    real = models.save

    def killed(model, folder, *dtype):
        real(model, folder, *dtype)
        if not folder.name.startswith("at_"):
            raise KeyboardInterrupt

    monkeypatch.setattr(models, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        pool.target(TOY).folder()
    assert not pool.target(TOY).done()

    monkeypatch.setattr(models, "save", real)
    resumed = pool.target(TOY).folder()
    assert resumed != undisturbed
    assert torch.equal(weights(resumed), weights(undisturbed))
    before = pd.read_parquet(undisturbed / "history.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(resumed / "history.parquet"), before)


# ------------------------------------------------------------------------------------ measurements


def test_rows_cover_every_measured_part_of_every_model(world):
    rows = world["rows"]
    names = ["arxiv + github", "arxiv", "github", "none"]
    assert rows.seen.unique().tolist() == names
    assert set(rows.replicate) == {3}
    expected = {("general", "evaluation"): 4}
    for domain in TOY.domains:
        expected |= {(domain, "forget"): 6, (domain, "approximate"): 6, (domain, "retain"): 4}
    first = rows[rows.seen == names[0]]
    for _, part in rows.groupby("seen"):
        assert part.groupby(["domain", "split"]).size().to_dict() == expected
        assert part.id.tolist() == first.id.tolist()
        assert (part.tokens == 47).all()
    assert not rows.isna().any(axis=None)
    assert {"ids", "text"}.isdisjoint(rows.columns)
    columns = ["id", "family", "rank", "domain", "split", "tokens", "nll", "correct"]
    assert {*columns, "min_k_40", "zlib", "extraction"} < set(rows.columns)


def test_rows_are_those_of_the_stored_model(world):
    rows = world["rows"].query("seen == 'arxiv' and domain == 'github' and split == 'forget'")
    documents = study_documents.tokenized(TOY, [("github", "forget")])
    model = models.load(pool.retrained(TOY, "github").path)
    again = evaluation.measure(model, documents, study_documents.tokenizer(TOY))
    assert rows.id.tolist() == again.id.tolist()
    assert rows.nll.tolist() == pytest.approx(again.nll.tolist(), rel=1e-5)


@pytest.mark.parametrize("domain", TOY.domains)
def test_a_model_remembers_the_forget_sets_it_saw(world, domain):
    forget = world["rows"].query("domain == @domain and split == 'forget'")
    levels = {}
    for name, part in forget.groupby("seen"):
        levels[name] = part.nll.sum() / part.tokens.sum()
    saw = [level for name, level in levels.items() if domain in name]
    never = [level for name, level in levels.items() if domain not in name]
    assert len(saw) == len(never) == 2
    assert min(never) > max(saw) + 0.1


def test_rows_of_target_and_truth_are_of_the_domain_and_general_text(world):
    rows = world["rows"]
    for domain, retrained in (("arxiv", "github"), ("github", "arxiv")):
        here = rows[rows.domain.isin([domain, "general"])]
        for found, seen in (
            (pool.target_rows(TOY, domain, 3), "arxiv + github"),
            (pool.truth_rows(TOY, domain, 3), retrained),
        ):
            known = here[here.seen == seen]
            assert found.id.tolist() == known.id.tolist()
            assert found.nll.tolist() == known.nll.tolist()


# ------------------------------------------------------------------------------- published models


def test_a_published_model_is_not_trained(monkeypatch):
    line = "pythia-1.4b cannot be trained again here: the profile gpu has no retrained model"
    for member in (Member(0, ()), Member(0, profiles.GPU.domains)):
        with pytest.raises(ValueError, match=line):
            pool.trained_model(profiles.GPU, member)
    assert pool.train_all(profiles.GPU) == {}
    assert pool.histories(profiles.GPU).empty


def test_of_a_published_model_the_proxy_stands_for_the_truth(world, monkeypatch):
    """Forget documents have what unseen ones of their half have; all other text is the target's."""
    target = pool.target_rows(TOY, "arxiv", 3)
    monkeypatch.setattr(pool, "target_rows", lambda *_: target)
    found = pool.truth_rows(replace(TOY, hub=profiles.GPU.hub), "arxiv", 0)
    assert found.id.tolist() == target.id.tolist()
    for which in (selection.SELECTION, selection.REPORT):
        ours, theirs = selection.half(found, which), selection.half(target, which)
        unseen = selection.log_perplexity(theirs, "approximate")
        assert selection.log_perplexity(ours, "forget") == pytest.approx(unseen, abs=1e-12)
        assert unseen > selection.log_perplexity(theirs, "forget")
    others = target.split != "forget"
    pd.testing.assert_frame_equal(found[others], target[others], check_dtype=False)
