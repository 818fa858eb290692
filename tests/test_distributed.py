"""Two processes (gloo, CPU) against one: the same losses and weights; killed runs go on; only the first process writes.

accelerate does not shard on a CPU: `shard_on_cpu` tells it to, everything else under FSDP is its own and PyTorch's code.
"""

import gc
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
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
START.set_forkserver_preload(["unlearn_utils.app.cards"])
pytestmark = pytest.mark.usefixtures("float32")


def documents(lengths, seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 300, n).tolist() for n in lengths]


FORGET = documents([12, 4, 7, 3, 9, 5, 11, 2, 6], 1)  # in batches of 4 or 2 the last has one document, so one process has none
RETAIN = documents([6, 11, 3, 8], 2)
LOSSES, WEIGHTS = 1e-5, 1e-5  # tolerances: nats; share of the way that the weights went. They differ by 1e-6 and 2e-6


# ---------------------------------------------------------------------------------------------- runs, in this process or in others


def one_run(folder, method, micro_batch=None, variant="corrected", tied=True, checkpoints=None, watch=None, lora=False, **recipe):
    """(model, history) of one run of the stored models, as part of a group or alone."""
    model, reference = (models.load(folder / f"{seed}-{tied}") for seed in (0, 1))
    if lora:
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
    labels = None if methods.get_method(method).forget == "ascent" else [ids[::-1] for ids in FORGET]
    recipe = Unlearning(
        **{"batch": 4, "epochs": 1, "learning_rate": 1e-3, "max_grad_norm": 0.5, "schedule": "cosine"} | recipe, variant=variant
    )
    history = training.unlearn(
        model, method, FORGET, RETAIN, recipe, PAD_ID, 0, reference, labels, watch, range(100), micro_batch, checkpoints=checkpoints
    )
    return model, history


def compared(folder, *case):
    """What two ways of running a case are compared by: weights, history, the loss that `watch` computes from the model."""
    seen = []

    def watch(step, model):
        with torch.no_grad():
            seen.append(model(torch.tensor(FORGET[:1]), labels=torch.tensor(FORGET[:1])).loss.item())

    model, history = one_run(folder, *case, watch=watch)
    units = sum(isinstance(module, FSDPModule) for module in model.modules())
    share = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in model.parameters()) / efficiency.parameter_count(
        model
    )
    return {"weights": distributed.gathered_state(model), "history": history, "seen": seen, "share": share, "units": units}


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


def process(rank, group, environment, job, given):
    """The life of one process."""
    gc.freeze()  # accelerate collects garbage with every run
    torch.set_num_threads(1)
    models.half_precision = lambda: environment.get("ACCELERATE_MIXED_PRECISION") == "bf16"
    os.environ |= environment
    if len(group) > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(group)), "LOCAL_WORLD_SIZE": str(len(group))}
    if "ACCELERATE_USE_FSDP" in environment:
        shard_on_cpu()
    job(rank, *given)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def together(job, *given, processes=2, environment=None):
    """Exit codes of a job in so many processes at once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = range(processes)
    started = [START.Process(target=process, args=(r, ranks, address | (environment or {}), job, given)) for r in ranks]
    for one in started:
        one.start()
    for one in started:
        one.join(60)
    late = [one for one in started if one.is_alive()]
    for one in late:
        one.kill()
    assert not late, "a process waits for another that has gone on"
    return [one.exitcode for one in started]


# ---------------------------------------------------------------------------------------------- jobs of a process


def compare_all(rank, folder, cases, out):
    """Runs every case and keeps what it is compared by, and whether models were read under autocast."""

    def hidden_states(*given):
        under.add(torch.is_autocast_enabled("cpu"))
        return plain(*given)

    under, plain = set(), fused.hidden_states
    fused.hidden_states = hidden_states
    torch.save([compared(folder, *case) | {"autocast": list(under)} for case in cases], out / f"{rank}.pt")


def refuse(rank, folder, out):
    """A batch of 3 documents, for two processes."""
    with pytest.raises(ValueError) as caught:
        one_run(folder, "gradient_ascent", batch=3)
    (out / f"{rank}.txt").write_text(str(caught.value))


def stop(rank, folder, out, stopper):
    """One process alone wants to stop after the first step."""
    _, history = one_run(folder, "gradient_ascent", watch=lambda step, model: (rank, step) == (stopper, 1))
    (out / f"{rank}.txt").write_text(str(len(history)))


def write(rank, folder, out, lora=False):
    """Checkpoints and the saved model go to a folder of the process's own."""
    model, _ = one_run(folder, "gradient_ascent", checkpoints=out / str(rank) / "checkpoints", lora=lora)
    models.save_from_all(model, out / str(rank) / "model")


def resume(rank, folder, out, ending=None):
    """A run with checkpoints, which `ending` kills: (process, "step" or "save", step)."""

    def watch(now, model):
        seen.append(now)
        if ending == (rank, "step", now):
            os.kill(os.getpid(), signal.SIGKILL)

    def killed(self, folder):
        plain(self, folder)
        if ending == (rank, "save", self.state.global_step):
            os.kill(os.getpid(), signal.SIGKILL)

    seen, plain = [], trainer.ObjectiveTrainer._save_rng_state
    trainer.ObjectiveTrainer._save_rng_state = killed
    model, history = one_run(folder, *LONG, checkpoints=out / "checkpoints", watch=watch, **LONGER)
    state = distributed.gathered_state(model)
    if rank == 0:
        torch.save({"weights": state, "history": history, "seen": seen}, out / "end.pt")


# ---------------------------------------------------------------------------------------------- what they are given


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

    options = launch_command_parser().parse_args(["--config_file", str(CONFIGS / config), "--main_process_port", "0", "train.py"])
    options, *_ = _validate_launch_command(options)
    found = prepare_multi_gpu_env(options)
    return {name: value for name, value in found.items() if name.startswith(("FSDP_", "ACCELERATE_"))}


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
LONG, LONGER = ("ascent_kl_in_distribution", 1), {"batch": 2, "epochs": 3}  # 14 steps, a checkpoint after every second


@pytest.fixture(scope="module", params=["DDP", "FSDP"])
def pair(request):
    """How two processes share the work: the environment that says so."""
    return {} if request.param == "DDP" else sharded()


@pytest.fixture(scope="module")
def one_process(folder, tmp_path_factory):
    """The cases in one process."""
    out = tmp_path_factory.mktemp("one")
    assert together(compare_all, folder, CASES, out, processes=1) == [0]
    return dict(zip(map(str, CASES), torch.load(out / "0.pt"), strict=True))


@pytest.fixture(scope="module")
def two_processes(pair, folder, tmp_path_factory):
    """The cases in two processes: what each of them found."""
    out = tmp_path_factory.mktemp("two")
    assert together(compare_all, folder, CASES, out, environment=pair) == [0, 0]
    return [dict(zip(map(str, CASES), torch.load(out / f"{rank}.pt"), strict=True)) for rank in (0, 1)]


def flat(state):
    return torch.cat([state[name].float().flatten() for name in sorted(state)])


def distance(folder, one, other, tied=True):
    """How far two ends of a run have come apart, as a share of the way from the beginning."""
    start = flat(distributed.gathered_state(models.load(folder / f"0-{tied}")))
    return ((flat(one) - flat(other)).norm() / (flat(one) - start).norm()).item()


def losses(found):
    return [row["loss"] for row in found["history"]]


# ---------------------------------------------------------------------------------------------- the parts of a batch


@pytest.mark.parametrize(("size", "processes"), [(1, 1), (1, 2), (2, 2), (4, 1), (2, 1), (1, 4)])
@pytest.mark.parametrize("documents", [1, 4, 5, 8, 10, 11])
def test_parts_of_all_processes_are_the_batches_of_one(size, processes, documents):
    parts = trainer.micro_batches(list(range(documents)), 4, size, processes)
    assert len(parts) % processes == 0
    each = 4 // size // processes  # micro-batches of a process in a full optimizer batch
    mine = [parts[rank::processes] for rank in range(processes)]
    for k, start in enumerate(range(0, documents, 4)):
        taken = [i for own in mine for part in own[k * each : (k + 1) * each] for i in part]
        assert Counter(taken) == Counter(range(start, min(start + 4, documents)))
    assert sum(map(len, parts)) == documents and max(map(len, parts)) <= size


def test_parts_by_hand():
    assert trainer.micro_batches("abcdefghi", 4, 1, 2) == ["a", "b", "c", "d", "e", "f", "g", "h", "i", []]
    assert trainer.micro_batches("abcdefg", 4, 2, 2) == ["ab", "cd", "ef", "g"] and trainer.micro_batches("abcde", 4, 4, 1) == ["abcd", "e"]


@pytest.mark.parametrize(("batch", "size", "processes"), [(4, 3, 1), (4, 1, 3), (4, 4, 2), (2, 1, 4), (4, -1, 1)])
def test_a_batch_that_does_not_divide_is_refused(batch, size, processes):
    among = f" on each of {processes} processes" if processes > 1 else ""
    with pytest.raises(ValueError, match=f"^micro_batch {size}{among} does not divide the batch of {batch} documents$"):
        trainer.micro_batches([0] * 8, batch, size, processes)


def test_every_process_refuses_such_a_batch(folder, tmp_path):
    assert together(refuse, folder, tmp_path) == [0, 0]
    said = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert said == ["micro_batch 1 on each of 2 processes does not divide the batch of 3 documents"] * 2


def test_nothing_is_predicted_in_an_idle_part():
    sides = training.paired("ascent_descent_general", FORGET, RETAIN, PAD_ID)([(0, 1)])
    idle = trainer.collated(lambda chosen: sides, [(0, 1)])([[]])
    assert isinstance(idle, trainer.Idle) and {(side["labels"] == -100).all().item() for side in idle.values()} == {True}
    assert all(torch.equal(idle[name]["input_ids"], side["input_ids"]) for name, side in sides.items())
    assert trainer.collated(lambda chosen: sides, [])([[(0, 1)]]) is sides


# ---------------------------------------------------------------------------------------------- the same as one process


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_processes_give_the_losses_and_weights_of_one(folder, one_process, two_processes, case):
    """The last optimizer batch has 1 document of 4: the second process has none of it."""
    one, (first, second) = one_process[str(case)], (found[str(case)] for found in two_processes)
    assert len(losses(one)) == 3 and losses(first) == losses(second)
    assert losses(first) == pytest.approx(losses(one), abs=LOSSES)
    assert distance(folder, one["weights"], first["weights"], *case[3:]) < WEIGHTS
    assert second["weights"] == {}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_process_watches_the_whole_model_and_holds_its_share(pair, one_process, two_processes, case):
    one, (first, second) = one_process[str(case)], (found[str(case)] for found in two_processes)
    assert len(one["seen"]) == 4 and len(set(one["seen"])) == 4  # before the first step, too
    for found in (first, second):
        assert found["seen"] == pytest.approx(one["seen"], abs=1e-4)
        assert found["share"] == (pytest.approx(0.5, abs=0.05) if pair else 1) and found["units"] == (2 if pair else 0)  # its two layers


def test_sharded_bfloat16_sums_gradients_and_losses_in_float32(folder, tmp_path):
    """bfloat16 rounds a loss of 5 to steps of 0.03; the optimizer batch's loss is a sum of numbers that are not so rounded."""
    case = ("ascent_kl_in_distribution", 1, (2,))  # which reads the reference in every step
    for name, environment, processes in (("one", {"ACCELERATE_MIXED_PRECISION": "bf16"}, 1), ("two", sharded("bf16"), 2)):
        (tmp_path / name).mkdir()
        assert set(together(compare_all, folder, [case], tmp_path / name, processes=processes, environment=environment)) == {0}
    one, two = (torch.load(tmp_path / name / "0.pt")[0] for name in ("one", "two"))
    assert losses(two) == pytest.approx(losses(one), abs=0.02) and losses(two) != losses(one)
    assert one["autocast"] == two["autocast"] == [True]  # the reference, too, which is not sharded
    assert all(loss != torch.tensor(loss).bfloat16().item() for loss in losses(two))
    assert distance(folder, one["weights"], two["weights"]) < 0.3 and {x.dtype for x in two["weights"].values()} == {torch.float32}


@pytest.mark.parametrize(("stopper", "steps"), [(0, "1"), (1, "3")])
def test_the_first_process_alone_ends_a_run(folder, tmp_path, stopper, steps):
    assert together(stop, folder, tmp_path, stopper) == [0, 0]
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == [steps] * 2


# ---------------------------------------------------------------------------------------------- what is written


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_only_the_first_process_writes_one_model_at_the_end(folder, pair, two_processes, tmp_path):
    assert together(write, folder, tmp_path, environment=pair) == [0, 0]
    assert files(tmp_path / "1") == set()
    assert files(tmp_path / "0" / "model") == {"config.json", "generation_config.json", "model.safetensors"}
    kept = {Path(name).parts[1:] for name in files(tmp_path / "0" / "checkpoints")}
    assert {parts[0] for parts in kept} == {"checkpoint-3"} and ("checkpoint-3", "rng_state_1.pth") in kept
    loaded = distributed.gathered_state(AutoModelForCausalLM.from_pretrained(tmp_path / "0" / "model", dtype=torch.float32))
    ended = two_processes[0][str(("gradient_ascent", None))]["weights"]
    assert set(loaded) == set(ended) and all(torch.equal(loaded[name], ended[name]) for name in ended)


def test_adapters_of_a_sharded_model_are_saved_alone(folder, tmp_path):
    assert together(write, folder, tmp_path, True, environment=sharded()) == [0, 0]
    assert files(tmp_path / "1") == set()
    assert files(tmp_path / "0" / "model") == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    one, _ = one_run(folder, "gradient_ascent", lora=True)
    loaded = PeftModel.from_pretrained(models.load(folder / "0-True"), tmp_path / "0" / "model")
    one, loaded = (distributed.gathered_state(model) for model in (one, loaded))
    assert set(one) == set(loaded) and sum("lora_B" in name for name in one) == 2 * 7
    assert all(value.abs().max() > 1e-4 for name, value in one.items() if "lora_B" in name)  # which begins at 0
    for name, value in one.items():
        torch.testing.assert_close(loaded[name], value, atol=1e-6, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_in_a_type_of_its_own(folder, tmp_path, tied):
    model = models.load(folder / f"0-{tied}")
    models.save_from_all(model, tmp_path, torch.bfloat16)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert ("lm_head.weight" in file.keys()) is not tied and {file.get_tensor(k).dtype for k in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert again.dtype == torch.bfloat16 and model.dtype == torch.float32
    assert torch.equal(flat(distributed.gathered_state(again)), flat(distributed.gathered_state(model)).bfloat16().float())


def test_nothing_is_written_unless_asked(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one_run(folder, "gradient_ascent")
    assert list(tmp_path.rglob("*")) == []


# ---------------------------------------------------------------------------------------------- killed, and started again

ENDINGS = {
    "one process": ((0, "step", 5), 1, False),
    "DDP, the first process, while it writes": ((0, "save", 4), 2, False),
    "FSDP, the second process": ((1, "step", 5), 2, True),
}


@pytest.fixture(scope="module")
def uninterrupted(folder):
    """The long run, in one process, without checkpoints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "half_precision", lambda: False)  # `float32` comes later than a module's fixtures
        model, history = one_run(folder, *LONG, **LONGER)
    return {"weights": distributed.gathered_state(model), "history": history}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_killed_run_goes_on_from_its_last_complete_checkpoint(folder, tmp_path, uninterrupted, name):
    ending, processes, shard = ENDINGS[name]
    environment = sharded() if shard else {}
    first = together(resume, folder, tmp_path, ending, processes=processes, environment=environment)
    assert first[ending[0]] == -signal.SIGKILL and 0 not in first and not (tmp_path / "end.pt").exists()
    last = {"save": 2, "step": 4}[ending[1]]
    (run,) = (tmp_path / "checkpoints").iterdir()
    assert [path.name for path in run.glob("checkpoint-*")] == [f"checkpoint-{last}"]
    assert (run / "unfinished" / "checkpoint-4").exists() is (ending[1] == "save")
    assert together(resume, folder, tmp_path, processes=processes, environment=environment) == [0] * processes
    end = torch.load(tmp_path / "end.pt")
    assert end["seen"] == [0, *range(last + 1, 15)] and [row["step"] for row in end["history"]] == list(range(1, 15))
    if processes == 1:
        assert end["history"] == uninterrupted["history"] and torch.equal(flat(end["weights"]), flat(uninterrupted["weights"]))
    assert losses(end) == pytest.approx(losses(uninterrupted), abs=LOSSES)
    assert distance(folder, uninterrupted["weights"], end["weights"]) < WEIGHTS


def interrupted(folder, checkpoints, **recipe):
    """A run that ends after 5 of 14 steps; its checkpoint is of step 4."""
    return one_run(folder, *LONG, checkpoints=checkpoints, watch=lambda step, model: step == 5, **LONGER | recipe)


def test_checkpoints_of_another_run_are_not_taken(folder, tmp_path, uninterrupted):
    interrupted(folder, tmp_path)
    (own,) = tmp_path.iterdir()
    (own / "unfinished" / "checkpoint-14").mkdir()
    (own / "unfinished" / "checkpoint-14" / "rng_state_1.pth").touch()  # of a run of two processes that was killed
    other, history = one_run(folder, *LONG, checkpoints=tmp_path, **LONGER, learning_rate=2e-3)
    alone, expected = one_run(folder, *LONG, **LONGER, learning_rate=2e-3)
    assert history == expected and torch.equal(flat(distributed.gathered_state(other)), flat(distributed.gathered_state(alone)))
    assert len(list(tmp_path.iterdir())) == 2
    again, history = one_run(folder, *LONG, checkpoints=tmp_path, **LONGER)  # while its own are
    assert history == uninterrupted["history"] and torch.equal(flat(distributed.gathered_state(again)), flat(uninterrupted["weights"]))
    assert files(own) == {f"checkpoint-14/{name}" for name in WRITTEN}


def test_a_run_is_named_by_its_model_documents_and_settings(folder):
    one, other = (models.load(folder / f"{seed}-True") for seed in (0, 1))
    names = {training._name(*given) for given in [(one, FORGET, 1), (other, FORGET, 1), (one, FORGET[1:], 1), (one, FORGET, 2)]}
    names |= {training._name(one, [FORGET[0][:1], FORGET[0][1:]], 1), training._name(one, [FORGET[0]], 1)}
    assert len(names) == 6 and training._name(models.load(folder / "0-True"), FORGET, 1) in names


WRITTEN = ("trained.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


class Intruder:
    """A pickle that makes a folder when it is read."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_s_pickles_execute_nothing(folder, tmp_path, name):
    interrupted(folder, tmp_path / "checkpoints")
    (path,) = tmp_path.glob(f"checkpoints/*/checkpoint-4/{name}")
    torch.save({"state": Intruder(tmp_path / "made")}, path)
    with pytest.raises(pickle.UnpicklingError):
        one_run(folder, *LONG, checkpoints=tmp_path / "checkpoints", **LONGER)
    assert not (tmp_path / "made").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "made").exists()  # as it would have


# ---------------------------------------------------------------------------------------------- how they are started


def test_the_fsdp_config_is_read_as_meant(monkeypatch):
    from accelerate.utils import FullyShardedDataParallelPlugin

    for name, value in launch_environment("fsdp_8gpu.yaml").items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.activation_checkpointing) == (2, True, True)
    assert plugin.state_dict_type.name == "FULL_STATE_DICT" and not plugin.cpu_ram_efficient_loading
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy" and plugin.transformer_cls_names_to_wrap is None
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16" and os.environ["ACCELERATE_USE_FSDP"] == "true"


def test_accelerate_launch_starts_two_processes_on_the_cpu(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from accelerate.state import PartialState as P\np = P(cpu=True)\nprint('\\n', p.process_index, p.num_processes, p.backend)"
    )
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CONFIGS / "ddp_2cpu.yaml", "--main_process_port", "0"]
    found = subprocess.run([*command, script], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert sorted(line.strip() for line in found.splitlines() if line.strip()) == ["0 2 gloo", "1 2 gloo"]
