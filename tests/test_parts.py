"""The study in parts, at a scale of seconds: what is of which part, what is resumed and written."""

import json
import os
import shutil
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import toys

from unlearn_utils import __main__, __version__, profiles
from unlearn_utils.cache import paths, workers
from unlearn_utils.cache.store import Artifact
from unlearn_utils.core import membership
from unlearn_utils.core.distances import SPLITS
from unlearn_utils.core.methods import METHODS
from unlearn_utils.engine import training
from unlearn_utils.study import (
    attacked,
    elsewhere,
    everything,
    method_paths,
    parts,
    pool,
    released_code,
    selection,
    since,
)

TOY = replace(
    toys.TOY,
    name="toy parts",
    replicates=(1,),
    pretraining=profiles.Pretraining(epochs=2, batch=4),
    grid=replace(toys.TOY.grid, epochs=1, usual_epochs=1, claimed_domains=("arxiv",)),
    parts=profiles.STUDY.parts,
)
MACHINE = ["part", "artifacts", "made", "minutes", "core_minutes", "processor", "cores", "bf16"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A store and a folder of figures in which the pool and the paths of claim C2 were computed."""
    folder = tmp_path_factory.mktemp("parts")
    with pytest.MonkeyPatch.context() as patch:
        toys.use_store(patch, folder / "store")
        patch.setenv("UNLEARN_FIGURES", str(folder / "figures"))
        for name in ("pool", "claim"):
            parts.compute(TOY, name)
        yield folder


@pytest.fixture
def copied(stored, tmp_path, monkeypatch):
    """A copy of the store and the figures, for a test that changes them."""
    shutil.copytree(stored, tmp_path / "copy")
    monkeypatch.setenv("UNLEARN_STORE", str(tmp_path / "copy" / "store"))
    monkeypatch.setenv("UNLEARN_FIGURES", str(tmp_path / "copy" / "figures"))
    return tmp_path / "copy"


def machine(folder):
    return pd.read_csv(folder / "figures" / "machine.csv").set_index("part")


# ---------------------------------------------------------------------------- what is of which part


def test_every_path_of_the_study_is_of_one_part():
    study = profiles.STUDY
    by_part = {name: part.runs(study) for name, part in parts.PARTS.items()}
    assert list(by_part) == [
        "pool",
        "claim",
        "methods",
        "released",
        "slips",
        "since",
        "exposures",
        "sizes",
        "shares",
        "attacks",
        "retraining",
        "soup",
    ]
    own = [*by_part["claim"], *by_part["methods"]]
    assert len(own) == len(set(own))
    assert set(own) == set(method_paths.every_run(study))
    assert [*by_part["released"], *by_part["slips"]] == released_code.all_runs(study)
    assert by_part["since"] == since.runs(study) and len(by_part["since"]) == 9 * 3 * 6
    assert [run.replicate for run in by_part["attacks"]] == list(study.replicates)
    every = [run for runs in by_part.values() for run in runs]
    assert len(every) == len(set(every))


def test_the_part_of_claim_c2_is_its_two_methods_at_every_rate():
    runs = parts.PARTS["claim"].runs(profiles.STUDY)
    assert len(runs) == 6 * 3 * 2 * 6
    assert {run.method for run in runs} == {method_paths.ASCENT, method_paths.CLAIMED}
    assert {run.target_domain for run in runs} == set(profiles.STUDY.domains)


def test_parts_of_elsewhere_leave_out_what_the_study_has():
    for name, axis in zip(parts.ELSEWHERE, elsewhere.AXES, strict=True):
        found = {run.profile for run in parts.PARTS[name].runs(profiles.STUDY)}
        others = [one for one in elsewhere.of_axis(profiles.STUDY, axis) if not one.own]
        assert found == {setting.profile for setting in others}
        assert len(found) == 3


def test_a_part_needs_models_before_measurements_before_paths(stored):
    tokenizers, models, measured, paths_, others = parts.stages(TOY, "claim")
    assert others == []
    assert len(tokenizers) == 1
    retrained = pool.retrained(TOY, "arxiv", 1)
    assert [artifact.path for artifact in models] == [pool.target(TOY).path, retrained.path]
    assert [artifact.path for artifact in measured] == [
        pool.measurements(TOY, model).path for model in models
    ]
    runs = parts.claim_runs(TOY)
    assert len(runs) == 2 * 2
    kept = [method_paths.keeps(run) for run in runs]
    assert kept == [False, True, False, True]
    expected = [method_paths.path(run, keep) for run, keep in zip(runs, kept, strict=True)]
    assert [artifact.path for artifact in paths_] == [artifact.path for artifact in expected]


def test_the_pool_s_part_is_every_model_and_its_measurements(stored):
    _, models, measured, paths_, others = parts.stages(TOY, "pool")
    assert len(models) == len(measured) == 4
    assert paths_ == others == []


def test_an_unknown_part_is_named_and_each_profile_has_its_own():
    with pytest.raises(ValueError, match="unknown part 'pol'; choose one of: pool, claim, methods"):
        parts.compute(TOY, "pol")
    with pytest.raises(ValueError, match="unknown part 'sizes'; choose one of: pool, claim, meth"):
        parts.compute(profiles.PUBLISHED, "sizes")


# --------------------------------------------------------------------------------- what is written


def test_rows_of_the_pool_are_kept_in_32_bits(stored):
    found = pd.read_parquet(stored / "figures" / "pool_rows.parquet")
    rows = pool.pool_rows(TOY)
    assert list(found.columns) == list(rows.columns)
    assert found.id.tolist() == rows.id.tolist()
    assert found.seen.tolist() == rows.seen.tolist()
    assert found.nll.dtype == np.float32 and found.tokens.dtype == np.int32
    assert np.allclose(found.nll, rows.nll, rtol=1e-6)


def test_levels_of_paths_are_those_of_their_rows(stored):
    found = pd.read_parquet(stored / "figures" / "paths_claim.parquet")
    expected = 0
    for run in parts.claim_runs(TOY):
        artifact = method_paths.path(run, method_paths.keeps(run))
        rows = pd.read_parquet(artifact.path / "rows.parquet")
        ended = json.loads((artifact.path / "ended.json").read_text())["ended"]
        here = found[
            (found.method == run.method) & np.isclose(found.learning_rate, run.recipe.learning_rate)
        ]
        expected += len(here)
        assert here.step.tolist() == [step for step in rows.step.unique() for _ in range(2)]
        assert set(here.ended) == {ended is not None}
        last = here[(here.step == rows.step.max()) & (here.half == "report")].iloc[0]
        report = selection.half(rows[rows.step == rows.step.max()], selection.REPORT)
        for split in SPLITS:
            level = selection.log_perplexity(report, split)
            assert last[split] == pytest.approx(level, rel=1e-6)
        scores = report.set_index("split").min_k_40
        auc = membership.auc(scores["forget"], scores["approximate"])
        assert last["auc"] == pytest.approx(auc, rel=1e-6)
    assert len(found) == expected
    (settings,) = found[["replicate", "target_domain", "batch"]].drop_duplicates().to_numpy()
    assert list(settings) == [1, "arxiv", 2]
    columns = ["pretraining_epochs", "parameters", "forget_documents"]
    (settings,) = found[columns].drop_duplicates().to_numpy()
    assert list(settings) == [2, 11600, 6]


def test_the_machine_of_each_part_has_a_line(stored):
    found = machine(stored)
    assert found.index.tolist() == ["pool", "claim"]
    assert found.reset_index().columns.tolist()[: len(MACHINE)] == MACHINE
    assert found.artifacts.tolist() == [1 + 4 + 4, 4]  # the pool's models are of its part alone
    assert found.made.tolist() == [9, 4]
    assert found.bf16.tolist() == [False, False]
    assert (found.core_minutes >= 0).all()
    assert found[["processor", "torch", "python", "date", "code"]].notna().all(axis=None)


# ------------------------------------------------------------------------------------ resumed parts


def test_a_part_that_is_there_writes_its_rows_and_leaves_the_line_of_its_machine(
    copied, monkeypatch
):
    monkeypatch.setattr(training, "unlearn", toys.refuse)
    monkeypatch.setattr(training, "pretrain", toys.refuse)
    file = copied / "figures" / "paths_claim.parquet"
    known = pd.read_parquet(file)
    line = (copied / "figures" / "machine.csv").read_text()
    file.unlink()
    parts.compute(TOY, "claim")
    pd.testing.assert_frame_equal(pd.read_parquet(file), known)
    assert (copied / "figures" / "machine.csv").read_text() == line


def test_a_part_that_was_killed_goes_on_where_it_was(copied, monkeypatch):
    """One path is missing: it alone is run, and the levels are as before."""
    before = pd.read_parquet(copied / "figures" / "paths_claim.parquet")
    run = parts.claim_runs(TOY)[2]
    shutil.rmtree(method_paths.path(run).path)
    unlearned = []
    real = training.unlearn
    monkeypatch.setattr(training, "unlearn", lambda *args: unlearned.append(args) or real(*args))
    parts.compute(TOY, "claim")
    assert len(unlearned) == 1
    assert machine(copied).made.tolist() == [9, 1]
    pd.testing.assert_frame_equal(
        pd.read_parquet(copied / "figures" / "paths_claim.parquet"), before
    )


def test_without_a_name_all_parts_come_in_turn(monkeypatch):
    called = []
    monkeypatch.setattr(parts, "_compute_part", lambda profile, name: called.append(name))
    parts.compute(TOY)
    assert called == list(profiles.STUDY.parts)


def test_lines_of_machines_are_in_the_order_of_the_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "code", lambda: "abc")
    for name, made in (("released", 1), ("pool", 2), ("released", 3)):
        parts.note_machine(tmp_path / "machine.csv", name, [], made, 1.23)
    found = pd.read_csv(tmp_path / "machine.csv")
    assert found.part.tolist() == ["pool", "released"]
    assert found.made.tolist() == [2, 3]
    assert found.minutes.tolist() == [1.2, 1.2]


# -------------------------------------------------------------------------------- worker processes


def test_what_is_finished_stays_when_another_artifact_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_STORE", str(tmp_path))

    def fail(folder):
        raise IndexError

    works = Artifact("toy", 1, {"x": 0}, lambda folder: None)
    fails = Artifact("toy", 1, {"x": 1}, fail)
    with pytest.raises(IndexError):
        workers.side_by_side([works, fails], 1)
    assert works.done()
    assert not fails.done()


def test_two_artifacts_are_made_in_two_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_STORE", str(tmp_path))

    def make(folder):
        (folder / "process").write_text(str(os.getpid()))
        time.sleep(1)  # long enough that one process cannot take both

    artifacts = [Artifact("toy", 1, {"x": x}, make) for x in range(2)]
    workers.side_by_side(artifacts, 2)
    monkeypatch.setattr("joblib.Parallel", toys.refuse)
    workers.side_by_side(artifacts, 2)  # nothing is missing: nothing is started
    assert all(artifact.done() for artifact in artifacts)
    processes = {(artifact.path / "process").read_text() for artifact in artifacts}
    assert len(processes | {str(os.getpid())}) == 3


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with pytest.raises(ValueError), workers.on_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise ValueError
    assert torch.get_num_threads() == before


# -------------------------------------------------------------------------------------- the machine


def test_the_processor_is_named_as_linux_names_it(tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2.5GHz\nmodel name\t: Other\n")
    monkeypatch.setattr(parts, "PROCESSORS", file)
    assert parts.processor() == "Some CPU @ 2.5GHz"
    file.write_text("Hardware: none\n")
    monkeypatch.setattr("platform.processor", lambda: "arm")
    assert parts.processor() == "arm"


def test_code_without_a_repository_is_the_version(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert parts.code() == __version__


# -------------------------------------------------------------------------------- the command line


def test_the_command_computes_the_parts_of_profiles_that_have_some(monkeypatch, capsys):
    called = []
    monkeypatch.setattr(parts, "compute", lambda profile, name: called.append((profile, name)))
    monkeypatch.setattr(everything, "compute", lambda profile: called.append(profile))
    for words in (["study", "--part", "claim"], ["study"], ["published"], ["smoke"]):
        assert __main__.main(["compute", *words]) == 0
    in_parts = [(profiles.STUDY, "claim"), (profiles.STUDY, None), (profiles.PUBLISHED, None)]
    assert called == [*in_parts, profiles.SMOKE]

    assert __main__.main(["compute", "gpu", "--part", "pool"]) == 2
    assert "the profile gpu has no parts; leave --part out" in capsys.readouterr().err
    monkeypatch.undo()
    assert __main__.main(["compute", "study", "--part", "pol"]) == 2
    assert "unknown part 'pol'; choose one of: pool, claim" in capsys.readouterr().err


# ------------------------------------------------------------------------- all of another profile


def test_everything_is_every_model_with_its_measurements_and_every_path(stored):
    found = list(everything.artifacts(TOY))
    kinds = [artifact.name for artifact in found]
    assert kinds[:8] == ["pretrained", "measured"] * 4
    runs = everything.every_run(TOY)
    assert kinds[8 : 8 + len(runs)] == ["path"] * len(set(runs))
    attacks = len(attacked.models(TOY, 1))
    assert kinds[8 + len(runs) :] == ["relearned", "rounded", "prefixed"] * attacks
    alike = {*method_paths.every_run(TOY), *released_code.all_runs(TOY), *since.runs(TOY)}
    assert set(runs) == {*alike, *attacked.runs(TOY, 1).values()}
    papers = [run for run in runs if run.method in METHODS]  # a slip's is of a method since
    usual = [run for run in papers if run == method_paths.usual_run(TOY, 1, "arxiv", run.method)]
    assert len(usual) == len(METHODS)
    assert found[8].settings["keep"] is True
