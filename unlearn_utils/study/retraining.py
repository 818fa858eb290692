"""Ways to a model without a forget set that begin at an earlier model, or retrain in part.

*Rewound*: from the target's weights at a share of its training, the rest of the training without
the forget set. *Distilled* (UNDO, arXiv 2506.06278): an unlearned model, mixed with noise, learns
to predict retain text as it did before. *Soup* (MSA, arXiv 2506.20941): the target, less what its
base changes by when it reads the forget set, plus what it changes by on retain text. That needs a
base from before the forget set: so it is only for a profile that has one.

Each is an artifact that holds rows.parquet, a row a document of `method_paths.measured_documents`,
and trained.json: `tokens`, that were trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from unlearn_utils.cache.store import Artifact
from unlearn_utils.cache.workers import on_threads
from unlearn_utils.data import base_models
from unlearn_utils.profiles import Profile
from unlearn_utils.study import method_paths, pool
from unlearn_utils.study.single_run import Run
from unlearn_utils.study.study_documents import (
    names_in_training,
    tokenized,
    tokenizer,
    training_parts,
)
from unlearn_utils.study.versions import VERSIONS

if TYPE_CHECKING:
    from torch import nn

DISTILLED = (method_paths.CLAIMED, method_paths.ASCENT)  # methods whose models are distilled
SCALE = 0.1  # of the noise: beta of UNDO
# Shares of noise (alpha of UNDO), and epochs of distillation.
NOISES = ((0.2, 1), (0.6, 1))
# Factors of the two task vectors: alpha and beta of MSA, which has 1 to 2 and 1.
FACTORS = ((0.5, 1.0), (1.0, 0.0), (1.0, 1.0), (1.5, 1.0), (2.0, 1.0))


def rewound_setting(share: float) -> str:
    """Return where a training was begun again, in words."""
    return f"from {share:.0%}"


def distilled_setting(noise: float, epochs: int) -> str:
    """Return how a model was distilled, in words."""
    return f"noise {noise:g}, epochs {epochs}"


def soup_setting(alpha: float, beta: float) -> str:
    """Return the factors of a soup's two task vectors, in words."""
    return f"alpha {alpha:g}, beta {beta:g}"


def domain_of(profile: Profile) -> str:
    """Return the domain whose forget set is left out: the first."""
    return profile.domains[0]


def tokens_trained(artifact: Artifact) -> int:
    """Return the tokens that the training of a stored artifact read, in all its epochs."""
    return json.loads((artifact.folder() / "trained.json").read_text())["tokens"]


def tokens_of_soup(artifact: Artifact) -> dict[str, int]:
    """Return the tokens that each task vector of a stored soup was trained on, by split."""
    return json.loads((artifact.folder() / "trained.json").read_text())


def measured(artifact: Artifact) -> pd.DataFrame:
    """Return the rows of a stored artifact."""
    return pd.read_parquet(artifact.folder() / "rows.parquet")


# ----------------------------------------------------------------------------------------- rewound


def rewound(profile: Profile, domain: str, replicate: int, share: float) -> Artifact:
    """Return the target's training gone on with from a share of its steps, without a forget set.

    It begins at the kept weights and at that step of the schedule. The order of documents is the
    target's own, so what is read is what the target read next, less the forget set. Of the
    optimizer's averages nothing was kept: they begin anew.

    Args:
        profile: documents and recipe.
        domain: whose forget set is left out.
        replicate: of the target.
        share: one of `pool.KEPT`.
    """
    settings = {
        "target": pool.target(profile, replicate).path.name,
        "target_domain": domain,
        "share": share,
        "measured": [profile.corpus.measured, profile.grid.chosen_on],
    }
    make = partial(_make_rewound, profile, domain, replicate, share)
    return Artifact("rewound", VERSIONS["rewound"], settings, make)


def _make_rewound(
    profile: Profile, domain: str, replicate: int, share: float, folder: Path
) -> None:
    from unlearn_utils.engine import models, training

    kept = pool.kept_folder(pool.target(profile, replicate).folder(), share)
    documents = retain_text(profile, domain)
    names = names_in_training(documents)
    recipe, seed = profile.pretraining, _seed(profile, domain, replicate)
    first = round(share * training.steps_of(len(documents), recipe.batch, recipe.epochs))
    model = models.load(kept)
    with on_threads(1):
        history = training.pretrain(
            model,
            list(documents.ids),
            recipe,
            tokenizer(profile).pad_token_id,
            seed,
            names=names,
            first=first,
        )
    order = training.hashed_orders(names, recipe.epochs, seed)[first * recipe.batch :]
    lengths = documents.ids.map(len).to_numpy()
    _write(profile, domain, model, int(lengths[order].sum()), folder)
    pd.DataFrame(history).to_parquet(folder / "history.parquet")


def retain_text(profile: Profile, domain: str) -> pd.DataFrame:
    """Return all that a model is trained on but the forget set of a domain, as token ids."""
    others = [other for other in profile.domains if other != domain]
    return tokenized(profile, training_parts(profile, others))


def _seed(profile: Profile, domain: str, replicate: int) -> int:
    """Return the seed of a replicate's target."""
    return pool.pairs(profile, domain, replicate)[0].target.seed(profile.domains)


def _write(profile: Profile, domain: str, model: nn.Module, tokens: int, folder: Path) -> None:
    """Write the rows of a model, and what its training read."""
    _rows(profile, domain, model).to_parquet(folder / "rows.parquet")
    (folder / "trained.json").write_text(json.dumps({"tokens": tokens}))


def _rows(profile: Profile, domain: str, model: nn.Module) -> pd.DataFrame:
    """Return the rows of a model on the documents of a path."""
    from unlearn_utils.engine import evaluation

    documents = method_paths.measured_documents(profile, domain)
    with on_threads(1):
        return evaluation.measure_briefly(model, documents, tokenizer(profile).pad_token_id)


# --------------------------------------------------------------------------------------- distilled


def distilled(run: Run, noise: float, epochs: int) -> Artifact:
    """Return an unlearned model that was mixed with noise and learnt from itself again.

    It reads all training text but the forget set, by the recipe of pre-training in fewer epochs,
    and learns the predictions of the unlearned model, not the text's own tokens.

    Args:
        run: whose path's kept weights are mixed and teach.
        noise: its share, alpha of UNDO.
        epochs: of distillation.
    """
    settings = {
        "path": method_paths.path(run, keep=True).path.name,
        "noise": [noise, SCALE],
        "recipe": asdict(replace(run.profile.pretraining, epochs=epochs)),
    }
    make = partial(_make_distilled, run, noise, epochs)
    return Artifact("distilled", VERSIONS["distilled"], settings, make)


def _make_distilled(run: Run, noise: float, epochs: int, folder: Path) -> None:
    from unlearn_utils.engine import mixing, models, training

    profile, domain = run.profile, run.target_domain
    start = method_paths.path(run, keep=True).folder()
    model, teacher = models.load(start), models.load(start)
    seed = _seed(profile, domain, run.replicate)
    mixing.mix_with_noise(model, noise, SCALE, seed)
    documents = retain_text(profile, domain)
    with on_threads(1):
        history = training.distil(
            model,
            teacher,
            list(documents.ids),
            replace(profile.pretraining, epochs=epochs),
            tokenizer(profile).pad_token_id,
            seed,
            names_in_training(documents),
        )
    _write(profile, domain, model, epochs * int(documents.ids.map(len).sum()), folder)
    pd.DataFrame(history).to_parquet(folder / "history.parquet")


# -------------------------------------------------------------------------------------------- soup


def soup(profile: Profile, domain: str, replicate: int) -> Artifact:
    """Return the target less the task vector of the forget set, plus that of retain text.

    Both vectors are of the profile's base, trained by the recipe of the target: on the forget set,
    and on as many retain documents of the domain, none of which are measured.

    Returns:
        rows.parquet with a column setting, as `soup_setting` of each of `FACTORS`; trained.json:
        `forget`, `retain`, tokens of each training.
    """
    settings = {
        "target": pool.target(profile, replicate).path.name,
        "target_domain": domain,
        "factors": list(FACTORS),
        "measured": [profile.corpus.measured, profile.grid.chosen_on],
    }
    make = partial(_make_soup, profile, domain, replicate)
    return Artifact("soup", VERSIONS["soup"], settings, make)


def _make_soup(profile: Profile, domain: str, replicate: int, folder: Path) -> None:
    from unlearn_utils.engine import mixing, models, training

    start = base_models.base_model(profile.base).folder()
    recipe, seed = profile.pretraining, _seed(profile, domain, replicate)
    vectors, tokens = {}, {}
    for split, documents in soup_documents(profile, domain).items():
        model = models.load(start)
        with on_threads(1):
            training.pretrain(
                model,
                list(documents.ids),
                recipe,
                tokenizer(profile).pad_token_id,
                seed,
                names=names_in_training(documents),
            )
        vectors[split] = mixing.changes(model, models.load(start))
        tokens[split] = recipe.epochs * int(documents.ids.map(len).sum())
    frames = []
    for alpha, beta in FACTORS:
        model = models.load(pool.target(profile, replicate).folder())
        mixing.add_changes(model, [(-alpha, vectors["forget"]), (beta, vectors["retain"])])
        frames.append(_rows(profile, domain, model).assign(setting=soup_setting(alpha, beta)))
    pd.concat(frames, ignore_index=True).to_parquet(folder / "rows.parquet")
    (folder / "trained.json").write_text(json.dumps(tokens))


def soup_documents(profile: Profile, domain: str) -> dict[str, pd.DataFrame]:
    """Return what each task vector is of, as token ids, by split: as many documents of each."""
    forget = tokenized(profile, [(domain, "forget")])
    retain = tokenized(profile, [(domain, "retain")])
    retain = retain[retain["rank"] >= profile.corpus.measured]
    return {"forget": forget, "retain": retain.head(len(forget))}


# ------------------------------------------------------------------------------------- all of them


def distilled_of(profile: Profile, replicate: int) -> Iterable[tuple[str, float, int, Artifact]]:
    """Yield method, share of noise, epochs, and the artifact, of all that is distilled."""
    for method in DISTILLED:
        run = method_paths.usual_run(profile, replicate, domain_of(profile), method)
        for noise, epochs in NOISES:
            yield method, noise, epochs, distilled(run, noise, epochs)


def rewound_and_distilled(profile: Profile) -> list[Artifact]:
    """Return what retrains in part, of every replicate; nothing of a published model or a base.

    Their targets' weights on the way are not kept.
    """
    if profile.hub or profile.base:
        return []
    found = []
    for replicate in profile.replicates:
        for share in pool.KEPT:
            found.append(rewound(profile, domain_of(profile), replicate, share))
        found += [artifact for *_, artifact in distilled_of(profile, replicate)]
    return found


def soups(profile: Profile) -> list[Artifact]:
    """Return the soup of every replicate; nothing where no base came before the forget set."""
    if not profile.base:
        return []
    return [soup(profile, domain_of(profile), replicate) for replicate in profile.replicates]
