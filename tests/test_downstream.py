"""Tasks of lm-evaluation-harness, really run, on models of random weights.

They are local tasks, and one of the hub's out of a cache.
"""

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
from unlearn_utils.cache import paths, store
from unlearn_utils.engine import downstream, models
from unlearn_utils.findings import tasks
from unlearn_utils.study import extra_measurements, method_paths, pool

WORDS = [f"{a}{b}" for a in "bdfgkm" for b in ("a", "eo", "iuy", "oooo")]
WORDS = np.random.default_rng(0).permutation(WORDS).tolist()


def question(n):
    """A question with four words to choose from."""
    choices = [*WORDS[n:], *WORDS[:n]][:4]
    return {"question": f"muons decay; line {n}", "choices": choices, "answer": n * n % 3}


QUESTIONS = [question(n) for n in range(24)]
QUESTIONS.append(QUESTIONS[3])  # a copy, which counts with its original
COMMIT = "0123456789abcdef0123456789abcdef01234567"
DATA = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
doc_to_text: "{{{{question}}}} =>"
"""
CHOICE = """\
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
WRITTEN = """\
output_type: generate_until
doc_to_target: written
metric_list: [{metric: exact_match}]
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 5, do_sample: false}
"""
TEXT = """\
output_type: loglikelihood_rolling
doc_to_target: question
metric_list: [{metric: word_perplexity}]
"""


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
    """Write a task as a user writes one: a YAML file and a .jsonl file."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(q) + "\n" for q in questions))
    settings = DATA.format(name=name, data=data, cache=folder / "cache")
    (folder / f"{name}.yaml").write_text(settings + kind + more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tasks muons and leptons, which make the group particles."""
    folder = tmp_path_factory.mktemp("tasks")
    write_task(folder, "muons", CHOICE)
    louder = [q | {"question": q["question"].upper()} for q in QUESTIONS[:5]]
    write_task(folder, "leptons", CHOICE, louder)
    (folder / "particles.yaml").write_text("group: particles\ntask: [muons, leptons]\n")
    return folder


def answered(model, tokenizer, folder, *names, **more):
    """The model's answers to tasks of a folder."""
    return downstream.answers(model, tokenizer, downstream.load(names, folder), **more)


def value_of(rows, measure):
    """The mean of a measure."""
    return rows[rows.measure == measure].value.mean()


def choice_scores(model, tokenizer, question, prompt="{} =>"):
    """Of each choice: the summed log-probability of its tokens after the prompt.

    It is from the model's own logits.
    """
    asked = prompt.format(question["question"])
    context = tokenizer(asked)["input_ids"]
    scores = []
    for choice in question["choices"]:
        ids = tokenizer(f"{asked} {choice}")["input_ids"]
        assert ids[: len(context)] == context
        with torch.no_grad():
            log_p = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        places = range(len(context) - 1, len(ids) - 1)
        scores.append(log_p[places, ids[len(context) :]].sum().item())
    return np.array(scores)


# ---------------------------------------------------------------------------------------- values


def test_accuracy_is_that_of_the_likeliest_choice(model, tokenizer, folder):
    """acc by summed log-probability, acc_norm by that a character; choices have 2 to 5."""
    rows = answered(model, tokenizer, folder, "muons")
    found = downstream.summarise(rows).set_index("measure")
    scores = np.array([choice_scores(model, tokenizer, q) for q in QUESTIONS])
    right = np.array([q["answer"] for q in QUESTIONS])
    sizes = np.array([[len(choice) for choice in q["choices"]] for q in QUESTIONS])
    assert found.value["acc"] == pytest.approx((scores.argmax(1) == right).mean())
    assert found.value["acc_norm"] == pytest.approx(((scores / sizes).argmax(1) == right).mean())
    assert 0 < found.value["acc"] != found.value["acc_norm"] > 0
    assert (found.low < found.value).all()
    assert (found.value < found.high).all()
    assert set(found.n) == {24}


def test_a_written_answer_is_the_likeliest_text(model, tokenizer, tmp_path):
    """Every other question's right answer is what greedy decoding gives."""
    questions = []
    for n, asked in enumerate(QUESTIONS[:8]):
        prompt = tokenizer(f"{asked['question']} =>")["input_ids"]
        ids = list(prompt)
        with torch.no_grad():
            for _ in range(5):
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        written = tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
        questions.append(asked | {"written": "tea" if n % 2 else written})
    write_task(tmp_path, "essay", WRITTEN, questions)
    (found,) = downstream.summarise(answered(model, tokenizer, tmp_path, "essay")).itertuples()
    assert (found.task, found.measure, found.value, found.n) == ("essay", "exact_match", 0.5, 8)


def test_a_group_is_all_questions_of_its_tasks(model, tokenizer, folder):
    rows = answered(model, tokenizer, folder, "particles", "muons")
    group = rows[rows.task == "particles"]
    one = rows[rows.task == "muons"]
    assert len(group) == 2 * 30
    assert len(one) == 2 * 25
    assert set(one.id) < set(group.id)
    found = downstream.summarise(rows).set_index(["task", "measure"])
    assert found.value["particles", "acc"] == pytest.approx(value_of(group, "acc"))
    assert found.n["particles", "acc"] == 29
    (line,) = downstream.describe(downstream.load(["particles"], folder))
    assert line == "particles: 2 tasks, 0 shots, data json"


def test_shots_are_drawn_by_the_seed(build, tokenizer, tmp_path):
    write_task(tmp_path, "muons", CHOICE, more="num_fewshot: 2\n")
    model = build(0, context=128)
    one, again, other = (
        answered(model, tokenizer, tmp_path, "muons", seed=seed) for seed in (0, 0, 1)
    )
    assert one.equals(again)
    assert not one.id.equals(other.id)
    (line,) = downstream.describe(downstream.load(["muons"], tmp_path))
    assert line == "muons: 2 shots, data json"


# a warning of peft's use of transformers
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_adapters_answer_too(build, model, tokenizer, folder):
    """New ones change nothing; others do."""
    base = model_files.StoredModel("base", folder)
    lora = settings.LoraSettings(2, 4.0)
    adapted = lora_adapters.add_adapters(build(0, context=64), lora, 0, base)
    rows = answered(model, tokenizer, folder, "muons")
    assert answered(adapted, tokenizer, folder, "muons").equals(rows)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 1.0)
    assert not answered(adapted, tokenizer, folder, "muons").equals(rows)


def test_limit_is_the_first_questions(model, tokenizer, folder):
    rows = answered(model, tokenizer, folder, "muons")
    few = answered(model, tokenizer, folder, "muons", limit=5)
    same = rows[rows.id.isin(few.id)]
    assert few.reset_index(drop=True).equals(same.reset_index(drop=True))
    assert len(few) == 2 * 5
    with pytest.raises(ValueError, match="above 0, not 0"):
        answered(model, tokenizer, folder, "muons", limit=0)


def test_a_measure_that_is_no_mean_is_refused(model, tokenizer, tmp_path):
    """Perplexity is no mean over texts."""
    write_task(tmp_path, "text", TEXT)
    line = "text: no measure is a mean over questions.*word_perplexity"
    with pytest.raises(ValueError, match=line):
        answered(model, tokenizer, tmp_path, "text")


# ----------------------------------------------------------------------------------------- pairs


def test_a_model_differs_from_itself_by_nothing(model, tokenizer, folder):
    rows = [answered(model, tokenizer, folder, "muons") for _ in range(2)]
    found = downstream.differences(*rows)
    assert (found[["value", "low", "high"]] == 0).all(axis=None)
    assert list(found.measure) == ["acc", "acc_norm"]


def test_differences_are_paired(model, other, tokenizer, folder):
    """Where each question differs by the same, the interval has no width; unpaired it would."""
    rows = answered(model, tokenizer, folder, "muons")
    others = answered(other, tokenizer, folder, "muons")
    found = downstream.differences(rows, others)
    assert not rows.value.equals(others.value)
    assert found.measure.tolist() == ["acc", "acc_norm"]
    expected = [value_of(rows, name) - value_of(others, name) for name in found.measure]
    assert found.value.tolist() == pytest.approx(expected)
    shifted = downstream.differences(rows.assign(value=rows.value + 1), rows)
    assert (shifted[["value", "low", "high"]] == 1).all(axis=None)


def test_other_questions_are_not_paired(model, tokenizer, folder):
    rows = [answered(model, tokenizer, folder, "muons", limit=n) for n in (5, 6)]
    with pytest.raises(ValueError, match="same questions"):
        downstream.differences(*rows)


# --------------------------------------------------------------------------- the harness at work


def generator_states():
    numpy = np.random.get_state()[1].tolist()
    return random.getstate(), numpy, torch.get_rng_state().tolist()


def test_global_generators_are_given_back(model, tokenizer, folder):
    """The harness and its tasks draw from them."""
    before = generator_states()
    answered(model, tokenizer, folder, "muons", seed=3)
    assert generator_states() == before


def test_prompts_that_were_cut_are_one_warning(build, tokenizer, folder, capsys):
    line = r"exceeds model's maximum length.*the first of \d\d such"
    with pytest.warns(UserWarning, match=line) as found:
        answered(build(0, context=8), tokenizer, folder, "muons")
    assert len(found) == 1
    assert capsys.readouterr().err == ""


def test_the_paper_s_tasks_are_in_the_harness_and_run_no_code():
    index = downstream._builtin().task_index
    for name in profiles.TASKS:
        tasks = list(downstream._settings(name, index))
        assert len(tasks) == (57 if name == "mmlu" else 1)
        assert not any(task.get("unsafe_code") for task in tasks)
        shots = {task.get("num_fewshot") or 0 for task in tasks}
        assert shots == ({5} if name == "gsm8k" else {0})


def as_arc(question):
    """A question as ARC has it."""
    return {
        "question": question["question"],
        "choices": {"text": question["choices"], "label": [*"ABCD"]},
        "answerKey": "ABCD"[question["answer"]],
    }


def cached_arc(folder):
    """Make the cache that a run with a connection leaves, with our questions.

    It has Arrow files in a folder named by the commit.
    """
    splits = ("train", "validation", "test")
    file = folder / "q.jsonl"
    file.write_text("".join(json.dumps(as_arc(q)) + "\n" for q in QUESTIONS))
    files = dict.fromkeys(splits, str(file))
    first = str(folder / "first")
    data = datasets.load_dataset("json", data_files=files, cache_dir=first)
    made = Path(data["test"].cache_files[0]["filename"]).parent
    cached = folder / "cache" / "allenai___ai2_arc" / "ARC-Easy" / "0.0.0" / COMMIT
    shutil.copytree(made, cached)
    for split in splits:
        (cached / f"json-{split}.arrow").rename(cached / f"ai2_arc-{split}.arrow")
    info = json.loads((cached / "dataset_info.json").read_text())
    info |= {"config_name": "ARC-Easy", "dataset_name": "ai2_arc"}
    (cached / "dataset_info.json").write_text(json.dumps(info))
    return folder / "cache"


def test_a_hub_s_task_runs_from_the_cache(model, tokenizer, tmp_path, monkeypatch):
    """Our questions, in the harness's prompt."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cached_arc(tmp_path)))
    tasks = downstream.load(["arc_easy"])
    (line,) = downstream.describe(tasks)
    assert line == f"arc_easy: 0 shots, data allenai/ai2_arc, commit {COMMIT}"
    rows = downstream.answers(model, tokenizer, tasks)
    expected = []
    for asked in QUESTIONS:
        scores = choice_scores(model, tokenizer, asked, "Question: {}\nAnswer:")
        expected.append(float(scores.argmax() == asked["answer"]))
    assert rows[rows.measure == "acc"].value.tolist() == expected


# ----------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def saved(tmp_path_factory, model, other, tokenizer):
    """Two models in folders."""
    folders = [tmp_path_factory.mktemp(name) for name in ("unlearned", "target")]
    for folder, kept in zip(folders, (model, other), strict=True):
        kept.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return [str(folder) for folder in folders]


def test_the_command_writes_a_table(saved, model, other, tokenizer, folder, tmp_path, capsys):
    one, two = saved
    csv = tmp_path / "out.csv"
    given = ["--tasks", "muons,leptons", "--task-folder", str(folder), "--limit", "10"]
    given += ["--out", str(csv)]
    assert commands.main(["evaluate", "--model", one, "--against", two, *given]) == 0
    out = capsys.readouterr().out
    assert "muons: 0 shots, data json" in out
    assert "acc_norm" in out
    assert f"{one} - {two}" in out
    table = pd.read_csv(csv)
    assert list(table) == ["model", "task", "measure", "value", "low", "high", "n"]
    parts = []  # every interval is that of a task alone
    tasks = ("muons", "leptons")
    rows = {task: answered(model, tokenizer, folder, task, limit=10) for task in tasks}
    others = {task: answered(other, tokenizer, folder, task, limit=10) for task in tasks}
    parts += [downstream.summarise(rows[task]).assign(model=one) for task in tasks]
    parts += [downstream.summarise(others[task]).assign(model=two) for task in tasks]
    for task in tasks:
        difference = downstream.differences(rows[task], others[task])
        parts.append(difference.assign(model=f"{one} - {two}"))
    expected = pd.concat(parts, ignore_index=True)[list(table)]
    pd.testing.assert_frame_equal(table, expected)
    assert commands.main(["compare", "--models", two, *given]) == 2
    assert "already there" in capsys.readouterr().err
    assert pd.read_csv(csv).equals(table)


MISTAKES = [
    (
        ["--tasks", "muon", "--task-folder", "FOLDER"],
        ["muon: no task of lm-evaluation-harness or of", "lm-eval ls tasks"],
    ),
    (
        ["--tasks", "arc_easy"],
        [
            "arc_easy cannot be loaded",
            "ai2_arc on the hub",
            "with a connection",
            "HF_HUB_OFFLINE=1",
        ],
    ),
    (["--tasks", "humaneval"], ["humaneval runs code that the model wrote", "--unsafe-code"]),
    (["--tasks", "running", "--task-folder", "WRONG"], ["running runs code that the model wrote"]),
    (["--tasks", "lost", "--task-folder", "WRONG"], ["lost cannot be loaded", "nowhere.jsonl"]),
    (["--tasks", "muons", "--task-folder", "nowhere"], ["nowhere: no folder of tasks"]),
    (["--tasks", "muons", "--task-folder", "FOLDER", "--limit", "0"], ["above 0, not 0"]),
    (["--tasks", "muons", "--unseen", "a.txt"], ["--unseen goes with --documents only"]),
    (["--documents", "FOLDER", "--limit", "5"], ["--limit goes with --tasks only"]),
]


CODE = """\
task: code
unsafe_code: true
dataset_path: json
process_docs: !function code.process
"""


@pytest.mark.parametrize(
    ("given", "said"), MISTAKES, ids=[" ".join(given) for given, _ in MISTAKES]
)
def test_a_mistake_is_one_line(given, said, saved, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "running.yaml").write_text("group: running\ntask: [code]\n")
    (tmp_path / "code.yaml").write_text(CODE)
    (tmp_path / "code.py").write_text("raise SystemExit('this ran')")
    lost = DATA.format(name="lost", data=tmp_path / "nowhere.jsonl", cache=tmp_path)
    (tmp_path / "lost.yaml").write_text(lost + CHOICE)
    places = {"FOLDER": str(folder), "WRONG": str(tmp_path)}
    given = [places.get(word, word) for word in given]
    csv = tmp_path / "out.csv"
    assert commands.main(["evaluate", "--model", saved[0], "--out", str(csv), *given]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert all(part in err for part in said), err
    assert not csv.exists()


def test_without_the_extra_one_line_says_what_to_install(saved, folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    given = ["--tasks", "muons", "--task-folder", str(folder)]
    assert commands.main(["evaluate", "--model", saved[0], *given]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "pip install -e '.[downstream]'" in err


def test_tasks_or_documents(saved, capsys):
    for given in ([], ["--tasks", "muons", "--documents", "a.txt"]):
        with pytest.raises(SystemExit, match="2"):
            commands.main(["evaluate", "--model", saved[0], *given])
    assert "not allowed with" in capsys.readouterr().err


# ---------------------------------------------------------------------------------- of a profile


def test_the_tasks_of_a_profile_compare_each_unlearned_model_with_the_target(
    build, tokenizer, folder, tmp_path, monkeypatch
):
    """Two stored models; the profile names a task that is local here.

    The artifact is stored, and the difference is that of the answers.
    """
    monkeypatch.setenv(paths.STORE, str(tmp_path / "store"))
    load = downstream.load
    monkeypatch.setattr(downstream, "load", lambda names, include=folder: load(names, include))
    monkeypatch.setattr(extra_measurements, "tokenizer", lambda profile: tokenizer)

    def stored(seed):
        model = build(seed, context=64)
        return store.Artifact("made", 1, {"seed": seed}, lambda out: models.save(model, out))

    target, unlearned = stored(0), stored(1)
    profile = replace(profiles.GPU, tasks=("muons",), resamples=50, domains=("d",), replicates=(7,))
    ran = []

    def make_all(runs):
        ran.extend(runs)
        return [unlearned]

    monkeypatch.setattr(tasks, "METHODS", ["m"])
    monkeypatch.setattr(pool, "target", lambda profile, replicate: target)
    monkeypatch.setattr(method_paths, "make_all", make_all)
    found = tasks.downstream_tasks(profile, 0).set_index(["model", "target_domain", "measure"])
    assert len(found) == 4
    assert ran == [method_paths.usual_run(profile, 7, "d", "m")]
    assert method_paths.keeps(ran[0])
    assert extra_measurements.task_answers(profile, unlearned).done()
    rows, others = (answered(build(s, context=64), tokenizer, folder, "muons") for s in (0, 1))
    for measure in ("acc", "acc_norm"):
        before = value_of(rows, measure)
        lost = value_of(others, measure) - before
        assert found.value["target", "", measure] == before
        assert found.value["m - target", "d", measure] == pytest.approx(lost)
