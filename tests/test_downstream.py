"""Tasks of lm-evaluation-harness, really run, on models of random weights: local tasks, and one of the hub's out of a cache."""

import json
import random
import shutil
import socket
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch

from unlearn_utils import profiles
from unlearn_utils.app import commands, lora_adapters, model_files, settings
from unlearn_utils.cache import store
from unlearn_utils.engine import downstream, models
from unlearn_utils.findings import reports
from unlearn_utils.study import extra_measurements, pool

WORDS = np.random.default_rng(0).permutation([f"{a}{b}" for a in "bdfgkm" for b in ("a", "eo", "iuy", "oooo")]).tolist()
QUESTIONS = [{"question": f"muons decay; line {n}", "choices": [*WORDS[n:], *WORDS[:n]][:4], "answer": n * n % 3} for n in range(24)]
QUESTIONS.append(QUESTIONS[3])  # a copy, which counts with its original
COMMIT = "0123456789abcdef0123456789abcdef01234567"
DATA = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
doc_to_text: "{{{{question}}}} =>"
"""
CHOICE = "output_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: answer\n"
KINDS = {
    "choice": CHOICE + "metric_list: [{metric: acc}, {metric: acc_norm}]\n",
    "written": "output_type: generate_until\ndoc_to_target: written\nmetric_list: [{metric: exact_match}]\n"
    'generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 5, do_sample: false}\n',
    "text": "output_type: loglikelihood_rolling\ndoc_to_target: question\nmetric_list: [{metric: word_perplexity}]\n",
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was tried"))


@pytest.fixture(scope="module")
def model(build):
    return build(0, context=64)


@pytest.fixture(scope="module")
def other(build):
    return build(1, context=64)


def write_task(folder, name, kind, questions=QUESTIONS, more=""):
    """A task as a user writes one: a YAML file and a .jsonl file."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(q) + "\n" for q in questions))
    (folder / f"{name}.yaml").write_text(DATA.format(name=name, data=data, cache=folder / "cache") + KINDS[kind] + more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tasks muons and leptons, which make the group particles."""
    folder = tmp_path_factory.mktemp("tasks")
    write_task(folder, "muons", "choice")
    write_task(folder, "leptons", "choice", [q | {"question": q["question"].upper()} for q in QUESTIONS[:5]])
    (folder / "particles.yaml").write_text("group: particles\ntask: [muons, leptons]\n")
    return folder


def answered(model, tokenizer, folder, *names, **more):
    return downstream.answers(model, tokenizer, downstream.load(names, folder), **more)


def choice_scores(model, tokenizer, question, prompt="{} =>"):
    """Of each choice: the summed log-probability of its tokens after the prompt, from the model's own logits."""
    asked = prompt.format(question["question"])
    context, scores = tokenizer(asked)["input_ids"], []
    for choice in question["choices"]:
        ids = tokenizer(f"{asked} {choice}")["input_ids"]
        assert ids[: len(context)] == context
        with torch.no_grad():
            log_p = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        scores.append(log_p[range(len(context) - 1, len(ids) - 1), ids[len(context) :]].sum().item())
    return np.array(scores)


# ---------------------------------------------------------------------------------------------- values


def test_accuracy_is_that_of_the_likeliest_choice(model, tokenizer, folder):
    """acc by summed log-probability, acc_norm by that a character; choices have 2 to 5."""
    found = downstream.measure(model, tokenizer, ["muons"], include=folder).set_index("measure")
    scores, right = np.array([choice_scores(model, tokenizer, q) for q in QUESTIONS]), np.array([q["answer"] for q in QUESTIONS])
    sizes = np.array([[len(c) for c in q["choices"]] for q in QUESTIONS])
    assert found.value["acc"] == pytest.approx((scores.argmax(1) == right).mean())
    assert found.value["acc_norm"] == pytest.approx(((scores / sizes).argmax(1) == right).mean())
    assert 0 < found.value["acc"] != found.value["acc_norm"] > 0
    assert (found.low < found.value).all() and (found.value < found.high).all() and set(found.n) == {24}


def test_a_written_answer_is_the_likeliest_text(model, tokenizer, tmp_path):
    """Every other question's right answer is what greedy decoding gives."""
    questions = []
    for n, question in enumerate(QUESTIONS[:8]):
        ids = prompt = tokenizer(f"{question['question']} =>")["input_ids"]
        with torch.no_grad():
            for _ in range(5):
                ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
        questions.append(question | {"written": "tea" if n % 2 else tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)})
    write_task(tmp_path, "essay", "written", questions)
    found = downstream.measure(model, tokenizer, ["essay"], include=tmp_path)
    assert found[["task", "measure", "value", "n"]].values.tolist() == [["essay", "exact_match", 0.5, 8]]


def test_a_group_is_all_questions_of_its_tasks(model, tokenizer, folder):
    rows = answered(model, tokenizer, folder, "particles", "muons")
    group, one = rows[rows.task == "particles"], rows[rows.task == "muons"]
    assert len(group) == 2 * 30 and len(one) == 2 * 25 and set(one.id) < set(group.id)
    found = downstream.summarise(rows).set_index(["task", "measure"])
    assert found.value["particles", "acc"] == pytest.approx(group[group.measure == "acc"].value.mean())
    assert found.n["particles", "acc"] == 29
    assert downstream.described(downstream.load(["particles"], folder)) == ["particles: 2 tasks, 0 shots, data json"]


def test_shots_are_drawn_by_the_seed(build, tokenizer, tmp_path):
    write_task(tmp_path, "muons", "choice", more="num_fewshot: 2\n")
    rows = [answered(build(0, context=128), tokenizer, tmp_path, "muons", seed=seed) for seed in (0, 0, 1)]
    assert rows[0].equals(rows[1]) and not rows[0].id.equals(rows[2].id)
    assert downstream.described(downstream.load(["muons"], tmp_path)) == ["muons: 2 shots, data json"]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's, of transformers
def test_adapters_answer_too(build, model, tokenizer, folder):
    """New ones change nothing; others do."""
    adapted = lora_adapters.add_adapters(build(0, context=64), settings.LoraSettings(2, 4.0), 0, model_files.StoredModel("base", folder))
    rows, same = (answered(m, tokenizer, folder, "muons") for m in (model, adapted))
    assert same.equals(rows)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 1.0)
    assert not answered(adapted, tokenizer, folder, "muons").equals(rows)


def test_limit_is_the_first_questions(model, tokenizer, folder):
    rows, few = answered(model, tokenizer, folder, "muons"), answered(model, tokenizer, folder, "muons", limit=5)
    assert few.reset_index(drop=True).equals(rows[rows.id.isin(few.id)].reset_index(drop=True)) and len(few) == 2 * 5
    with pytest.raises(ValueError, match="above 0, not 0"):
        answered(model, tokenizer, folder, "muons", limit=0)


def test_a_measure_that_is_no_mean_is_refused(model, tokenizer, tmp_path):
    """Perplexity is no mean over texts."""
    write_task(tmp_path, "text", "text")
    with pytest.raises(ValueError, match="text: no measure is a mean over questions.*word_perplexity"):
        answered(model, tokenizer, tmp_path, "text")


# ---------------------------------------------------------------------------------------------- pairs


def test_a_model_differs_from_itself_by_nothing(model, tokenizer, folder):
    rows = [answered(model, tokenizer, folder, "muons") for _ in range(2)]
    found = downstream.differences(*rows)
    assert (found[["value", "low", "high"]] == 0).all(axis=None) and list(found.measure) == ["acc", "acc_norm"]


def test_differences_are_paired(model, other, tokenizer, folder):
    """Where each question differs by the same, the interval has no width; unpaired it would."""
    rows, others = (answered(m, tokenizer, folder, "muons") for m in (model, other))
    found = downstream.differences(rows, others)
    assert not rows.value.equals(others.value)
    assert found.value.tolist() == pytest.approx([(rows.value - others.value)[rows.measure == m].mean() for m in ("acc", "acc_norm")])
    shifted = downstream.differences(rows.assign(value=rows.value + 1), rows)
    assert (shifted[["value", "low", "high"]] == 1).all(axis=None)


def test_other_questions_are_not_paired(model, tokenizer, folder):
    rows = [answered(model, tokenizer, folder, "muons", limit=n) for n in (5, 6)]
    with pytest.raises(ValueError, match="same questions"):
        downstream.differences(*rows)


# ---------------------------------------------------------------------------------------------- the harness at work


def test_global_generators_are_given_back(model, tokenizer, folder):
    """The harness and its tasks draw from them."""
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    answered(model, tokenizer, folder, "muons", seed=3)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states


def test_prompts_that_were_cut_are_one_warning(build, tokenizer, folder, capsys):
    with pytest.warns(UserWarning, match=r"exceeds model's maximum length.*the first of \d\d such") as found:
        answered(build(0, context=8), tokenizer, folder, "muons")
    assert len(found) == 1 and capsys.readouterr().err == ""


def test_the_paper_s_tasks_are_in_the_harness_and_run_no_code():
    index = downstream._builtin().task_index
    settings = {name: list(downstream._settings(name, index)) for name in profiles.TASKS}
    assert not [s["task"] for several in settings.values() for s in several if s.get("unsafe_code")]
    assert {name: len(several) for name, several in settings.items()} == dict.fromkeys(profiles.TASKS, 1) | {"mmlu": 57}
    assert {s.get("num_fewshot", 0) or 0 for s in settings["gsm8k"]} == {5}
    assert {s.get("num_fewshot", 0) or 0 for name in set(profiles.TASKS) - {"gsm8k"} for s in settings[name]} == {0}


def test_a_hub_s_task_runs_from_the_cache(model, tokenizer, tmp_path, monkeypatch):
    """As a run with a connection leaves it: Arrow files in a folder named by the commit. Our questions in the harness's prompt."""
    rows, splits = [], ("train", "validation", "test")
    for q in QUESTIONS:
        rows.append({"question": q["question"], "choices": {"text": q["choices"], "label": [*"ABCD"]}, "answerKey": "ABCD"[q["answer"]]})
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = datasets.load_dataset("json", data_files=dict.fromkeys(splits, str(tmp_path / "q.jsonl")), cache_dir=str(tmp_path / "first"))
    cached = tmp_path / "cache" / "allenai___ai2_arc" / "ARC-Easy" / "0.0.0" / COMMIT
    shutil.copytree(Path(data["test"].cache_files[0]["filename"]).parent, cached)
    for split in splits:
        (cached / f"json-{split}.arrow").rename(cached / f"ai2_arc-{split}.arrow")
    info = json.loads((cached / "dataset_info.json").read_text())
    (cached / "dataset_info.json").write_text(json.dumps(info | {"config_name": "ARC-Easy", "dataset_name": "ai2_arc"}))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    found = downstream.load(["arc_easy"])
    assert downstream.described(found) == [f"arc_easy: 0 shots, data allenai/ai2_arc, commit {COMMIT}"]
    scores = [choice_scores(model, tokenizer, q, "Question: {}\nAnswer:") for q in QUESTIONS]
    rows = downstream.answers(model, tokenizer, found)
    assert rows[rows.measure == "acc"].value.tolist() == [float(s.argmax() == q["answer"]) for s, q in zip(scores, QUESTIONS, strict=True)]


# ---------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def saved(tmp_path_factory, model, other, tokenizer):
    """Two models in folders."""
    folders = [tmp_path_factory.mktemp(name) for name in ("unlearned", "target")]
    for folder, kept in zip(folders, (model, other), strict=True):
        kept.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return [str(folder) for folder in folders]


def test_the_command_writes_a_table(saved, model, other, tokenizer, folder, tmp_path, capsys):
    csv, (one, two) = tmp_path / "out.csv", saved
    given = ["--tasks", "muons,leptons", "--task-folder", str(folder), "--limit", "10", "--out", str(csv)]
    assert commands.main(["evaluate", "--model", one, "--against", two, *given]) == 0
    table, out = pd.read_csv(csv), capsys.readouterr().out
    assert list(table) == ["model", "task", "measure", "value", "low", "high", "n"]
    rows = [answered(m, tokenizer, folder, "muons", "leptons", limit=10) for m in (model, other)]
    parts = [*map(downstream.summarise, rows), downstream.differences(*rows)]
    expected = pd.concat([part.assign(model=name) for part, name in zip(parts, (one, two, f"{one} - {two}"), strict=True)])
    pd.testing.assert_frame_equal(table, expected[list(table)].reset_index(drop=True))
    assert "muons: 0 shots, data json" in out and "acc_norm" in out and f"{one} - {two}" in out
    assert commands.main(["compare", "--models", two, *given]) == 2
    assert "already there" in capsys.readouterr().err and pd.read_csv(csv).equals(table)


MISTAKES = [
    (["--tasks", "muon", "--task-folder", "FOLDER"], ["muon: no task of lm-evaluation-harness or of", "lm-eval ls tasks"]),
    (["--tasks", "arc_easy"], ["arc_easy cannot be loaded", "allenai/ai2_arc on the hub", "with a connection", "HF_HUB_OFFLINE=1"]),
    (["--tasks", "humaneval"], ["humaneval runs code that the model wrote", "--unsafe-code"]),
    (["--tasks", "running", "--task-folder", "WRONG"], ["running runs code that the model wrote"]),
    (["--tasks", "lost", "--task-folder", "WRONG"], ["lost cannot be loaded", "nowhere.jsonl"]),
    (["--tasks", "muons", "--task-folder", "nowhere"], ["nowhere: no folder of tasks"]),
    (["--tasks", "muons", "--task-folder", "FOLDER", "--limit", "0"], ["above 0, not 0"]),
    (["--tasks", "muons", "--unseen", "a.txt"], ["--unseen goes with --documents only"]),
    (["--documents", "FOLDER", "--limit", "5"], ["--limit goes with --tasks only"]),
]


@pytest.mark.parametrize(("given", "said"), MISTAKES, ids=[" ".join(given) for given, _ in MISTAKES])
def test_a_mistake_is_one_line(given, said, saved, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "running.yaml").write_text("group: running\ntask: [code]\n")
    (tmp_path / "code.yaml").write_text("task: code\nunsafe_code: true\ndataset_path: json\nprocess_docs: !function code.process\n")
    (tmp_path / "code.py").write_text("raise SystemExit('this ran')")
    (tmp_path / "lost.yaml").write_text(DATA.format(name="lost", data=tmp_path / "nowhere.jsonl", cache=tmp_path) + KINDS["choice"])
    csv, places = tmp_path / "out.csv", {"FOLDER": str(folder), "WRONG": str(tmp_path)}
    assert commands.main(["evaluate", "--model", saved[0], "--out", str(csv), *(places.get(x, x) for x in given)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and all(part in err for part in said), err
    assert not csv.exists()


def test_without_the_extra_one_line_says_what_to_install(saved, folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    assert commands.main(["evaluate", "--model", saved[0], "--tasks", "muons", "--task-folder", str(folder)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "pip install -e '.[downstream]'" in err


def test_tasks_or_documents(saved, capsys):
    for given in ([], ["--tasks", "muons", "--documents", "a.txt"]):
        with pytest.raises(SystemExit, match="2"):
            commands.main(["evaluate", "--model", saved[0], *given])
    assert "not allowed with" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- of a profile


def test_the_tasks_of_a_profile_compare_each_unlearned_model_with_the_target(build, tokenizer, folder, tmp_path, monkeypatch):
    """Two stored models; the profile names a task that is local here. The step is stored, and the difference is that of the answers."""
    monkeypatch.setenv("UNLEARN_STORE", str(tmp_path / "store"))
    load = downstream.load
    monkeypatch.setattr(downstream, "load", lambda names, include=folder: load(names, include))
    monkeypatch.setattr(extra_measurements, "tokenizer", lambda profile: tokenizer)
    steps = [store.Artifact("made", 1, {"seed": s}, lambda out, s=s: models.save(build(s, context=64), out)) for s in (0, 1)]
    monkeypatch.setattr(pool, "target", lambda profile: steps[0])
    profile = replace(profiles.GPU, tasks=("muons",), resamples=50)
    runs = pd.DataFrame({"method": ["m", "m"], "target_domain": ["d", "d"], "seed": [0, 1], "entry": [steps[1]] * 2})
    found = reports.downstream_tasks(profile, runs, 0).set_index(["model", "measure"])
    rows = [answered(build(s, context=64), tokenizer, folder, "muons") for s in (0, 1)]
    for measure in ("acc", "acc_norm"):
        before, after = (part[part.measure == measure].value.mean() for part in rows)
        assert found.value["target", measure] == before and found.value["m - target", measure] == pytest.approx(after - before)
    assert len(found) == 4 and extra_measurements.task_answers(profile, steps[1]).done()
