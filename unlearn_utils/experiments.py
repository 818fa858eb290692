"""The memoised steps of the study, each a plain function of a profile and its choices. What is stored is not computed again.

torch is imported by what computes, not by what reads: a notebook that finds its results in the store starts in a second.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from unlearn_utils.inputs import documents, fingerprint, measured_parts, tokenizer, tokenizer_step, training_parts
from unlearn_utils.profiles import Profile
from unlearn_utils.store import Step
from unlearn_utils.workers import on_threads, side_by_side

VERSIONS = {"pretrained": 1, "measured": 2, "unlearned": 2, "flops": 1}  # raise when a step's code changes its result
PROXY = "first watched step at which forget perplexity reaches the target's perplexity on approximate"

# ---------------------------------------------------------------------------------------------- target and retrained models


def pretrained(profile: Profile, left_out: str | None = None, seed: int = 0, threads: int = 1) -> Step:
    """A model trained from scratch on everything but `left_out`'s forget set (None: on everything, the target)."""
    settings = {
        "data": fingerprint(profile),
        "shape": asdict(profile.shape),
        "recipe": asdict(profile.pretraining),
        "left_out": left_out,
        "seed": seed,
    }
    make = partial(_make_pretrained, profile, left_out, seed, threads)
    return Step("pretrained", VERSIONS["pretrained"], settings, make)


def _make_pretrained(profile: Profile, left_out: str | None, seed: int, threads: int, folder: Path) -> dict:
    from unlearn_utils import models, training

    rows = documents(profile, training_parts(profile, left_out))
    model = models.build(profile.shape, tokenizer(profile), seed)
    start = time.perf_counter()
    with on_threads(threads):
        history = training.pretrain(model, list(rows.ids), profile.pretraining, tokenizer(profile).pad_token_id, seed)
    seconds = time.perf_counter() - start
    models.save(model, folder)
    pd.DataFrame(history).assign(left_out=left_out or "nothing", seed=seed).to_parquet(folder / "history.parquet")
    tokens = int(rows.ids.map(len).sum()) * profile.pretraining.epochs
    return {"training_seconds": round(seconds, 2), "tokens": tokens, "threads": threads, "bf16": models.half_precision()}


def target(profile: Profile) -> Step:
    """The model before unlearning: trained on everything."""
    return pretrained(profile)


def retrained(profile: Profile, domain: str) -> Step:
    """The truth: trained by the same recipe on everything but the domain's forget set."""
    return pretrained(profile, domain)


def noise_floor(profile: Profile) -> Step:
    """`retrained` of one domain with another seed: how far apart two retrained models are. Trained last, alone, on every core."""
    return pretrained(profile, profile.noise_domain, seed=1, threads=profile.workers)


def baselines(profile: Profile) -> dict[str, Step]:
    """The models that everything is compared with, by name."""
    named = {"target": target(profile)} | {f"retrained without {d}": retrained(profile, d) for d in profile.domains}
    return named | {f"retrained without {profile.noise_domain}, seed 1": noise_floor(profile)}


def train_baselines(profile: Profile) -> dict[str, Step]:
    """Trains what is missing: one by one in single-threaded processes side by side, the noise floor last, on every core."""
    steps = baselines(profile)
    *alone, last = steps.values()
    tokenizer_step(profile).folder()
    side_by_side(profile, alone)
    last.folder()
    return steps


# ---------------------------------------------------------------------------------------------- measurements


def measured(profile: Profile, model: Step) -> Step:
    """One row of measurements per document (`evaluation.measure`) of every measured split, by one stored model."""
    settings = {"model": model.path.name, "retain": profile.corpus.measured}
    return Step("measured", VERSIONS["measured"], settings, partial(_make_measured, profile, model))


def _make_measured(profile: Profile, model: Step, folder: Path) -> None:
    from unlearn_utils import evaluation, models

    rows = documents(profile, measured_parts(profile.domains), profile.corpus.measured)
    with on_threads(1):
        found = evaluation.measure(models.load(model.folder()), rows, tokenizer(profile))
    found.to_parquet(folder / "rows.parquet")


def measure_baselines(profile: Profile) -> pd.DataFrame:
    """Rows of every baseline on every measured split; `model` says whose."""
    steps = {name: measured(profile, step) for name, step in train_baselines(profile).items()}
    side_by_side(profile, list(steps.values()))
    return pd.concat([pd.read_parquet(s.folder() / "rows.parquet").assign(model=name) for name, s in steps.items()], ignore_index=True)


def by_run(profile: Profile, rows: pd.DataFrame, model: str) -> pd.DataFrame:
    """Rows of one baseline as each domain's runs are compared with it: the domain's documents and the general ones, `run` = domain.

    rows: of `measure_baselines`; model: "target"; "retrained", the one without the run's forget set; or "retrained again", with
    another seed, for the domain that has one.
    """
    name = {"target": "target", "retrained": "retrained without {}", "retrained again": "retrained without {}, seed 1"}[model]
    domains = [profile.noise_domain] if model == "retrained again" else profile.domains
    parts = [rows[(rows.model == name.format(d)) & rows.domain.isin([d, "general"])].assign(run=d) for d in domains]
    return pd.concat(parts, ignore_index=True).assign(model=model)


def continuations(profile: Profile, domain: str, models_by_name: dict[str, Path], prompt: int, length: int) -> pd.DataFrame:
    """Each forget document's first `prompt` tokens, continued greedily by each model for `length` tokens.

    One row a document and model: id, family, model, prompt, document (the true continuation), text, rouge_l and exact_prefix (tokens)
    against the true continuation. Documents that are too short are left out.
    """
    from unlearn_utils import evaluation, metrics, models

    tok = tokenizer(profile)
    rows = documents(profile, [(domain, "forget")])
    rows = rows[rows.ids.map(len) >= prompt + length]
    truth = [ids[prompt : prompt + length] for ids in rows.ids]
    frames = []
    for name, folder in models_by_name.items():
        found = evaluation.continued(models.load(folder), [ids[:prompt] for ids in rows.ids], length, tok.pad_token_id)
        both = list(zip(found, truth, strict=True))
        scores = {"rouge_l": [metrics.rouge_l(*p) for p in both], "exact_prefix": [metrics.exact_prefix(*p) for p in both]}
        prompts, known, texts = (list(map(tok.decode, part)) for part in ([ids[1:prompt] for ids in rows.ids], truth, found))
        scores |= {"prompt": prompts, "document": known, "text": texts}
        frames.append(rows[["id", "family"]].assign(model=name, run=domain, **scores))
    return pd.concat(frames, ignore_index=True)


# ---------------------------------------------------------------------------------------------- unlearned models


def unlearned(profile: Profile, domain: str, method: str, seed: int = 0, **choices) -> Step:
    """One unlearning run from the target: weights at the step that a practitioner would choose, and rows of every watched step.

    choices: any field of `profiles.Unlearning`. The step is chosen by the paper's proxy of retraining, which needs no retrained
    model: the first watched step whose forget perplexity reaches the target's on unseen text of the domain, else the last.
    """
    recipe = replace(profile.unlearning, **choices)
    settings = {
        "target": target(profile).path.name,
        "domain": domain,
        "method": method,
        "recipe": asdict(recipe),
        "seed": seed,
        "rule": PROXY,
        "retain": profile.corpus.measured,
    }
    return Step("unlearned", VERSIONS["unlearned"], settings, partial(_make_unlearned, profile, domain, method, seed, recipe))


def watched_steps(total: int) -> list[int]:
    """Every step of a run of up to 16 steps; of a longer one, step 0 and at most 16 more, denser at the start."""
    return [0, *np.unique(np.geomspace(1, total, 16).round().astype(int)).tolist()] if total > 16 else list(range(total + 1))


def _make_unlearned(profile: Profile, domain: str, method: str, seed: int, recipe, folder: Path) -> dict:
    from unlearn_utils import evaluation, methods, models, training

    forget, retain = _sides(profile, domain, method)
    rows = documents(profile, measured_parts([domain]), profile.corpus.measured)
    model, tok = models.load(target(profile).folder()), tokenizer(profile)
    reference = models.load(target(profile).folder()) if methods.named(method).retain == "kl" else None
    frames, paused = [], 0.0

    def watch(step: int, model) -> None:
        nonlocal paused
        start = time.perf_counter()
        frames.append(evaluation.measure(model, rows, tok).assign(step=step))
        if not (folder / "config.json").exists() and _proxy_reached(frames):
            models.save(model, folder)
            (folder / "chosen.json").write_text(json.dumps({"step": step, "rule": "met"}))
        paused += time.perf_counter() - start

    steps = training.steps_of(len(forget), recipe.batch, recipe.epochs)
    start = time.perf_counter()
    with on_threads(1):
        labels = training.draw_labels(method, forget, model, tok, seed, recipe.variant)
        history = training.unlearn(
            model, method, forget, retain, recipe, tok.pad_token_id, seed, reference, labels, watch, watched_steps(steps)
        )
    seconds = time.perf_counter() - start - paused
    if not (folder / "config.json").exists():
        models.save(model, folder)
        (folder / "chosen.json").write_text(json.dumps({"step": steps, "rule": "not met: the last step"}))
    columns = {"method": method, "run": domain, "seed": seed, **asdict(recipe)}
    pd.concat(frames, ignore_index=True).assign(**columns).to_parquet(folder / "trajectory.parquet")
    pd.DataFrame(history).assign(**columns).to_parquet(folder / "history.parquet")
    return {"training_seconds": round(seconds, 2), "steps": steps}


def _sides(profile: Profile, domain: str, method: str) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of the forget set, and of the retain text that the method reads (none, the domain's, or general)."""
    from unlearn_utils import methods

    source = {None: None, "general": "general", "in_distribution": domain}[methods.named(method).retain_text]
    forget = list(documents(profile, [(domain, "forget")]).ids)
    return forget, list(documents(profile, [(source, "retain")]).ids) if source else []


def _proxy_reached(frames: list[pd.DataFrame]) -> bool:
    """The rule `PROXY`, on rows of step 0 (the target) and of the latest step."""
    from unlearn_utils import metrics

    first, last = frames[0].query("split == 'approximate'"), frames[-1].query("split == 'forget'")
    return metrics.perplexity(last.nll, last.tokens) >= metrics.perplexity(first.nll, first.tokens)


def unlearn_all(profile: Profile, method: str, **choices) -> dict[str, Step]:
    """One run of a method on every domain, side by side."""
    target(profile).folder()
    steps = {d: unlearned(profile, d, method, **choices) for d in profile.domains}
    side_by_side(profile, list(steps.values()))
    return steps


def trajectories(steps: dict[str, Step]) -> pd.DataFrame:
    """Rows of every watched step of several runs; `chosen` marks the step whose weights were kept."""
    frames = []
    for step in steps.values():
        frame = pd.read_parquet(step.folder() / "trajectory.parquet")
        frames.append(frame.assign(chosen=frame.step == json.loads((step.folder() / "chosen.json").read_text())["step"]))
    return pd.concat(frames, ignore_index=True)


# ---------------------------------------------------------------------------------------------- cost


def flops(profile: Profile, domain: str, method: str | None) -> Step:
    """FLOPs of one real optimizer step and the steps of a whole run; `method` None: of retraining without the domain's forget set."""
    recipe = asdict(profile.unlearning if method else profile.pretraining)
    settings = {"data": fingerprint(profile), "shape": asdict(profile.shape), "recipe": recipe, "domain": domain, "method": method}
    return Step("flops", VERSIONS["flops"], settings, partial(_make_flops, profile, domain, method))


def _make_flops(profile: Profile, domain: str, method: str | None, folder: Path) -> None:
    from unlearn_utils import efficiency, models, training

    tok = tokenizer(profile)
    model = models.build(profile.shape, tok, 0)
    model.set_attn_implementation("eager")  # torch's counter sees nothing of fused attention on a CPU
    if method:
        forget, retain = _sides(profile, domain, method)
        recipe, loss = profile.unlearning, training.unlearning_objective(method, profile.unlearning, model)
        order = training.pairs(len(forget), len(retain), recipe.epochs, np.random.default_rng(0))
        collate = training.paired(method, forget, retain, tok.pad_token_id)
    else:
        ids = list(documents(profile, training_parts(profile, domain)).ids)
        recipe, loss = profile.pretraining, training.pretraining_objective
        order = training.orders(len(ids), recipe.epochs, np.random.default_rng(0))
        collate = training.single(ids, tok.pad_token_id)
    one = efficiency.step_flops(model, loss, collate(order[: recipe.batch]))
    steps = training.steps_of(len(order), recipe.batch, 1)
    row = {"method": method or "retraining", "run": domain, **one, "steps": steps, "flops": one["flops_per_step"] * steps}
    pd.DataFrame([row]).to_parquet(folder / "rows.parquet")
