"""`unlearn` in two processes (gloo, CPU): as in one, with one model and one voice.

A mistake of one ends both; a killed run goes on. Some start as a user does, by `accelerate launch`;
the others by fork, which takes a tenth of the time.
"""

import importlib
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from safetensors.torch import load_file
from test_distributed import CONFIGS, ROOT, files, sharded, together
from user_models import arguments, record, value, write_model

from unlearn_utils.app import commands, model_files, output_folder, user_documents
from unlearn_utils.engine import models, trainer

KL = "ascent_kl_in_distribution"
# tolerances: the share of the way that the weights went, which differ by 3e-4 at most, where AdamW
# scales up small gradients
WEIGHTS = 1e-2
# nats, which differ by 6e-6; the share of perplexities, accuracies and areas, by 2e-6
LOSSES = 1e-4
RESULTS = 1e-4


@pytest.fixture(scope="module")
def half(tmp_path_factory, tokenizer):
    """The folder of a model in bfloat16 with tied embeddings."""
    return write_model(tmp_path_factory.mktemp("half"), "qwen3", tokenizer, torch.bfloat16)


# -------------------------------------------------------------------------- how the command starts


def launched(given):
    """Start the command as a user does, in two processes; `communicate` reads its output."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    config = ["--config_file", CONFIGS / "ddp_2cpu.yaml", "--main_process_port", "0"]
    return subprocess.Popen(
        [*launcher, *config, "-m", "unlearn_utils", *given],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def command(rank, log, given, prepare=None, *more):
    """Run the command in one of the processes that `together` starts.

    What it says and its exit code are kept in files of `log`. `prepare(rank, *more)` comes first.
    """
    with (
        open(log / f"{rank}.out", "w") as out,
        open(log / f"{rank}.err", "w") as err,
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        # what starts the process fixes the precision, which the command's options decide
        importlib.reload(models)
        if prepare:
            prepare(rank, *more)
        code = commands.main(given)
    (log / f"{rank}.code").write_text(str(code))


def in_two(log, given, prepare=None, *more, environment=None):
    """Return (exit code, stdout, stderr) of the command in each of two processes."""
    log.mkdir()
    codes = together(command, log, given, prepare, *more, environment=environment)
    assert codes == [0, 0]
    found = []
    for rank in (0, 1):
        code, out, err = ((log / f"{rank}.{kind}").read_text() for kind in ("code", "out", "err"))
        found.append((int(code), out, err))
    return found


# ------------------------------------------------------------------------------- the same as in one


def check_same(base, one, other):
    """Check that two folders hold the same run, of one process and of two."""
    ours, theirs = record(one), record(other)
    assert (ours["processes"], theirs["processes"]) == (1, 2)
    for key in ours.keys() - {"processes", "history", "micro_batch", "changed"}:
        assert ours[key] == theirs[key], key
    histories = [pd.DataFrame(run["history"]) for run in (ours, theirs)]
    pd.testing.assert_frame_equal(*histories, rtol=0, atol=LOSSES)
    results = [pd.read_csv(folder / "results.csv") for folder in (one, other)]
    pd.testing.assert_frame_equal(*results, rtol=RESULTS, atol=RESULTS)
    check_same_weights(base, one, other)
    assert files(one) == files(other)


def check_same_weights(base, one, other):
    """Check weights or adapters, against the way that they went from the base's, or from zero."""
    name = "model.safetensors"
    if not (one / name).exists():
        name = "adapter_model.safetensors"
    ours, theirs = load_file(one / name), load_file(other / name)
    assert ours.keys() == theirs.keys()
    if (base / name).exists():
        start = load_file(base / name)
    else:
        start = {key: torch.zeros_like(x) for key, x in ours.items() if "lora_B" in key}

    def distance(a, b):
        return sum((a[key].double() - b[key].double()).norm() ** 2 for key in start) ** 0.5

    apart, moved = distance(ours, theirs), distance(ours, start)
    assert moved > 0
    assert apart < WEIGHTS * moved, (apart / moved).item()


# ------------------------------------------------------------------------------------ the launcher


def kill(process):
    """End a launcher and its workers, which are in sessions of their own, at once."""
    launcher = psutil.Process(process.pid)
    for one in [launcher, *launcher.children(recursive=True)]:
        os.kill(one.pid, signal.SIGKILL)
    process.communicate()


def test_a_killed_command_goes_on_to_what_one_process_gives(llama, documents, tmp_path):
    """Of 195 steps there is a checkpoint every 20: it is killed after one, and started again.

    One process speaks, one model is left.
    """
    more = (KL, "--float32", "--learning-rate", 1e-5, "--epochs", 30, "--batch", 2)
    kept = ("--checkpoints", tmp_path / "checkpoints")
    given = arguments(llama, documents, tmp_path / "two", *more, *kept)
    first = launched(given)
    while not list(tmp_path.glob("checkpoints/*/*/checkpoint-*")) and first.poll() is None:
        time.sleep(0.01)
    kill(first)
    assert not (tmp_path / "two").exists()
    assert list(tmp_path.glob("checkpoints/*/*/checkpoint-*"))
    (unfinished,) = tmp_path.glob(".two.*.part")
    unfinished.rmdir()  # nothing is in it

    again = launched(given)
    out, err = again.communicate(timeout=100)
    assert again.returncode == 0
    assert not any(word in err for word in ("Error", "Traceback", "find_unused")), err
    for line in ("a local folder", "goes on after", "step 195 of 195", "the model, its tokenizer"):
        assert out.count(line) == 1, line
    step = int(out.split("unlearning: goes on after step ")[1].split()[0])
    assert step % 20 == 0
    assert 20 <= step < 195
    assert [path.name for path in tmp_path.iterdir()] == ["two"]

    assert commands.main(arguments(llama, documents, tmp_path / "one", *more)) == 0
    check_same(llama, tmp_path / "one", tmp_path / "two")


def test_a_mistake_is_one_line_of_the_launched_command(llama, documents, tmp_path):
    """The launcher adds a report of its own; no process of ours leaves a traceback."""
    retain = tmp_path / "retain.jsonl"
    retain.write_text('{"text": "a"}\n{"text": \n')
    run = launched(arguments(llama, documents | {"retain": retain}, tmp_path / "out", KL))
    out, err = run.communicate(timeout=100)
    assert run.returncode != 0
    assert out.strip() == ""
    (line,) = [line for line in err.splitlines() if "retain.jsonl" in line]
    assert line.startswith("error: ")
    assert err.startswith(line)
    assert "unlearn_utils/" not in err
    assert "exitcode  : 2" in err
    assert list(tmp_path.iterdir()) == [retain]


# -------------------------------------------------------- DDP and FSDP, whole models and adapters

CASES = {  # options, and whether FSDP shards
    "DDP, adapters": (("--lora", "rank=4"), False),
    "DDP, layers computed again": (("--gradient-checkpointing",), False),
    "FSDP": ((), True),
    "FSDP, merged adapters": (("--lora", "rank=4", "--merge"), True),
}


@pytest.mark.parametrize("name", CASES)
def test_two_processes_give_what_one_gives(name, llama, documents, tmp_path):
    """KL over one epoch, so that the reference is read in every step.

    The second process has nothing of the last batch.
    """
    more, shard = CASES[name]
    rate = 1e-2 if "--lora" in more else 1e-3
    given = (KL, "--float32", "--learning-rate", rate, *more)
    assert commands.main(arguments(llama, documents, tmp_path / "one", *given)) == 0

    environment = sharded("bf16") if shard else {}  # which --float32 overrules
    of_two = arguments(llama, documents, tmp_path / "two", *given)
    first, second = in_two(tmp_path / "log", of_two, environment=environment)
    code, _, err = first
    assert (code, err) == (0, "")
    assert second == (0, "", "")
    check_same(llama, tmp_path / "one", tmp_path / "two")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "one", "two"]


@pytest.mark.parametrize(
    ("more", "precision"),
    [(("--float32",), "no"), (("--bf16", "--lora", "rank=4", "--merge"), "bf16")],
)
def test_a_sharded_model_is_saved_in_the_type_that_it_had(
    more, precision, half, documents, tmp_path
):
    """Also where what is frozen stays in bfloat16 beside float32 adapters."""
    out = tmp_path / "two"
    given = arguments(half, documents, out, KL, "--learning-rate", 1e-2, *more)
    found = in_two(tmp_path / "log", given, environment=sharded(precision))
    assert [code for code, *_ in found] == [0, 0]

    old, new = load_file(half / "model.safetensors"), load_file(out / "model.safetensors")
    assert old.keys() == new.keys()
    assert {weight.dtype for weight in new.values()} == {torch.bfloat16}
    changed = sum((old[name] != new[name]).sum().item() for name in old)
    share = changed / sum(weight.numel() for weight in old.values())
    assert record(out)["changed"] == pytest.approx(share)
    assert share > 0.1
    results = pd.read_csv(out / "results.csv")
    before = value(results, "before", "forget", "perplexity")
    assert value(results, "after", "forget", "perplexity") > 1.02 * before


# ---------------------------------------------------------------------------------------- mistakes

REASON = "the reason"
STAGES = {  # which process fails, where, in what, and how
    "the first reads": (0, user_documents, "cut_documents", ValueError(REASON)),
    "the second loads": (1, model_files, "load", OSError(REASON)),
    "the first saves": (0, models, "write_like", OSError(REASON)),
    "the second measures": (1, output_folder, "measure_saved", FloatingPointError(REASON)),
    "the first names the folder": (0, Path, "replace", OSError(REASON)),
}


def make_mistake(rank, stage):
    """Put an error into a function, in one process."""
    which, where, name, error = STAGES[stage]

    def fail(*_, **__):
        raise error

    if rank == which:
        setattr(where, name, fail)


@pytest.mark.parametrize("stage", STAGES)
def test_a_mistake_of_one_process_is_one_line_and_ends_both(stage, llama, documents, tmp_path):
    (tmp_path / "here").mkdir()
    given = arguments(llama, documents, tmp_path / "here" / "out")
    first, second = in_two(tmp_path / "log", given, make_mistake, stage)
    code = 1 if isinstance(STAGES[stage][3], FloatingPointError) else 2
    left = list((tmp_path / "here").iterdir())
    said = REASON
    if stage == "the first names the folder":  # the new model is whole, and stays
        (part,) = left
        said = f"--out {tmp_path}/here/out: in use by now ({REASON}); the new model is in {part}"
        left = []
    assert (first[0], first[2]) == (code, f"error: {said}\n")
    assert second == (code, "", "")
    assert left == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ("--batch", 3),
            "--batch 3: it is that of all 2 processes together; choose a multiple of 2",
        ),
        (
            ("--batch", 8, "--micro-batch", 8),
            "--micro-batch 8: must be positive and divide the batch of 8 among 2 processes",
        ),
    ],
)
def test_a_batch_that_does_not_divide(more, said, llama, documents, tmp_path):
    given = arguments(llama, documents, tmp_path / "out", "gradient_ascent", *more)
    assert in_two(tmp_path / "log", given) == [(2, "", f"error: {said}\n"), (2, "", "")]
    assert not (tmp_path / "out").exists()


def exhaust_memory(rank):
    """Let the second process alone run out of memory, in its second step."""
    if rank != 1:
        return
    plain = trainer.ObjectiveTrainer.training_step

    def step(self, *given):
        if self.state.global_step == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, *given)

    trainer.ObjectiveTrainer.training_step = step


def test_memory_that_ends_in_one_process_is_said_by_it(llama, documents, tmp_path):
    """It does not wait for the other, which is in the middle of a step and loses its partner."""
    log = tmp_path / "log"
    log.mkdir()
    (tmp_path / "here").mkdir()
    given = arguments(llama, documents, tmp_path / "here" / "out")
    first, second = together(command, log, given, exhaust_memory)
    assert first != 0
    assert second == 0
    assert (log / "1.code").read_text() == "1"
    said = (log / "1.err").read_text()
    assert said.startswith("error: out of memory in training: lower --micro-batch")
    assert said.count("\n") == 1
    assert list((tmp_path / "here").iterdir()) == []


def test_the_other_commands_are_one_process(llama, documents, tmp_path):
    given = ["evaluate", "--model", str(llama), "--documents", str(documents["forget"])]
    first, second = in_two(tmp_path / "log", given)
    said = "this command is one process, and 2 were started: only unlearn runs in several"
    assert first == (2, "", f"error: {said}\n")
    assert second == (2, "", "")
