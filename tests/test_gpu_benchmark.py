"""The GPU benchmark on a CPU, at a toy scale: what it counts and what it writes, never a time."""

import importlib.util
import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from unlearn_utils.core import efficiency, fused, losses, methods
from unlearn_utils.core.methods import METHODS

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"
spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
gpu = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu)
TINY = gpu.SHAPES["tiny"]
META = torch.device("meta")
ON_CPU = ["--device", "cpu", "--shape", "tiny"]
ASCENT = METHODS["gradient_ascent"]
LABELS = METHODS["random_label"]
DESCENT = METHODS["ascent_descent_general"]
KL = METHODS["ascent_kl_general"]


@pytest.fixture(autouse=True, scope="module")
def quick():
    """So small a model bears a larger rate before the study, and then needs few steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "LEARN_RATE", 1e-2)
        yield


def run(folder, *more):
    """Return what the script writes to a file in `folder`."""
    path = folder / "results" / "gpu_test.json"
    gpu.main(["--out", str(path), *ON_CPU, *more])
    assert list(path.parent.iterdir()) == [path]  # nothing unfinished is left
    return json.loads(path.read_text(), parse_constant=pytest.fail)  # NaN is not JSON


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """Every method, two steps."""
    return run(tmp_path_factory.mktemp("gpu"), "--steps", "2")


# ---------------------------------------------------------------------------------------- the file


def test_the_file_says_where_its_numbers_come_from(result):
    assert result["device"] == "CPU"
    assert result["torch"] == torch.__version__
    assert result["cuda"] == torch.version.cuda
    assert result["date"].endswith("+00:00")
    assert result["command"].startswith("python benchmarks/gpu.py --out ")
    assert result["command"].endswith("--shape tiny --steps 2")


def test_one_row_a_method_with_its_tokens(result):
    assert [row["method"] for row in result["rows"]] == list(METHODS)
    parameters = efficiency.parameter_count(gpu.build_model(TINY))
    for row in result["rows"]:
        assert (row["shape"], row["dtype"]) == ("tiny", "float32")
        assert (row["sequence"], row["batch"]) == (32, 2)
        assert row["parameters"] == parameters
        assert row["forget_tokens"] == 64
        assert row["retain_tokens"] == (64 if METHODS[row["method"]].retain else 0)
        assert "AdamW" in row["optimizer"]
        assert "error" not in row


def test_seconds_leave_out_the_first_step(result):
    for row in result["rows"]:
        assert row["n"] == len(row["seconds"]) == 2
        assert len(row["losses"]) == 3
        assert 0 < row["seconds_min"] <= row["seconds_median"] <= row["seconds_max"]
        assert row["seconds_min"] == min(row["seconds"])
        assert row["seconds_max"] == max(row["seconds"])
        trained = row["forget_tokens"] + row["retain_tokens"]
        assert row["tokens_per_second"] == pytest.approx(trained / row["seconds_median"])
        assert row["mfu"] is None  # a CPU has neither
        assert row["peak_gb"] is None


def test_first_losses_are_those_of_a_model_that_guesses(result):
    first = {}
    for row in result["rows"]:
        assert all(math.isfinite(loss) for loss in row["losses"])
        first[row["method"]] = row["losses"][0]
    guess = math.log(128)
    assert first[ASCENT.name] == pytest.approx(-guess, abs=0.1)
    assert first[LABELS.name] == pytest.approx(guess, abs=0.1)
    # the reference still predicts the same
    assert first[KL.name] == pytest.approx(first[ASCENT.name], abs=1e-5)
    assert first[DESCENT.name] == pytest.approx(0, abs=0.1)


def test_study_has_every_method_at_three_rates(result):
    rows = result["study"]
    expected = [(name, rate) for name in METHODS for rate in gpu.STUDY_RATES]
    assert [(row["method"], row["learning_rate"]) for row in rows] == expected
    assert len(gpu.STUDY_RATES) == 3
    assert all(row["steps"] == len(row["losses"]) == 2 for row in rows)
    start = {(row["forget_before"], row["retain_before"]) for row in rows}
    assert len(start) == 1  # all from one model
    assert max(start.pop()) < 0.6 * math.log(128)  # which knows its documents


def test_study_unlearns_more_at_a_larger_rate(result):
    rises = []
    for row in result["study"]:
        if row["method"] == ASCENT.name:
            rises.append(row["forget_after"] - row["forget_before"])
    assert 0 < rises[0] < rises[1] < rises[2]


def test_yi_is_followed_by_a_study_of_the_medium_model(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(gpu, "measure", lambda *given: taken.extend(given))
    sizes = ["--batch", "3", "--sequence", "64", "--steps", "7"]
    gpu.main(["--out", str(tmp_path / "gpu.json"), "--device", "cpu", *sizes])
    measured, studied, *_ = taken
    assert (measured.shape, studied.shape) == ("yi-6b", "medium")
    for one in (measured, studied):
        assert (one.batch, one.sequence, one.steps, one.peak) == (3, 64, 7, None)


# ----------------------------------------------------------------------- out of memory, divergence


def test_a_method_that_does_not_fit_leaves_the_others(tmp_path, monkeypatch):
    loss = methods.unlearning_loss

    def unlearning_loss(method, *rest):
        if method is LABELS:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(method, *rest)

    monkeypatch.setattr(methods, "unlearning_loss", unlearning_loss)
    chosen = ",".join(method.name for method in (ASCENT, LABELS, KL))
    result = run(tmp_path, "--steps", "1", "--methods", chosen)
    assert [row.get("error") for row in result["rows"]] == [None, "out of memory", None]
    failed = result["rows"][1]
    assert failed["method"] == LABELS.name
    assert "seconds" not in failed
    assert {row["method"] for row in result["study"] if "error" in row} == {LABELS.name}
    assert len(result["study"]) == 9


def test_what_was_measured_survives_a_crash(tmp_path, monkeypatch):
    measure_speed = gpu.measure_speed

    def crash(run, method):
        if method is ASCENT:
            return measure_speed(run, method)
        raise ZeroDivisionError

    monkeypatch.setattr(gpu, "measure_speed", crash)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, "--steps", "1")
    stored = json.loads((tmp_path / "results" / "gpu_test.json").read_text())
    assert [row["method"] for row in stored["rows"]] == [ASCENT.name]


def test_a_loss_that_is_not_finite_is_null():
    row = gpu.attempt(TINY, {"method": "own"}, lambda: {"losses": [1.0, math.nan, -math.inf]})
    assert row == {"method": "own", "losses": [1.0, None, None]}


# ----------------------------------------------------------------------------- model and arithmetic


def test_yi_has_as_many_parameters():
    model = gpu.build_model(gpu.SHAPES["yi-6b"]._replace(device=META))
    found = efficiency.parameter_count(model)
    assert 6.05e9 < found < 6.07e9
    hidden, intermediate, vocabulary, key_value = 4096, 11008, 64_000, 4 * 128
    query_and_output = 2 * hidden * hidden
    keys_and_values = 2 * hidden * key_value
    norms = 2 * hidden
    layer = query_and_output + keys_and_values + 3 * hidden * intermediate + norms
    assert found == 2 * vocabulary * hidden + 32 * layer + hidden
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model.config.rope_parameters["rope_theta"] == 5e6
    assert model.config.rms_norm_eps == 1e-5


def test_medium_has_between_a_hundred_million_and_a_billion():
    model = gpu.build_model(gpu.SHAPES["medium"]._replace(device=META))
    assert 1e8 < efficiency.parameter_count(model) < 1e9


def test_weights_and_documents_come_from_the_seed_alone():
    state = torch.get_rng_state()
    one, other = gpu.build_model(TINY), gpu.build_model(TINY)
    assert torch.equal(torch.get_rng_state(), state)
    for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)

    first, second = gpu.random_batches(TINY, 2)
    again, _ = gpu.random_batches(TINY, 2)
    ids = first["forget"]["input_ids"]
    assert torch.equal(ids, again["forget"]["input_ids"])
    assert not torch.equal(ids, second["forget"]["input_ids"])
    assert not torch.equal(ids, first["retain"]["input_ids"])
    assert ids.shape == (2, 32)
    assert ids.min() > gpu.PAD


def test_utilisation_by_hand():
    config = gpu.llama(10, 20, 2, 1, 1, 50)
    toy = gpu.Run("toy", config, 5, 1, torch.float32, peak=1e6)
    # attention 12 * 2 * 10 * 5 = 1,200 a trained token: 100 * (6,000 + 1,200) = 720,000
    assert gpu.utilisation(toy, 1000, 100, 0, 2.0) == pytest.approx(0.36)
    # 50 tokens of the reference: 50 * (2,000 + 400) = 120,000 more
    assert gpu.utilisation(toy, 1000, 100, 50, 2.0) == pytest.approx(0.42)
    assert gpu.utilisation(toy._replace(peak=None), 1000, 100, 50, 2.0) is None


def test_only_kl_counts_tokens_of_the_reference(monkeypatch):
    seen = []

    def utilisation(run, parameters, trained, reference, seconds):
        seen.append((trained, reference))

    monkeypatch.setattr(gpu, "utilisation", utilisation)
    for method in (ASCENT, DESCENT, KL):
        gpu.measure_speed(TINY._replace(steps=1), method)
    assert seen == [(64, 0), (128, 0), (128, 64)]


def test_peaks_are_those_of_the_exact_device():
    assert gpu.PEAKS["H200"] == gpu.PEAKS["H100 80GB HBM3"] == 989e12
    assert gpu.PEAKS["A100-SXM4-80GB"] == 312e12
    assert gpu.PEAKS["L4"] < gpu.PEAKS["L40S"]
    assert "H100 PCIe" not in gpu.PEAKS
    assert "A100-SXM4-80GB MIG 1g.10gb" not in gpu.PEAKS


def test_layers_are_computed_again_in_the_backward_pass_with_the_same_gradients():
    """Checkpointing is active in training mode alone; nothing else of the model depends on it."""
    (sides,) = gpu.random_batches(TINY, 1)
    calls, gradients = {}, {}
    for training in (True, False):
        model = gpu.build_model(TINY).train(training)
        fused.reading_of(model)  # which computes, too
        seen = []
        for layer in model.model.layers:
            layer.mlp.register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        loss = sum(losses.next_token_loss(model, batch) for batch in sides.values())
        loss.backward()
        calls[training] = len(seen)
        gradients[training] = [parameter.grad for parameter in model.parameters()]
    assert calls[False] == 2 * 2  # layers times sides
    assert calls[True] == 2 * calls[False]
    for one, other in zip(gradients[True], gradients[False], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("method", [ASCENT, KL], ids=["ascent", "kl"])
def test_a_step_is_that_of_plain_logits(method):
    (sides,) = gpu.random_batches(TINY, 1)
    model, plain = gpu.build_model(TINY), gpu.build_model(TINY)
    reference = gpu.build_model(TINY).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    nn.init.normal_(reference.lm_head.weight, std=0.2, generator=generator)
    (loss,) = gpu.step_losses(TINY, method, model, reference, [sides])
    next(gpu.take_steps(TINY, model, 1e-3, [loss]))

    forget, retain = sides["forget"]["input_ids"], sides["retain"]["input_ids"]
    logits = plain(forget).logits[:, :-1]
    expected = -nn.functional.cross_entropy(logits.flatten(0, 1), forget[:, 1:].flatten())
    if method is KL:
        p = reference(retain).logits[:, :-1].log_softmax(-1)
        q = plain(retain).logits[:, :-1].log_softmax(-1)
        expected = expected + (p.exp() * (p - q)).sum(-1).mean()
    expected.backward()
    nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.0, eps=1e-8).step()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-4)


def test_bfloat16_weights_train_in_bfloat16():
    half = TINY._replace(weights=torch.bfloat16, steps=1)
    assert gpu.describe(half, KL)["dtype"] == "bfloat16"
    assert all(math.isfinite(loss) for loss in gpu.measure_speed(half, KL)["losses"])


def test_a_gpu_trains_float32_weights_under_autocast():
    on_gpu = TINY._replace(device=torch.device("cuda"))
    assert on_gpu.mixed
    assert not on_gpu._replace(weights=torch.bfloat16).mixed
    assert not TINY.mixed
    assert gpu.describe(on_gpu, ASCENT)["dtype"] == "float32 weights, bfloat16 autocast"


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shape", "huge"], ["huge", "yi-6b", "medium", "tiny"]),
        ([*ON_CPU, "--methods", f"{ASCENT.name},amnesia"], ["amnesia", *METHODS]),
        ([*ON_CPU, "--steps", "0"], ["--steps", "above 0"]),
        ([*ON_CPU, "--batch", "-2"], ["--batch", "-2"]),
        ([*ON_CPU, "--sequence", "many"], ["--sequence", "many"]),
        ([*ON_CPU, "--device", "tpu"], ["tpu", "cuda", "cpu"]),
        (["--device", "cuda"], ["no CUDA GPU", "--device cpu --shape tiny"]),
    ],
)
def test_bad_input_gets_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", partial(bool, 0))
    with pytest.raises(SystemExit) as stopped:
        gpu.main(["--out", str(tmp_path / "gpu.json"), *arguments])
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert all(word in line for word in words)
    assert not list(tmp_path.iterdir())


def test_out_is_needed(capsys):
    with pytest.raises(SystemExit):
        gpu.main(ON_CPU)
    said = "gpu.py: the following arguments are required: --out\n"
    assert capsys.readouterr().err == said
