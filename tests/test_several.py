"""A step of the experiments filled by two processes is the one that one process fills; the first alone writes."""

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
from unlearn_utils.study import everything, pool, unlearning

METHOD = "ascent_kl_in_distribution"
SHORT, RECIPE = replace(profiles.PAPER.shape, context=512), profiles.Unlearning(learning_rate=3e-4, batch=2)
PROFILE = replace(profiles.PAPER, unlearning=RECIPE, shape=SHORT)


def filled(rank, out):
    """Fills the target's measurements, a run, and its repetition; then once more, when nothing is missing."""
    steps = [pool.measurements(PROFILE, pool.target(PROFILE)), unlearning.unlearning_run(PROFILE, "github", METHOD)]
    steps.append(unlearning.repeated_run(PROFILE, "github", METHOD, 1))
    made = [everything.fill(step) for step in [*steps, *steps]]
    (out / f"{rank}.json").write_text(json.dumps([made, [str(step.path) for step in steps]]))


@pytest.fixture(scope="module")
def mirror(tmp_path_factory, text):
    return hubs.mirror(tmp_path_factory.mktemp("hub"), tokens.train_tokenizer([text, *hubs.texts("general", 60)], 500), seed=5)


@pytest.fixture(scope="module")
def stores(mirror, tmp_path_factory):
    """By the way of running: what each process said, and the folders of the steps."""
    found = {}
    for name, processes, environment in (("one", 1, {}), ("two", 2, {}), ("sharded", 2, sharded())):
        out = tmp_path_factory.mktemp(name)
        environment = environment | {paths.HUB: str(mirror), "UNLEARN_STORE": str(out / "store")}
        assert set(together(filled, out, processes=processes, environment=environment)) == {0}
        found[name] = [json.loads((out / f"{rank}.json").read_text()) for rank in range(processes)]
    return found


def test_what_is_there_is_not_filled_again_and_all_processes_agree(stores):
    for said in stores.values():
        assert all(made == [True] * 3 + [False] * 3 for made, _ in said) and len({str(folders) for _, folders in said}) == 1


@pytest.mark.parametrize("way", ["two", "sharded"])
def test_several_processes_give_what_one_gives(stores, way):
    (_, one), (_, other) = stores["one"][0], stores[way][0]
    for mine, theirs in zip(one, other, strict=True):
        assert sorted(os.listdir(mine)) == sorted(os.listdir(theirs))
        for name in ("rows.parquet", "report.parquet", "trajectory.parquet"):
            if name in os.listdir(mine):
                a, b = (pd.read_parquet(f"{folder}/{name}") for folder in (mine, theirs))
                assert a.id.tolist() == b.id.tolist() and a.nll.tolist() == pytest.approx(b.nll.tolist(), rel=1e-4)
    (_, unlearned, _), (_, others, _) = one, other
    kept = [json.loads(Path(folder, "chosen.json").read_text()) for folder in (unlearned, others)]
    assert kept[0] == kept[1] and kept[0]["practitioner"] > 0
    weights = [load_file(f"{folder}/model.safetensors") for folder in (unlearned, others)]
    assert weights[0].keys() == weights[1].keys() and {x.dtype for x in weights[1].values()} == {torch.bfloat16}
    assert all(torch.allclose(x.float(), weights[1][name].float(), atol=1e-3) for name, x in weights[0].items())


def test_a_batch_that_does_not_divide_is_named_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr(everything.loop, "place", lambda: SimpleNamespace(num_processes=8))
    monkeypatch.setattr(everything.released, "documents", lambda *_: range(70))
    everything.check(profiles.PAPER)  # a quarter of 70 is 17, of which 16 are taken
    with pytest.raises(ValueError, match=r"profile paper: batches of \[2\] do not divide among 8 processes"):
        everything.check(replace(PROFILE, unlearning=replace(RECIPE, batch=16), grid=replace(PROFILE.grid, batches=(2,))))
