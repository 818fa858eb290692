"""The GPU benchmark, run on a CPU at a toy scale: what it counts and what it writes, never a time."""

import importlib.util
import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from unlearn_utils.core import efficiency, losses, methods
from unlearn_utils.core.methods import METHODS

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"
spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
gpu = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu)
TINY = gpu.SHAPES["tiny"]
ON_CPU = ["--device", "cpu", "--shape", "tiny"]
ASCENT, LABELS, KL = "gradient_ascent", "random_label", "ascent_kl_general"
RETAIN = [name for name, method in METHODS.items() if method.retain]


@pytest.fixture(autouse=True, scope="module")
def quick():
    """So small a model bears a larger rate before the study, and then needs few steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "LEARN_RATE", 1e-2)
        yield


def run(folder, *more):
    """What the script writes to a file in `folder`."""
    path = folder / "results" / "gpu_test.json"
    gpu.main(["--out", str(path), *ON_CPU, *more])
    assert list(path.parent.iterdir()) == [path]  # nothing unfinished is left
    return json.loads(path.read_text(), parse_constant=pytest.fail)  # pytest.fail: NaN is not JSON


def toy_loss(model, data):
    """A loss that needs gradients of every layer."""
    return sum(losses.next_token_loss(model, side) for side in data.values())


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """Every method, two steps."""
    return run(tmp_path_factory.mktemp("gpu"), "--steps", "2")


# ---------------------------------------------------------------------------------------------- the file


def test_the_file_says_where_its_numbers_come_from(result):
    assert result["device"] == "CPU"
    assert result["torch"] == torch.__version__ and result["cuda"] == torch.version.cuda
    assert result["date"].endswith("+00:00")
    assert result["command"].startswith("python benchmarks/gpu.py --out ") and result["command"].endswith("--shape tiny --steps 2")


def test_one_row_a_method_with_its_tokens(result):
    assert [row["method"] for row in result["rows"]] == list(METHODS)
    for row in result["rows"]:
        assert (row["shape"], row["dtype"], row["sequence"], row["batch"]) == ("tiny", "float32", 32, 2)
        assert row["parameters"] == efficiency.parameter_count(gpu.build(TINY))
        assert row["forget_tokens"] == 64 and row["retain_tokens"] == 64 * (row["method"] in RETAIN)
        assert "AdamW" in row["optimizer"] and "error" not in row


def test_seconds_leave_out_the_first_step(result):
    for row in result["rows"]:
        assert row["n"] == len(row["seconds"]) == 2 and len(row["losses"]) == 3
        assert 0 < row["seconds_min"] <= row["seconds_median"] <= row["seconds_max"]
        assert row["seconds_min"] == min(row["seconds"]) and row["seconds_max"] == max(row["seconds"])
        trained = row["forget_tokens"] + row["retain_tokens"]
        assert row["tokens_per_second"] == pytest.approx(trained / row["seconds_median"])
        assert row["mfu"] is None and row["peak_gb"] is None  # a CPU has neither


def test_first_losses_are_those_of_a_model_that_guesses(result):
    first = {row["method"]: row["losses"][0] for row in result["rows"]}
    assert all(math.isfinite(loss) for row in result["rows"] for loss in row["losses"])
    guess = math.log(128)
    assert first[ASCENT] == pytest.approx(-guess, abs=0.1) and first[LABELS] == pytest.approx(guess, abs=0.1)
    assert first[KL] == pytest.approx(first[ASCENT], abs=1e-5)  # the reference still predicts the same
    assert first["ascent_descent_general"] == pytest.approx(0, abs=0.1)


def test_study_has_every_method_at_three_rates(result):
    rows = result["study"]
    assert [(row["method"], row["learning_rate"]) for row in rows] == [(m, r) for m in METHODS for r in gpu.STUDY_RATES]
    assert len(gpu.STUDY_RATES) == 3 and all(row["steps"] == len(row["losses"]) == 2 for row in rows)
    start = {(row["forget_before"], row["retain_before"]) for row in rows}
    assert len(start) == 1 and max(start.pop()) < 0.6 * math.log(128)  # all from one model, which knows its documents


def test_study_unlearns_more_at_a_larger_rate(result):
    rises = [row["forget_after"] - row["forget_before"] for row in result["study"] if row["method"] == ASCENT]
    assert 0 < rises[0] < rises[1] < rises[2]


def test_yi_is_followed_by_a_study_of_the_medium_model(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(gpu, "measure", lambda *chosen: taken.extend(chosen))
    gpu.main(["--out", str(tmp_path / "gpu.json"), "--device", "cpu", "--batch", "3", "--sequence", "64", "--steps", "7"])
    assert [(r.shape, r.batch, r.sequence, r.steps, r.peak) for r in taken[:2]] == [(s, 3, 64, 7, None) for s in ("yi-6b", "medium")]


# ---------------------------------------------------------------------------------------------- out of memory, divergence


def fails_for(method):
    """The package's loss, except that `method` asks for too much."""
    loss = methods.unlearning_loss

    def unlearning_loss(name, *rest):
        if name == method:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(name, *rest)

    return unlearning_loss


def test_a_method_that_does_not_fit_leaves_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "unlearning_loss", fails_for(LABELS))
    result = run(tmp_path, "--steps", "1", "--methods", f"{ASCENT},{LABELS},{KL}")
    assert [row.get("error") for row in result["rows"]] == [None, "out of memory", None]
    assert result["rows"][1]["method"] == LABELS and "seconds" not in result["rows"][1]
    assert {row["method"] for row in result["study"] if "error" in row} == {LABELS}
    assert len(result["study"]) == 9


def test_what_was_measured_survives_a_crash(tmp_path, monkeypatch):
    speed = gpu.speed
    monkeypatch.setattr(gpu, "speed", lambda r, method: speed(r, method) if method == ASCENT else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, "--steps", "1")
    stored = json.loads((tmp_path / "results" / "gpu_test.json").read_text())
    assert [row["method"] for row in stored["rows"]] == [ASCENT]


def test_a_loss_that_is_not_finite_is_null():
    assert gpu.attempt(TINY, {"method": ASCENT}, lambda: {"losses": [1.0, math.nan, -math.inf]})["losses"] == [1.0, None, None]


# ---------------------------------------------------------------------------------------------- model and arithmetic


def test_yi_has_as_many_parameters():
    model = gpu.build(gpu.SHAPES["yi-6b"]._replace(device=torch.device("meta")))
    assert 6.05e9 < efficiency.parameter_count(model) < 6.07e9
    # By hand: embedding and head; per layer q and o, k and v, three of the MLP, two norms; the last norm.
    d, ff, v, kv = 4096, 11008, 64_000, 4 * 128
    assert efficiency.parameter_count(model) == 2 * v * d + 32 * (2 * d * d + 2 * d * kv + 3 * d * ff + 2 * d) + d
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} and {p.device.type for p in model.parameters()} == {"meta"}
    assert model.config.rope_parameters["rope_theta"] == 5e6 and model.config.rms_norm_eps == 1e-5


def test_medium_has_between_a_hundred_million_and_a_billion():
    model = gpu.build(gpu.SHAPES["medium"]._replace(device=torch.device("meta")))
    assert 1e8 < efficiency.parameter_count(model) < 1e9


def test_weights_and_documents_come_from_the_seed_alone():
    state = torch.get_rng_state()
    one, other = gpu.build(TINY), gpu.build(TINY)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
    [a, b], [c, _] = gpu.documents(TINY, 2), gpu.documents(TINY, 2)
    assert torch.equal(a["forget"]["input_ids"], c["forget"]["input_ids"])
    assert not torch.equal(a["forget"]["input_ids"], b["forget"]["input_ids"])
    assert not torch.equal(a["forget"]["input_ids"], a["retain"]["input_ids"])
    assert a["forget"]["input_ids"].shape == (2, 32) and a["forget"]["input_ids"].min() > gpu.PAD


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
    monkeypatch.setattr(gpu, "utilisation", lambda r, parameters, trained, reference, seconds: seen.append((trained, reference)))
    for method in (ASCENT, "ascent_descent_general", KL):
        gpu.speed(TINY._replace(steps=1), method)
    assert seen == [(64, 0), (128, 0), (128, 64)]


def test_peaks_are_those_of_the_exact_device():
    assert gpu.PEAKS["H200"] == gpu.PEAKS["H100 80GB HBM3"] == 989e12
    assert gpu.PEAKS["A100-SXM4-80GB"] == 312e12 and gpu.PEAKS["L4"] < gpu.PEAKS["L40S"]
    assert "H100 PCIe" not in gpu.PEAKS and "A100-SXM4-80GB MIG 1g.10gb" not in gpu.PEAKS


def test_layers_are_computed_again_in_the_backward_pass_with_the_same_gradients():
    [data] = gpu.documents(TINY, 1)
    calls, gradients = {}, {}
    for training in (True, False):  # checkpointing is active in training mode alone, and nothing else of the model depends on it
        model, calls[training] = gpu.build(TINY).train(training), []
        for layer in model.model.layers:
            layer.mlp.register_forward_pre_hook(lambda *_, seen=calls[training]: seen.append(1))
        toy_loss(model, data).backward()
        gradients[training] = [p.grad for p in model.parameters()]
    assert len(calls[False]) == 2 * 2 and len(calls[True]) == 2 * len(calls[False])  # layers times sides, and once more
    for one, other in zip(gradients[True], gradients[False], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("method", [ASCENT, KL])
def test_a_step_is_that_of_plain_logits(method):
    [data], model = gpu.documents(TINY, 1), gpu.build(TINY)
    plain, reference = gpu.build(TINY), gpu.build(TINY).requires_grad_(False)
    nn.init.normal_(reference.lm_head.weight, std=0.2, generator=torch.Generator().manual_seed(1))
    [loss] = gpu.losses(TINY, method, model, reference, [data])
    next(gpu.train(TINY, model, 1e-3, [loss]))
    logits = plain(data["forget"]["input_ids"]).logits[:, :-1]
    expected = -nn.functional.cross_entropy(logits.flatten(0, 1), data["forget"]["input_ids"][:, 1:].flatten())
    if method == KL:
        p, q = (m(data["retain"]["input_ids"]).logits[:, :-1].log_softmax(-1) for m in (reference, plain))
        expected = expected + (p.exp() * (p - q)).sum(-1).mean()
    expected.backward()
    nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.0, eps=1e-8).step()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-4)


def test_bfloat16_weights_train_in_bfloat16():
    half = TINY._replace(weights=torch.bfloat16, steps=1)
    row = gpu.described(half, KL) | gpu.speed(half, KL)
    assert row["dtype"] == "bfloat16" and all(math.isfinite(loss) for loss in row["losses"])


def test_a_gpu_trains_float32_weights_under_autocast():
    on_gpu = TINY._replace(device=torch.device("cuda"))
    assert on_gpu.mixed and not on_gpu._replace(weights=torch.bfloat16).mixed and not TINY.mixed
    assert gpu.described(on_gpu, ASCENT)["dtype"] == "float32 weights, bfloat16 autocast"


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shape", "huge"], ["huge", "yi-6b", "medium", "tiny"]),
        ([*ON_CPU, "--methods", f"{ASCENT},amnesia"], ["amnesia", *METHODS]),
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
    [line] = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and all(word in line for word in words)
    assert not list(tmp_path.iterdir())


def test_out_is_needed(capsys):
    with pytest.raises(SystemExit):
        gpu.main(ON_CPU)
    assert capsys.readouterr().err == "gpu.py: the following arguments are required: --out\n"
