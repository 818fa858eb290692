"""The study elsewhere: what its settings vary, and what they leave alone. No model is trained."""

from dataclasses import replace
from itertools import pairwise

import pytest
import toys

from unlearn_utils import profiles
from unlearn_utils.core.efficiency import parameter_count
from unlearn_utils.core.methods import METHODS
from unlearn_utils.engine import models
from unlearn_utils.profiles import Shape, sized
from unlearn_utils.study import (
    elsewhere,
    method_paths,
    pool,
    selection,
    single_run,
    study_documents,
)

STUDY = profiles.STUDY
EXPOSURES, SIZES, SHARES = elsewhere.AXES


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory):
    """A store of its own, for tokenizers."""
    with pytest.MonkeyPatch.context() as patch:
        toys.use_store(patch, tmp_path_factory.mktemp("elsewhere") / "store")
        yield


def by_value(axis):
    """Return the settings of the study on one axis, by their value."""
    return {setting.value: setting for setting in elsewhere.of_axis(STUDY, axis)}


# ---------------------------------------------------------------------------------------- settings


def test_the_study_s_settings():
    assert list(by_value(EXPOSURES)) == [1, 2, 3, 5]
    assert list(by_value(SIZES)) == [225_600, 1_016_960, 2_090_688, 5_803_776]
    assert list(by_value(SHARES)) == [15, 30, 60, 120]
    own = [(one.axis, one.value) for one in elsewhere.settings(STUDY) if one.own]
    assert own == [(EXPOSURES, 5), (SIZES, 1_016_960), (SHARES, 60)]
    domains = {one.axis: one.domain for one in elsewhere.settings(STUDY)}
    assert domains == {EXPOSURES: "arxiv", SIZES: "arxiv", SHARES: "github"}


@pytest.mark.parametrize("shape", [Shape(), sized(64, 2), sized(32, 1, 500, 64)])
def test_parameters_are_those_of_the_model(shape, tokenizer):
    model = models.build(shape, tokenizer, 0)
    assert elsewhere.parameters(shape) == parameter_count(model)


def test_two_replicates_but_of_large_models_one():
    found = {(one.axis, one.value): one.profile.replicates for one in elsewhere.settings(STUDY)}
    alone = [key for key, replicates in found.items() if replicates == (1,)]
    assert alone == [(SIZES, 2_090_688), (SIZES, 5_803_776)]
    assert set(found.values()) == {(1, 2), (1,)}


def test_every_second_rate_of_the_study_is_tried_and_its_usual_one_among_them():
    rates = elsewhere.varied(STUDY, "arxiv").grid.learning_rates
    assert rates == (5e-5, 3e-4, 2e-3)
    assert STUDY.unlearning.learning_rate in rates


@pytest.mark.parametrize("axis", elsewhere.AXES)
def test_one_thing_is_varied_at_a_time(axis):
    """But for replicates and the grid's domain one thing differs, and nothing of an own setting."""
    varied = {EXPOSURES: ["pretraining"], SIZES: ["shape"], SHARES: ["corpus", "grid"]}[axis]
    for setting in elsewhere.of_axis(STUDY, axis):
        assert setting.profile.grid.domains == (setting.domain,)
        base = elsewhere.varied(STUDY, setting.domain)
        assert replace(base, grid=STUDY.grid, replicates=STUDY.replicates) == STUDY
        base = replace(base, replicates=setting.profile.replicates)
        differ = [name for name in vars(base) if vars(base)[name] != vars(setting.profile)[name]]
        assert differ == ([] if setting.own else varied)


@pytest.mark.parametrize("axis", elsewhere.AXES)
def test_the_study_s_own_setting_has_the_study_s_models_and_paths(axis):
    (own,) = [setting for setting in elsewhere.of_axis(STUDY, axis) if setting.own]
    profile, domain = own.profile, own.domain
    for replicate in profile.replicates:
        assert pool.target(profile, replicate).path == pool.target(STUDY, replicate).path
        retrained = pool.retrained(profile, domain, replicate)
        assert retrained.path == pool.retrained(STUDY, domain, replicate).path
    known = {}
    for run in method_paths.every_run(STUDY):
        known[method_paths.path(run, method_paths.keeps(run)).path] = run
    runs = elsewhere.runs([own])
    assert len(runs) == 2 * (len(METHODS) + 2 * 2)
    for run in runs:
        assert method_paths.path(run, method_paths.keeps(run)).path in known


def test_forget_sets_of_all_sizes_are_unlearned_in_as_many_steps():
    """45 at the usual rate, and 30 in the plane of claim C2. The largest has 60: 45 count."""
    steps = {}
    for size, setting in by_value(SHARES).items():
        assert setting.steps == 45
        profile = setting.profile
        documents = size * profile.grid.usual_epochs
        assert size * profile.grid.epochs / profile.unlearning.batch == 30
        steps[size] = documents / profile.unlearning.batch
    assert steps == {15: 45, 30: 45, 60: 45, 120: 60}


# ---------------------------------------------------------------------- documents of resized sets


def documents(profile, domain, split):
    """Return the rows of one split, with texts."""
    return study_documents.data(profile)[domain][split].to_pandas()


@pytest.fixture(scope="module")
def shares():
    """By size: forget and retain documents of github in the study's settings."""
    found = {}
    for size, setting in by_value(SHARES).items():
        splits = ("forget", "retain", "approximate")
        found[size] = {name: documents(setting.profile, "github", name) for name in splits}
    return found


def test_forget_and_retain_documents_are_the_same_together(shares):
    for size, splits in shares.items():
        assert len(splits["forget"]) == size
        assert len(splits["retain"]) == 240 - size
        both = {*splits["forget"].id, *splits["retain"].id}
        assert both == {*shares[60]["forget"].id, *shares[60]["retain"].id}
        assert splits["approximate"].equals(shares[60]["approximate"])


def test_forget_sets_are_nested_and_no_family_is_on_both_sides(shares):
    sizes = sorted(shares)
    for smaller, larger in pairwise(sizes):
        few = shares[smaller]["forget"].id.tolist()
        assert shares[larger]["forget"].id.tolist()[:smaller] == few
    for splits in shares.values():
        assert set(splits["forget"].family).isdisjoint(splits["retain"].family)


def test_what_is_measured_stays(shares):
    """The first 40 retain documents in all settings, and of the forget set the study's own."""
    for size, setting in by_value(SHARES).items():
        rows = method_paths.measured_documents(setting.profile, "github")
        retain = rows[rows.split == "retain"]
        known = shares[60]["retain"]
        assert set(retain.id) <= set(known[known["rank"] < 40].id)
        forget = rows[rows.split == "forget"]
        assert set(forget.id) <= set(shares[60]["forget"].id[:size])
        report = selection.half(forget, selection.REPORT)
        assert len(report) == {15: 7, 30: 15, 60: 30, 120: 30}[size]


def test_retained_documents_are_read_and_forgotten_ones_are_not(shares):
    for size, setting in by_value(SHARES).items():
        forget, retain = single_run.token_ids_of_sides(
            setting.profile, "github", method_paths.CLAIMED
        )
        assert len(forget) == size
        assert len(retain) == 240 - size - 40
        assert set(map(tuple, forget)).isdisjoint(map(tuple, retain))


def test_the_tokenizer_is_the_study_s_and_the_other_models_are_not(shares):
    paths, targets = set(), set()
    for setting in by_value(SHARES).values():
        paths.add(study_documents.tokenizer_artifact(setting.profile).path)
        targets.add(pool.retrained(setting.profile, "github", 1).path)
    assert paths == {study_documents.tokenizer_artifact(STUDY).path}
    assert len(targets) == 4


def test_the_other_domains_stay(shares):
    fewer = by_value(SHARES)[15].profile
    for domain in ("arxiv", "books"):
        assert documents(fewer, domain, "forget").equals(documents(STUDY, domain, "forget"))
