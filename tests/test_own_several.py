"""`unlearn` in two processes (gloo, CPU): as in one, with one model and one voice; a mistake of one ends both; a killed run goes on.

Some start as a user does, by `accelerate launch`; the others by fork, which takes a tenth of the time.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout

import pandas as pd
import psutil
import pytest
import torch
from safetensors.torch import load_file
from test_distributed import CONFIGS, ROOT, files, sharded, together
from test_own import arguments, hub_folder, write_documents
from transformers import PreTrainedModel

from unlearn_utils.app import cards, commands, model_files
from unlearn_utils.engine import models, trainer

KL = "ascent_kl_in_distribution"
WEIGHTS = 1e-2  # tolerance: share of the way that the weights went. They differ by 3e-4 at most, where AdamW scales up small gradients
LOSSES, RESULTS = 1e-4, 1e-4  # nats; share of perplexities, accuracies and areas. They differ by 6e-6 and 2e-6


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    return write_documents(tmp_path_factory.mktemp("documents"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory, tokenizer):
    return hub_folder(tmp_path_factory.mktemp("llama"), "llama", tokenizer)


@pytest.fixture(scope="module")
def half(tmp_path_factory, tokenizer):
    """A model in bfloat16 with tied embeddings."""
    return hub_folder(tmp_path_factory.mktemp("half"), "qwen3", tokenizer, torch.bfloat16)


# ---------------------------------------------------------------------------------------------- how the command is started


def launched(given):
    """The command as a user starts it in two processes; its output is read with `communicate`."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CONFIGS / "ddp_2cpu.yaml", "--main_process_port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*launcher, "-m", "unlearn_utils", *given], cwd=ROOT, text=True, **pipes)


def command(rank, log, given, prepare=None, *more):
    """The command in one of the processes that `together` starts; what it says and its exit code are kept."""
    with open(log / f"{rank}.out", "w") as out, open(log / f"{rank}.err", "w") as err, redirect_stdout(out), redirect_stderr(err):
        importlib.reload(models)  # `process` fixes the precision, which the command's options decide
        if prepare:
            prepare(rank, *more)
        code = commands.main(given)
    (log / f"{rank}.code").write_text(str(code))


def in_two(log, given, prepare=None, *more, environment=None):
    """(exit code, stdout, stderr) of the command in each of two processes."""
    log.mkdir()
    assert together(command, log, given, prepare, *more, environment=environment) == [0, 0]
    return [(int((log / f"{r}.code").read_text()), (log / f"{r}.out").read_text(), (log / f"{r}.err").read_text()) for r in (0, 1)]


def check_same(base, one, other):
    """The folders hold the same run: documents, settings but the number of processes, losses, measurements, weights."""
    ours, theirs = (json.loads((f / "run.json").read_text()) for f in (one, other))
    assert (ours.pop("processes"), theirs.pop("processes")) == (1, 2)
    for key in ours.keys() - {"history", "micro_batch", "changed"}:
        assert ours[key] == theirs[key], key
    history = [pd.DataFrame(run["history"]) for run in (ours, theirs)]
    pd.testing.assert_frame_equal(*history, rtol=0, atol=LOSSES)
    results = [pd.read_csv(folder / "results.csv") for folder in (one, other)]
    pd.testing.assert_frame_equal(*results, rtol=RESULTS, atol=RESULTS)
    name = "model.safetensors" if (one / "model.safetensors").exists() else "adapter_model.safetensors"
    ours, theirs = (load_file(folder / name) for folder in (one, other))
    start = load_file(base / name) if (base / name).exists() else {k: torch.zeros_like(x) for k, x in ours.items() if "lora_B" in k}
    apart, moved = (sum((a[k].double() - b[k].double()).norm() ** 2 for k in start) ** 0.5 for a, b in ((ours, theirs), (ours, start)))
    assert ours.keys() == theirs.keys() and moved > 0 and apart < WEIGHTS * moved, (apart / moved).item()
    assert files(one) == files(other)


# ---------------------------------------------------------------------------------------------- the launcher


def kill(process):
    """Ends a launcher and its workers at once, which are in sessions of their own."""
    for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        os.kill(one.pid, signal.SIGKILL)
    process.communicate()


def test_a_killed_command_goes_on_to_what_one_process_gives(llama, documents, tmp_path):
    """195 steps, with a checkpoint every 20: killed after one of them, and started again. One process speaks, one model is left."""
    more = (KL, "--float32", "--learning-rate", 1e-5, "--epochs", 30, "--batch", 2)
    given = arguments(llama, documents, tmp_path / "two", *more, "--checkpoints", tmp_path / "checkpoints")
    first = launched(given)
    while not list(tmp_path.glob("checkpoints/*/*/checkpoint-*")) and first.poll() is None:
        time.sleep(0.01)
    kill(first)
    assert not (tmp_path / "two").exists() and list(tmp_path.glob("checkpoints/*/*/checkpoint-*"))
    (unfinished,) = tmp_path.glob(".two.*.part")
    unfinished.rmdir()  # nothing is in it
    again = launched(given)
    out, err = again.communicate(timeout=100)
    assert again.returncode == 0 and not any(word in err for word in ("Error", "Traceback", "find_unused")), err
    assert [out.count(line) for line in ("a local folder", "goes on after", "step 195 of 195", "the model, its tokenizer")] == [1] * 4
    step = int(out.split("unlearning: goes on after step ")[1].split()[0])
    assert step % 20 == 0 and 20 <= step < 195
    assert [path.name for path in tmp_path.iterdir()] == ["two"]
    assert commands.main(arguments(llama, documents, tmp_path / "one", *more)) == 0
    check_same(llama, tmp_path / "one", tmp_path / "two")


def test_a_mistake_is_one_line_of_the_launched_command(llama, documents, tmp_path):
    """The launcher adds a report of its own; no process of ours leaves a traceback."""
    (tmp_path / "retain.jsonl").write_text('{"text": "a"}\n{"text": \n')
    run = launched(arguments(llama, documents | {"retain": tmp_path / "retain.jsonl"}, tmp_path / "out", KL))
    out, err = run.communicate(timeout=100)
    assert run.returncode != 0 and out.strip() == ""
    (line,) = [line for line in err.splitlines() if "retain.jsonl" in line]
    assert line.startswith("error: ") and err.startswith(line) and "unlearn_utils/" not in err
    assert "exitcode  : 2" in err
    assert [p.name for p in tmp_path.iterdir()] == ["retain.jsonl"]


# ---------------------------------------------------------------------------------------------- DDP and FSDP, whole models and adapters

CASES = {  # options, and whether FSDP shards
    "DDP, adapters": (("--lora", "rank=4"), False),
    "DDP, layers computed again": (("--gradient-checkpointing",), False),
    "FSDP": ((), True),
    "FSDP, merged adapters": (("--lora", "rank=4", "--merge"), True),
}


@pytest.mark.parametrize("name", CASES)
def test_two_processes_give_what_one_gives(name, llama, documents, tmp_path):
    """KL over one epoch, so that the reference is read in every step; the second process has nothing of the last batch."""
    more, shard = CASES[name]
    given = (KL, "--float32", "--learning-rate", 1e-2 if "--lora" in more else 1e-3, *more)
    assert commands.main(arguments(llama, documents, tmp_path / "one", *given)) == 0
    environment = sharded("bf16") if shard else {}  # which --float32 overrules
    (code, out, err), other = in_two(tmp_path / "log", arguments(llama, documents, tmp_path / "two", *given), environment=environment)
    assert (code, err) == (0, "") and other == (0, "", "")
    check_same(llama, tmp_path / "one", tmp_path / "two")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", "one", "two"]


@pytest.mark.parametrize(("more", "precision"), [(("--float32",), "no"), (("--bf16", "--lora", "rank=4", "--merge"), "bf16")])
def test_a_sharded_model_is_saved_in_the_type_that_it_had(more, precision, half, documents, tmp_path):
    """Also where what is frozen stays in bfloat16 beside float32 adapters."""
    given = arguments(half, documents, tmp_path / "two", KL, "--learning-rate", 1e-2, *more)
    assert [code for code, *_ in in_two(tmp_path / "log", given, environment=sharded(precision))] == [0, 0]
    old, new = (load_file(folder / "model.safetensors") for folder in (half, tmp_path / "two"))
    assert old.keys() == new.keys() and {x.dtype for x in new.values()} == {torch.bfloat16}
    share = sum((old[k] != new[k]).sum().item() for k in old) / sum(x.numel() for x in old.values())
    run, results = json.loads((tmp_path / "two" / "run.json").read_text()), pd.read_csv(tmp_path / "two" / "results.csv")
    assert run["changed"] == pytest.approx(share) and share > 0.1
    before, after = (results[(results.model == m) & (results.split == "forget")].value.iloc[0] for m in ("before", "after"))
    assert after > 1.02 * before


# ---------------------------------------------------------------------------------------------- mistakes


def fails(rank, where, which, name, error):
    """Puts an error into a function, in one process."""
    if rank == which:

        def fail(*_, **__):
            raise error

        setattr(where, name, fail)


STAGES = {
    "the first reads": (0, model_files, "chunks", ValueError("the reason")),
    "the second loads": (1, model_files, "load", OSError("the reason")),
    "the first saves": (0, PreTrainedModel, "save_pretrained", OSError("the reason")),
    "the second measures": (1, cards, "measured", FloatingPointError("the reason")),
    "the first names": (0, cards.os, "replace", OSError("the reason")),
}


def mistaken(rank, stage):
    which, where, name, error = STAGES[stage]
    fails(rank, where, which, name, error)


@pytest.mark.parametrize("stage", STAGES)
def test_a_mistake_of_one_process_is_one_line_and_ends_both(stage, llama, documents, tmp_path):
    (tmp_path / "here").mkdir()
    given = arguments(llama, documents, tmp_path / "here" / "out")
    first, second = in_two(tmp_path / "log", given, mistaken, stage)
    code = 1 if isinstance(STAGES[stage][3], FloatingPointError) else 2
    assert (first[0], first[2]) == (code, "error: the reason\n") and second == (code, "", "")
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--batch", 3), "--batch 3: it is that of all 2 processes together; choose a multiple of 2"),
        (("--batch", 8, "--micro-batch", 8), "--micro-batch 8: must be positive and divide the batch of 8 among 2 processes"),
    ],
)
def test_a_batch_that_does_not_divide(more, said, llama, documents, tmp_path):
    found = in_two(tmp_path / "log", arguments(llama, documents, tmp_path / "out", "gradient_ascent", *more))
    assert found == [(2, "", f"error: {said}\n"), (2, "", "")] and not (tmp_path / "out").exists()


def exhausted(rank):
    """The second process alone is out of memory, in its second step."""
    if rank == 1:
        plain = trainer.ObjectiveTrainer.training_step

        def step(self, *given):
            if self.state.global_step == 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return plain(self, *given)

        trainer.ObjectiveTrainer.training_step = step


def test_memory_that_ends_in_one_process_is_said_by_it(llama, documents, tmp_path):
    """It does not wait for the other, which is in the middle of a step and loses its partner."""
    (tmp_path / "here").mkdir()
    (tmp_path / "log").mkdir()
    given = arguments(llama, documents, tmp_path / "here" / "out")
    codes = together(command, tmp_path / "log", given, exhausted)
    assert codes[1] == 0 and (tmp_path / "log" / "1.code").read_text() == "1" and codes[0] != 0
    said = (tmp_path / "log" / "1.err").read_text()
    assert said.startswith("error: out of memory in training: lower --micro-batch") and said.count("\n") == 1
    assert list((tmp_path / "here").iterdir()) == []


def test_the_other_commands_are_one_process(llama, documents, tmp_path):
    given = ["evaluate", "--model", str(llama), "--documents", str(documents["forget"])]
    first, second = in_two(tmp_path / "log", given)
    assert first == (2, "", "error: this command is one process, and 2 were started: only unlearn runs in several\n")
    assert second == (2, "", "")
