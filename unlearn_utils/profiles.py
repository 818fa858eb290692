"""Every setting of every profile, in frozen dataclasses. A profile's name is all that a notebook chooses."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

DOMAINS = ("arxiv", "books", "github")
BOOKS = "UNLEARN_BOOKS"  # names a folder with the domain books, for the profile `paper`
# Downstream tasks, as lm-evaluation-harness names them: the paper's MMLU, ARC (both parts, for we do not know which), HellaSwag, GSM8K. Its
# HumanEval is left out, for it runs code that the model wrote. Shots, which we do not know of the paper, are the harness's defaults: 5 for
# gsm8k, none for the others.
TASKS = ("mmlu", "arc_challenge", "arc_easy", "hellaswag", "gsm8k")


@dataclass(frozen=True)
class Corpus:
    """Which documents, and how many of each split: pairs of forget and approximate documents, retain documents of a domain,
    general retain and general evaluation documents. `measured`: retain documents of a domain that are measured. `whole`: every chunk of a
    document is read, not its first alone. `books`: a folder with the domain `books`, which was never published."""

    source: str = "embedded"
    pairs: int = 60
    retain: int = 180
    general: int = 140
    evaluation: int = 40
    measured: int = 40
    whole: bool = False
    books: str = ""


@dataclass(frozen=True)
class Hub:
    """A published model that is unlearned as it is. What it was trained on is not at hand, so it has no retrained counterpart.

    revision: a commit of the hub's repository `name`. tokens: of its pre-training; gigabytes: of its weights; micro_batch: chunks at a
    time; checkpointing: layers' activations are computed again in the backward pass, for less memory.
    """

    name: str
    revision: str
    tokens: float
    gigabytes: float
    micro_batch: int
    checkpointing: bool = False


@dataclass(frozen=True)
class Shape:
    """A Llama with tied embeddings. Not the paper's (Yi-6B): the largest that trains five times in minutes on two cores."""

    vocabulary: int = 2048
    hidden: int = 128
    intermediate: int = 320
    layers: int = 4
    heads: int = 4
    context: int = 256  # tokens of a document that are read, its first


@dataclass(frozen=True)
class Pretraining:
    """Recipe of the target and of every retrained model; the paper downloads its model, so nothing here is stated by it.

    epochs: chosen because 5 memorise visibly (Min-K% AUC above 0.9) and five trainings fit in 8 minutes on two cores.
    muon_learning_rate, for the hidden matrices, and adamw_learning_rate, for the rest: usual values for models of this size.
    warmup: share of the steps; then cosine to zero. No weight decay.
    """

    epochs: int = 5
    batch: int = 8
    muon_learning_rate: float = 0.02
    adamw_learning_rate: float = 3e-3
    warmup: float = 0.05
    max_grad_norm: float = 1.0


SCHEDULES = ("constant", "cosine", "cosine, idle warm-up")


@dataclass(frozen=True)
class Unlearning:
    """Recipe of one unlearning run: AdamW without weight decay (as the paper's released code), constant learning rate.

    learning_rate: the released code uses 2e-5 for 6e9 parameters; not stated for small models, chosen because one epoch at 3e-4 to
    1e-3 crosses the retrained model's perplexity. epochs 1: the released code's. No warm-up: with so few steps the released code's
    rounds up to a step that does nothing. Constant, not cosine: so that a run passes through every shorter run.
    """

    learning_rate: float = 5e-4
    epochs: int = 1
    batch: int = 4
    max_grad_norm: float = 1.0
    retain_weight: float = 1.0
    variant: str | tuple[int, ...] = "corrected"
    schedule: str = "constant"  # or "cosine", or "cosine, idle warm-up": the released code's, whose first step has rate 0

    def __post_init__(self) -> None:
        """Raises ValueError for a rate or a count that is not positive."""
        for name in ("learning_rate", "epochs", "batch", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {self.schedule!r}; choose one of: {', '.join(SCHEDULES)}")


@dataclass(frozen=True)
class Grid:
    """The hyperparameter study: every method at every learning rate on every domain, looked at on the way at `marks` of an epoch.

    learning_rates: six over two decades around the profile's 5e-4; the range was chosen before any run. On the first domain alone also
    further batch sizes, weights of the retain term, seeds, and fewer retain documents (at the profile's own learning rate).
    """

    learning_rates: tuple[float, ...] = (5e-5, 1.25e-4, 3e-4, 8e-4, 2e-3, 5e-3)
    marks: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)  # epochs; the last is the length of a run
    domains: tuple[str, ...] = ("arxiv",)
    batches: tuple[int, ...] = ()  # beside the profile's
    retain_weights: tuple[float, ...] = ()  # beside the profile's
    seeds: int = 1
    retain_documents: tuple[int, ...] = (4, 15, 60)  # beside all


def sized(hidden: int, layers: int, vocabulary: int = 2048, context: int = 256) -> Shape:
    """A Llama of the laptop's proportions, heads of 32 as there."""
    return Shape(vocabulary, hidden, hidden * 5 // 2, layers, max(1, hidden // 32), context)


SIZES = ((64, 2), (128, 4), (256, 6), (384, 8))  # width and layers


@dataclass(frozen=True)
class Scaling:
    """How cost grows: with the forget set (shares of it, as one over these) and with the model."""

    parts: tuple[int, ...] = (8, 4, 2, 1)
    shapes: tuple[Shape, ...] = tuple(sized(*size) for size in SIZES)


@dataclass(frozen=True)
class Profile:
    """All that distinguishes one scale of the artifact from another. `noise_domain`: whose retrained model is trained twice.

    hub: a published model in the place of one that is trained here; then `shape` is its own and `pretraining` is not used. tasks: of
    lm-evaluation-harness, for utility downstream.
    """

    name: str
    corpus: Corpus = field(default_factory=Corpus)
    shape: Shape = field(default_factory=Shape)
    pretraining: Pretraining = field(default_factory=Pretraining)
    unlearning: Unlearning = field(default_factory=Unlearning)
    grid: Grid = field(default_factory=Grid)
    scaling: Scaling = field(default_factory=Scaling)
    domains: tuple[str, ...] = DOMAINS
    noise_domain: str = "arxiv"
    seeds: int = 3  # of every unlearning run
    workers: int = 2  # single-threaded processes side by side
    resamples: int = 1000  # of every bootstrap
    hub: Hub | None = None
    tasks: tuple[str, ...] = ()

    @property
    def truth(self) -> str:
        """What models are compared with: "retrained", or, where that cannot be, the paper's stand-in for it."""
        return "approximate retraining" if self.hub else "retrained"


# Yi-6B as the paper and its released code have it. Ours: no idle first step, one batch for both domains (the code: 480 chunks on arXiv, 680
# on GitHub, of 8 GPUs), adamw in float32, and fewer cells in the grid than on a laptop, about the code's learning rate.
PAPER = Profile(
    "paper",
    corpus=Corpus("llmunlearn/unlearn_dataset", pairs=2000, retain=4000, general=5000, evaluation=1000, measured=500, whole=True),
    shape=Shape(vocabulary=64000, hidden=4096, intermediate=11008, layers=32, heads=32, context=4096),
    unlearning=Unlearning(learning_rate=2e-5, batch=480, schedule="cosine"),
    grid=Grid(learning_rates=(1e-5, 2e-5, 4e-5), marks=(0.5, 1.0), retain_documents=(100,)),
    scaling=Scaling(shapes=tuple(sized(h, n, 64000, 512) for h, n in SIZES)),
    domains=("arxiv", "github"),
    seeds=1,
    workers=1,
    hub=Hub("01-ai/Yi-6B", "0b5fb42093db095ac65a579dbaf18624ad971ae0", tokens=3.1e12, gigabytes=12.1, micro_batch=1, checkpointing=True),
    tasks=TASKS,
)

# Pythia-1.4b (arXiv 2304.01373; 143,000 steps of 2,097,152 tokens) and MIMIR's known members and non-members of its training text (arXiv
# 2402.07841), of 100 to 200 words each. Learning rates: not stated for this size; about the released code's 2e-5, over a decade.
GPU = Profile(
    "gpu",
    corpus=Corpus("iamgroot42/mimir", pairs=300, retain=600, general=600, evaluation=300, measured=300),
    shape=Shape(vocabulary=50304, hidden=2048, intermediate=8192, layers=24, heads=16, context=512),
    unlearning=Unlearning(learning_rate=2e-5, batch=8),
    grid=Grid(learning_rates=(5e-6, 1e-5, 2e-5, 4e-5), retain_documents=(30, 150)),
    scaling=Scaling(shapes=tuple(sized(h, n, 50304, 512) for h, n in SIZES)),
    domains=("arxiv", "github"),
    workers=1,
    hub=Hub("EleutherAI/pythia-1.4b", "fedc38a16eea3bd36a96b906d78d11d2ce18ed79", tokens=143000 * 2097152, gigabytes=2.93, micro_batch=4),
    tasks=("arc_easy", "hellaswag"),
)

PROFILES = {
    p.name: p
    for p in (
        Profile(
            "smoke",
            corpus=Corpus(pairs=8, retain=24, general=24, evaluation=8, measured=8),
            shape=Shape(vocabulary=1024, hidden=64, intermediate=160, layers=2, heads=2, context=128),
            pretraining=Pretraining(epochs=4, batch=4),
            unlearning=Unlearning(learning_rate=2e-3, batch=2),
            grid=Grid(learning_rates=(1e-3, 4e-3), marks=(0.5, 1.0), retain_documents=(2,)),
            scaling=Scaling(parts=(2, 1), shapes=(sized(32, 1, 1024, 128), sized(64, 2, 1024, 128), sized(96, 2, 1024, 128))),
            seeds=2,
            resamples=200,
        ),
        Profile("laptop"),
        Profile(  # the models of `laptop`, the full grid
            "study",
            grid=Grid(marks=(0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0), domains=DOMAINS, batches=(8,), retain_weights=(0.3, 3.0), seeds=3),
        ),
        GPU,
        PAPER,
    )
}


def profile(name: str) -> Profile:
    """The profile of that name; `paper` with the domain books where `BOOKS` names a folder of them.

    Raises ValueError, listing the names, if there is none.
    """
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; choose one of: {', '.join(PROFILES)}")
    found, books = PROFILES[name], os.environ.get(BOOKS, "")
    if name != PAPER.name or not books:
        return found
    return replace(found, domains=DOMAINS, corpus=replace(found.corpus, books=str(Path(books).resolve())))
