"""An artifact filled by two processes is the one that one process fills; the first alone writes."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import hubs
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from test_distributed import sharded, together

from unlearn_utils import profiles
from unlearn_utils.cache import paths
from unlearn_utils.data import tokens
from unlearn_utils.study import everything, method_paths, pool, released_code

METHOD = "ascent_kl_in_distribution"
RECIPE = profiles.Unlearning(learning_rate=3e-4, batch=2)
PROFILE = replace(
    profiles.PAPER,
    unlearning=RECIPE,
    shape=replace(profiles.PAPER.shape, context=512),
    corpus=replace(profiles.PAPER.corpus, measured=4),
)
RUN = method_paths.usual_run(PROFILE, 0, "github", METHOD)


def filled(rank, out):
    """Fill the target's measurements, a path with its weights and one without; and once more."""
    artifacts = [
        pool.measurements(PROFILE, pool.target(PROFILE)),
        method_paths.path(RUN, keep=True),
        method_paths.path(replace(RUN, replicate=1)),
    ]
    made = [everything.fill(artifact) for artifact in [*artifacts, *artifacts]]
    folders = [str(artifact.path) for artifact in artifacts]
    (out / f"{rank}.json").write_text(json.dumps({"made": made, "folders": folders}))


@pytest.fixture(scope="module")
def mirror(tmp_path_factory, text):
    tokenizer = tokens.train_tokenizer([text, *hubs.texts("general", 60)], 500)
    return hubs.mirror(tmp_path_factory.mktemp("hub"), tokenizer, seed=5)


@pytest.fixture(scope="module")
def stores(mirror, tmp_path_factory):
    """By the way of running: what each process said, and the folders of the artifacts."""
    found = {}
    for name, processes, environment in (("one", 1, {}), ("two", 2, {}), ("sharded", 2, sharded())):
        out = tmp_path_factory.mktemp(name)
        environment = environment | {paths.HUB: str(mirror), paths.STORE: str(out / "store")}
        codes = together(filled, out, processes=processes, environment=environment)
        assert set(codes) == {0}
        said = [out / f"{rank}.json" for rank in range(processes)]
        found[name] = [json.loads(path.read_text()) for path in said]
    return found


def folders(stores, way):
    """Return those of measurements and of both paths."""
    return [Path(folder) for folder in stores[way][0]["folders"]]


def test_what_is_there_is_not_filled_again_and_all_processes_agree(stores):
    for said in stores.values():
        for process in said:
            assert process["made"] == [True] * 3 + [False] * 3
            assert process["folders"] == said[0]["folders"]


@pytest.mark.parametrize("way", ["two", "sharded"])
def test_several_processes_measure_what_one_measures(stores, way):
    for ours, theirs in zip(folders(stores, way), folders(stores, "one"), strict=True):
        assert sorted(os.listdir(ours)) == sorted(os.listdir(theirs))
        tables = [path.name for path in ours.glob("*.parquet") if path.name != "history.parquet"]
        assert tables
        for name in tables:
            own = pd.read_parquet(ours / name)
            known = pd.read_parquet(theirs / name)
            assert own.id.tolist() == known.id.tolist()
            if "step" in own:
                assert own.step.tolist() == known.step.tolist()
            assert own.nll.tolist() == pytest.approx(known.nll.tolist(), rel=1e-4)


@pytest.mark.parametrize("way", ["two", "sharded"])
def test_several_processes_keep_the_weights_that_one_keeps(stores, way):
    _, ours, _ = folders(stores, way)
    _, theirs, _ = folders(stores, "one")
    kept = json.loads((ours / "ended.json").read_text())
    assert kept == json.loads((theirs / "ended.json").read_text())
    assert kept["kept"] > 0
    own = load_file(ours / "model.safetensors")
    known = load_file(theirs / "model.safetensors")
    assert own.keys() == known.keys()
    for name, weight in own.items():
        assert weight.dtype == torch.bfloat16
        assert torch.allclose(weight.float(), known[name].float(), atol=1e-3)


def test_a_batch_that_does_not_divide_is_named_before_anything_is_trained(monkeypatch):
    eight = SimpleNamespace(num_processes=8)
    monkeypatch.setattr(everything.distributed, "process_state", lambda: eight)
    monkeypatch.setattr(released_code, "tokenized", lambda *_: range(70))
    everything.check(profiles.PAPER)  # a quarter of 70 is 17, of which 16 are taken
    wrong = replace(PROFILE, unlearning=replace(RECIPE, batch=2))
    expected = r"profile paper: batches of \[1, 2\] do not divide among 8 processes"
    with pytest.raises(ValueError, match=expected):  # the half is of defect 4
        everything.check(wrong)


def test_the_batch_of_training_must_divide_too(monkeypatch):
    eight = SimpleNamespace(num_processes=8)
    monkeypatch.setattr(everything.distributed, "process_state", lambda: eight)
    monkeypatch.setattr(everything, "every_run", lambda profile: [])
    everything.check(profiles.LAPTOP)
    pretraining = replace(profiles.LAPTOP.pretraining, batch=12)
    with pytest.raises(ValueError, match=r"batches of \[12\] do not divide"):
        everything.check(replace(profiles.LAPTOP, pretraining=pretraining))
