"""Two processes (gloo, CPU) against one.

They give the same losses and weights; killed runs go on; only the first process writes. accelerate
does not shard on a CPU: `shard_on_cpu` tells it to, everything else under FSDP is its own and
PyTorch's code.
"""

import gc
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from unlearn_utils.core import efficiency, fused, methods
from unlearn_utils.engine import distributed, models, trainer, training
from unlearn_utils.profiles import Unlearning

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "accelerate"
PAD_ID = 1
START = multiprocessing.get_context("forkserver")  # imports once, and forks from there
START.set_forkserver_preload(["unlearn_utils.app.cards", "unlearn_utils.app.output_folder"])
pytestmark = pytest.mark.usefixtures("float32")


def documents(lengths, seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 300, n).tolist() for n in lengths]


# in batches of 4 or 2 the last has one document, so one process has none
FORGET = documents([12, 4, 7, 3, 9, 5, 11, 2, 6], 1)
RETAIN = documents([6, 11, 3, 8], 2)
TURNED = [ids[::-1] for ids in FORGET]  # the labels of methods that replace them

# tolerances: nats; share of the way that the weights went. They differ by 1e-6 and 2e-6
LOSSES, WEIGHTS = 1e-5, 1e-5

RECIPE = Unlearning(batch=4, epochs=1, learning_rate=1e-3, max_grad_norm=0.5, schedule="cosine")


# ------------------------------------------------------------ runs, in this process or in others


def a_job(method, recipe=RECIPE, reference=None, forget=FORGET):
    """What is unlearned, with labels where the method needs them."""
    method = methods.get_method(method)
    labels = TURNED if method.replaces_labels else None
    return training.Job(method, forget, RETAIN, recipe, PAD_ID, 0, reference, labels)


def with_adapters(model):
    """The model with LoRA adapters on every linear layer."""
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")
    return get_peft_model(model, config)


def one_run(
    folder,
    method,
    micro_batch=None,
    variant="corrected",
    tied=True,
    checkpoints=None,
    watch=None,
    lora=False,
    **changes,
):
    """(model, history) of one run of the stored models, as part of a group or alone."""
    model = models.load(folder / f"0-{tied}")
    reference = models.load(folder / f"1-{tied}")
    if lora:
        model = with_adapters(model)
    given = a_job(method, replace(RECIPE, variant=variant, **changes), reference)
    execution = training.Execution(watch, range(100), micro_batch, checkpoints=checkpoints)
    return model, training.unlearn(model, given, execution)


def compared(folder, *case):
    """What two ways of running a case are compared by.

    That is weights, history, the loss that `watch` computes from the model, the share of the
    weights that this process holds, and in how many parts FSDP gathers them.
    """
    seen = []
    ids = torch.tensor(FORGET[:1])

    def watch(step, model):
        with torch.no_grad():
            seen.append(model(ids, labels=ids).loss.item())

    model, history = one_run(folder, *case, watch=watch)
    held = 0
    for weight in model.parameters():
        own = weight.to_local() if isinstance(weight, DTensor) else weight
        held += own.numel()
    return {
        "weights": distributed.gathered_state(model),
        "history": history,
        "seen": seen,
        "share": held / efficiency.parameter_count(model),
        "units": sum(isinstance(module, FSDPModule) for module in model.modules()),
    }


def shard_on_cpu():
    """accelerate reads its FSDP settings on a CPU too, and then does not act on them."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    plain = AcceleratorState.__init__

    def init(self, *given, fsdp_plugin=None, **named):
        plain(self, *given, fsdp_plugin=fsdp_plugin, **named)
        if fsdp_plugin is not None:
            self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)

    AcceleratorState.__init__ = init


def process(rank, processes, environment, work, given):
    """Live the life of one process."""
    gc.freeze()  # accelerate collects garbage with every run
    torch.set_num_threads(1)
    models.half_precision = lambda: environment.get("ACCELERATE_MIXED_PRECISION") == "bf16"
    os.environ |= environment
    if processes > 1:
        os.environ |= dict.fromkeys(["RANK", "LOCAL_RANK"], str(rank))
        os.environ |= dict.fromkeys(["WORLD_SIZE", "LOCAL_WORLD_SIZE"], str(processes))
    if "ACCELERATE_USE_FSDP" in environment:
        shard_on_cpu()
    work(rank, *given)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def together(work, *given, processes=2, environment=None):
    """Return the exit codes of so many processes that do `work(rank, *given)` at once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    everywhere = address | (environment or {})
    started = []
    for rank in range(processes):
        arguments = (rank, processes, everywhere, work, given)
        started.append(START.Process(target=process, args=arguments))
    for one in started:
        one.start()
    for one in started:
        one.join(60)
    late = [one for one in started if one.is_alive()]
    for one in late:
        one.kill()
    assert not late, "a process waits for another that has gone on"
    return [one.exitcode for one in started]


# ---------------------------------------------------------------------- what a process may do


def compare_all(rank, folder, cases, out):
    """Run every case and keep what it is compared by.

    Kept is also whether models were read under autocast.
    """
    under = set()
    plain = fused.hidden_states

    def hidden_states(*given):
        under.add(torch.is_autocast_enabled("cpu"))
        return plain(*given)

    fused.hidden_states = hidden_states
    found = [compared(folder, *case) | {"autocast": list(under)} for case in cases]
    torch.save(found, out / f"{rank}.pt")


def refuse(rank, folder, out):
    """Give a batch of 3 documents to two processes."""
    with pytest.raises(ValueError) as caught:
        one_run(folder, "gradient_ascent", batch=3)
    (out / f"{rank}.txt").write_text(str(caught.value))


def stop(rank, folder, out, stopper):
    """Run until one process, the stopper, wants to stop after the first step."""

    def watch(step, model):
        return rank == stopper and step == 1

    _, history = one_run(folder, "gradient_ascent", watch=watch)
    (out / f"{rank}.txt").write_text(str(len(history)))


def write(rank, folder, out, lora=False):
    """Write checkpoints and the saved model to a folder of the process's own."""
    own = out / str(rank)
    model, _ = one_run(folder, "gradient_ascent", checkpoints=own / "checkpoints", lora=lora)
    models.save(model, own / "model")


def resume(rank, folder, out, ending=None):
    """Make a run with checkpoints, which `ending` kills: (process, "step" or "save", step)."""
    seen = []
    plain = trainer.ObjectiveTrainer._save_rng_state

    def watch(now, model):
        seen.append(now)
        if ending == (rank, "step", now):
            os.kill(os.getpid(), signal.SIGKILL)

    def killed(self, folder):
        plain(self, folder)
        if ending == (rank, "save", self.state.global_step):
            os.kill(os.getpid(), signal.SIGKILL)

    trainer.ObjectiveTrainer._save_rng_state = killed
    model, history = one_run(folder, *LONG, checkpoints=out / "checkpoints", watch=watch, **LONGER)
    state = distributed.gathered_state(model)
    if rank == 0:
        torch.save({"weights": state, "history": history, "seen": seen}, out / "end.pt")


# --------------------------------------------------------------------------- what they are given


@pytest.fixture(scope="module")
def folder(build, tmp_path_factory):
    """Two models, stored with tied embeddings and with a head of its own."""
    folder = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        model = build(seed)
        models.save(model, folder / f"{seed}-True")
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(build(seed + 2).lm_head.weight.detach())
        models.save(model, folder / f"{seed}-False")
    return folder


def launch_environment(config):
    """What `accelerate launch` would set for each process."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    given = ["--config_file", str(CONFIGS / config), "--main_process_port", "0", "train.py"]
    options, *_ = _validate_launch_command(launch_command_parser().parse_args(given))
    found = prepare_multi_gpu_env(options)
    ours = ("FSDP_", "ACCELERATE_")
    return {name: value for name, value in found.items() if name.startswith(ours)}


def sharded(precision="no"):
    """The environment of the shipped FSDP config, in this precision."""
    return launch_environment("fsdp_8gpu.yaml") | {"ACCELERATE_MIXED_PRECISION": precision}


CASES = [
    ("gradient_ascent", None),
    ("adversarial", None),
    ("ascent_descent_in_distribution", 1),
    ("ascent_descent_in_distribution", 1, "official"),
    ("ascent_kl_in_distribution", None),
    ("ascent_kl_in_distribution", 1, "official"),
    ("ascent_kl_in_distribution", 1, "corrected", False),
]
# 14 steps, a checkpoint after every second
LONG = ("ascent_kl_in_distribution", 1)
LONGER = {"batch": 2, "epochs": 3}


@pytest.fixture(scope="module", params=["DDP", "FSDP"])
def pair(request):
    """How two processes share the work: the environment that says so."""
    return {} if request.param == "DDP" else sharded()


def by_case(file):
    """What `compare_all` wrote, by the case's name."""
    return dict(zip(map(str, CASES), torch.load(file), strict=True))


@pytest.fixture(scope="module")
def one_process(folder, tmp_path_factory):
    """The cases in one process."""
    out = tmp_path_factory.mktemp("one")
    assert together(compare_all, folder, CASES, out, processes=1) == [0]
    return by_case(out / "0.pt")


@pytest.fixture(scope="module")
def two_processes(pair, folder, tmp_path_factory):
    """The cases in two processes: what each of them found."""
    out = tmp_path_factory.mktemp("two")
    assert together(compare_all, folder, CASES, out, environment=pair) == [0, 0]
    return [by_case(out / f"{rank}.pt") for rank in (0, 1)]


def flat(state):
    return torch.cat([state[name].float().flatten() for name in sorted(state)])


def distance(folder, one, other, tied=True):
    """How far two ends of a run have come apart, as a share of the way from the beginning."""
    start = flat(distributed.gathered_state(models.load(folder / f"0-{tied}")))
    return ((flat(one) - flat(other)).norm() / (flat(one) - start).norm()).item()


def losses(found):
    return [row["loss"] for row in found["history"]]


# -------------------------------------------------------------------------- the parts of a batch


@pytest.mark.parametrize(("size", "processes"), [(1, 1), (1, 2), (2, 2), (4, 1), (2, 1), (1, 4)])
@pytest.mark.parametrize("documents", [1, 4, 5, 8, 10, 11])
def test_parts_of_all_processes_are_the_batches_of_one(size, processes, documents):
    parts = trainer.micro_batches(list(range(documents)), 4, size, processes)
    assert len(parts) % processes == 0
    each = 4 // size // processes  # micro-batches of a process in a full optimizer batch
    mine = [parts[rank::processes] for rank in range(processes)]
    for k, start in enumerate(range(0, documents, 4)):
        taken = []
        for own in mine:
            for part in own[k * each : (k + 1) * each]:
                taken += part
        assert sorted(taken) == list(range(start, min(start + 4, documents)))
    assert sum(map(len, parts)) == documents
    assert max(map(len, parts)) <= size


def test_parts_by_hand():
    assert trainer.micro_batches("abcdefghi", 4, 1, 2) == [*"abcdefghi", []]
    assert trainer.micro_batches("abcdefg", 4, 2, 2) == ["ab", "cd", "ef", "g"]
    assert trainer.micro_batches("abcde", 4, 4, 1) == ["abcd", "e"]


@pytest.mark.parametrize(
    ("batch", "size", "processes"), [(4, 3, 1), (4, 1, 3), (4, 4, 2), (2, 1, 4), (4, -1, 1)]
)
def test_a_batch_that_does_not_divide_is_refused(batch, size, processes):
    among = f" on each of {processes} processes" if processes > 1 else ""
    line = f"^micro_batch {size}{among} does not divide the batch of {batch} documents$"
    with pytest.raises(ValueError, match=line):
        trainer.micro_batches([0] * 8, batch, size, processes)


def test_every_process_refuses_such_a_batch(folder, tmp_path):
    assert together(refuse, folder, tmp_path) == [0, 0]
    line = "micro_batch 1 on each of 2 processes does not divide the batch of 3 documents"
    for rank in (0, 1):
        assert (tmp_path / f"{rank}.txt").read_text() == line


def test_nothing_is_predicted_in_an_idle_part():
    sides = training.paired(a_job("ascent_descent_general"))([(0, 1)])
    idle = trainer.collated(lambda chosen: sides, [(0, 1)])([[]])
    assert isinstance(idle, trainer.Idle)
    assert list(idle) == list(sides)
    for name, side in sides.items():
        assert (idle[name]["labels"] == -100).all()
        assert torch.equal(idle[name]["input_ids"], side["input_ids"])
    assert trainer.collated(lambda chosen: sides, [])([[(0, 1)]]) is sides


# ----------------------------------------------------------------------- the same as one process


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_processes_give_the_losses_and_weights_of_one(folder, one_process, two_processes, case):
    """The last optimizer batch has 1 document of 4: the second process has none of it."""
    one = one_process[str(case)]
    first, second = (found[str(case)] for found in two_processes)
    assert len(losses(one)) == 3
    assert losses(first) == losses(second)
    assert losses(first) == pytest.approx(losses(one), abs=LOSSES)
    assert distance(folder, one["weights"], first["weights"], *case[3:]) < WEIGHTS
    assert second["weights"] == {}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_process_watches_the_whole_model_and_holds_its_share(
    pair, one_process, two_processes, case
):
    one = one_process[str(case)]
    assert len(one["seen"]) == 4  # before the first step, too
    assert len(set(one["seen"])) == 4
    share, units = 1, 0
    if pair:  # FSDP: two layers
        share, units = pytest.approx(0.5, abs=0.05), 2
    for process in two_processes:
        found = process[str(case)]
        assert found["seen"] == pytest.approx(one["seen"], abs=1e-4)
        assert found["share"] == share
        assert found["units"] == units


def test_sharded_bfloat16_sums_gradients_and_losses_in_float32(folder, tmp_path):
    """bfloat16 rounds a loss of 5 to steps of 0.03.

    The optimizer batch's loss is a sum of numbers that are not so rounded.
    """
    case = ("ascent_kl_in_distribution", 1, (2,))  # which reads the reference in every step
    environments = {1: {"ACCELERATE_MIXED_PRECISION": "bf16"}, 2: sharded("bf16")}
    found = []
    for processes, environment in environments.items():
        out = tmp_path / str(processes)
        out.mkdir()
        options = {"processes": processes, "environment": environment}
        assert together(compare_all, folder, [case], out, **options) == [0] * processes
        found += torch.load(out / "0.pt")
    one, two = found
    assert losses(two) == pytest.approx(losses(one), abs=0.02)
    assert losses(two) != losses(one)
    assert one["autocast"] == two["autocast"] == [True]  # the reference, too, which is not sharded
    assert all(loss != torch.tensor(loss).bfloat16().item() for loss in losses(two))
    assert distance(folder, one["weights"], two["weights"]) < 0.3
    assert {x.dtype for x in two["weights"].values()} == {torch.float32}


@pytest.mark.parametrize(("stopper", "steps"), [(0, "1"), (1, "3")])
def test_the_first_process_alone_ends_a_run(folder, tmp_path, stopper, steps):
    assert together(stop, folder, tmp_path, stopper) == [0, 0]
    for rank in (0, 1):
        assert (tmp_path / f"{rank}.txt").read_text() == steps


# ------------------------------------------------------------------------------- what is written


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_only_the_first_process_writes_one_model_at_the_end(folder, pair, two_processes, tmp_path):
    assert together(write, folder, tmp_path, environment=pair) == [0, 0]
    assert files(tmp_path / "1") == set()
    saved = tmp_path / "0" / "model"
    assert files(saved) == {"config.json", "generation_config.json", "model.safetensors"}
    kept = {Path(name).parts[1:] for name in files(tmp_path / "0" / "checkpoints")}
    assert {parts[0] for parts in kept} == {"checkpoint-3"}
    assert ("checkpoint-3", "rng_state_1.pth") in kept
    loaded = distributed.gathered_state(models.load(saved))
    ended = two_processes[0][str(("gradient_ascent", None))]["weights"]
    assert set(loaded) == set(ended)
    assert all(torch.equal(loaded[name], ended[name]) for name in ended)


def test_adapters_of_a_sharded_model_are_saved_alone(folder, tmp_path):
    assert together(write, folder, tmp_path, True, environment=sharded()) == [0, 0]
    assert files(tmp_path / "1") == set()
    saved = tmp_path / "0" / "model"
    assert files(saved) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    model, _ = one_run(folder, "gradient_ascent", lora=True)
    one = distributed.gathered_state(model)
    model = PeftModel.from_pretrained(models.load(folder / "0-True"), saved)
    loaded = distributed.gathered_state(model)
    assert set(one) == set(loaded)
    trained = [value for name, value in one.items() if "lora_B" in name]  # which begins at 0
    assert len(trained) == 2 * 7
    assert all(value.abs().max() > 1e-4 for value in trained)
    for name, value in one.items():
        torch.testing.assert_close(loaded[name], value, atol=1e-6, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_in_a_type_of_its_own(folder, tmp_path, tied):
    model = models.load(folder / f"0-{tied}")
    models.save(model, tmp_path, torch.bfloat16)
    written = load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in written) is not tied
    assert {weight.dtype for weight in written.values()} == {torch.bfloat16}
    assert models.stored_dtype(tmp_path) == torch.bfloat16
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert again.dtype == torch.bfloat16
    assert model.dtype == torch.float32
    rounded = flat(distributed.gathered_state(model)).bfloat16().float()
    assert torch.equal(flat(distributed.gathered_state(again)), rounded)


def test_nothing_is_written_unless_asked(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one_run(folder, "gradient_ascent")
    assert list(tmp_path.rglob("*")) == []


# --------------------------------------------------------------------- killed, and started again

ENDINGS = {
    "one process": ((0, "step", 5), 1, False),
    "DDP, the first process, while it writes": ((0, "save", 4), 2, False),
    "FSDP, the second process": ((1, "step", 5), 2, True),
}


@pytest.fixture(scope="module")
def uninterrupted(folder):
    """The long run, in one process, without checkpoints."""
    with pytest.MonkeyPatch.context() as patch:
        # `float32` comes later than a module's fixtures
        patch.setattr(models, "half_precision", lambda: False)
        model, history = one_run(folder, *LONG, **LONGER)
    return {"weights": distributed.gathered_state(model), "history": history}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_killed_run_goes_on_from_its_last_complete_checkpoint(
    folder, tmp_path, uninterrupted, name
):
    ending, processes, shard = ENDINGS[name]
    victim, moment, _ = ending
    options = {"processes": processes, "environment": sharded() if shard else {}}
    codes = together(resume, folder, tmp_path, ending, **options)
    assert codes[victim] == -signal.SIGKILL
    assert 0 not in codes
    assert not (tmp_path / "end.pt").exists()
    last = {"save": 2, "step": 4}[moment]
    (run,) = (tmp_path / "checkpoints").iterdir()
    assert [path.name for path in run.glob("checkpoint-*")] == [f"checkpoint-{last}"]
    assert (run / "unfinished" / "checkpoint-4").exists() is (moment == "save")
    assert together(resume, folder, tmp_path, **options) == [0] * processes
    end = torch.load(tmp_path / "end.pt")
    assert end["seen"] == [0, *range(last + 1, 15)]
    assert [row["step"] for row in end["history"]] == list(range(1, 15))
    if processes == 1:
        assert end["history"] == uninterrupted["history"]
        assert torch.equal(flat(end["weights"]), flat(uninterrupted["weights"]))
    assert losses(end) == pytest.approx(losses(uninterrupted), abs=LOSSES)
    assert distance(folder, uninterrupted["weights"], end["weights"]) < WEIGHTS


def interrupt(folder, checkpoints):
    """Make a run that ends after 5 of 14 steps; its checkpoint is of step 4."""

    def watch(step, model):
        return step == 5

    one_run(folder, *LONG, checkpoints=checkpoints, watch=watch, **LONGER)


def test_checkpoints_of_another_run_are_not_taken(folder, tmp_path, uninterrupted):
    interrupt(folder, tmp_path)
    (own,) = tmp_path.iterdir()
    (own / "unfinished" / "checkpoint-14").mkdir()
    # of a run of two processes that was killed
    (own / "unfinished" / "checkpoint-14" / "rng_state_1.pth").touch()
    other, history = one_run(folder, *LONG, checkpoints=tmp_path, **LONGER, learning_rate=2e-3)
    alone, expected = one_run(folder, *LONG, **LONGER, learning_rate=2e-3)
    assert history == expected
    other, alone = (flat(distributed.gathered_state(model)) for model in (other, alone))
    assert torch.equal(other, alone)
    assert len(list(tmp_path.iterdir())) == 2
    again, history = one_run(folder, *LONG, checkpoints=tmp_path, **LONGER)  # while its own are
    assert history == uninterrupted["history"]
    assert torch.equal(flat(distributed.gathered_state(again)), flat(uninterrupted["weights"]))
    assert files(own) == {f"checkpoint-14/{name}" for name in WRITTEN}


def test_a_run_is_named_by_its_model_documents_and_settings(folder):
    one, other = (models.load(folder / f"{seed}-True") for seed in (0, 1))
    job = a_job("gradient_ascent")
    named = [
        (one, job, 9),
        (other, job, 9),
        (one, job, 8),
        (one, a_job("ascent_kl_general"), 9),
        (one, a_job("gradient_ascent", replace(RECIPE, epochs=2)), 9),
        (one, replace(job, seed=1), 9),
        (one, replace(job, labels=TURNED), 9),
        (one, replace(job, forget=FORGET[1:]), 9),
        (one, replace(job, forget=FORGET[:1]), 9),
        (one, replace(job, forget=[FORGET[0][:1], FORGET[0][1:]]), 9),
    ]
    names = [training._name(*given) for given in named]
    assert len(set(names)) == len(named)
    assert training._name(models.load(folder / "0-True"), job, 9) == names[0]


WRITTEN = (
    "trained.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
)


class Intruder:
    """A pickle that makes a folder when it is read."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_s_pickles_execute_nothing(folder, tmp_path, name):
    interrupt(folder, tmp_path / "checkpoints")
    (path,) = tmp_path.glob(f"checkpoints/*/checkpoint-4/{name}")
    torch.save({"state": Intruder(tmp_path / "made")}, path)
    with pytest.raises(pickle.UnpicklingError):
        one_run(folder, *LONG, checkpoints=tmp_path / "checkpoints", **LONGER)
    assert not (tmp_path / "made").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "made").exists()  # as it would have


# -------------------------------------------------------------------------- how they are started


def test_the_fsdp_config_is_read_as_meant(monkeypatch):
    from accelerate.utils import FullyShardedDataParallelPlugin

    for name, value in launch_environment("fsdp_8gpu.yaml").items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.activation_checkpointing is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert not plugin.cpu_ram_efficient_loading
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert plugin.transformer_cls_names_to_wrap is None
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"


SCRIPT = """
from accelerate.state import PartialState

state = PartialState(cpu=True)
print("\\n", state.process_index, state.num_processes, state.backend)
"""


def test_accelerate_launch_starts_two_processes_on_the_cpu(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    options = ["--config_file", CONFIGS / "ddp_2cpu.yaml", "--main_process_port", "0"]
    command = [*launch, *options, script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    assert sorted(lines) == ["0 2 gloo", "1 2 gloo"]
