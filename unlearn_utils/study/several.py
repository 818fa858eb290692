"""The runs of a profile in several processes, for notebooks to find: what `accelerate launch -m unlearn_utils compute PROFILE` does."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from unlearn_utils.cache.store import Step
from unlearn_utils.engine import loop
from unlearn_utils.profiles import Profile
from unlearn_utils.study import experiments, grid, released


def steps(profile: Profile) -> Iterator[Step]:
    """Every step that trains or reads a model of the profile's size at length, each after those that it needs."""
    yield from (experiments.measured(profile, model) for model in experiments.train_baselines(profile).values())
    pairs = [(d, m) for d in profile.domains for m in grid.METHODS]
    yield from (experiments.unlearned(profile, d, m) for d, m in pairs)
    yield from (experiments.repeated(profile, d, m, seed) for d, m in pairs for seed in range(1, profile.seeds))
    yield from released.steps(profile, profile.domains[0]).values()
    yield from (grid.ran(profile, setting) for setting in grid.plan(profile))


def fill(step: Step) -> bool:
    """Fills an entry, all processes alike, if it is missing: they train together, and the first writes. Whether it was missing."""
    if loop.first(step.done):
        return False
    if loop.place().is_main_process:
        step.fill()
    else:
        with tempfile.TemporaryDirectory() as scratch:
            step.make(Path(scratch))
    loop.place().wait_for_everyone()
    return True


def check(profile: Profile) -> None:
    """Raises ValueError for an optimizer batch of any run that does not divide among the processes."""
    pairs, processes = released.pairs(profile).values(), loop.place().num_processes
    batches = {profile.unlearning.batch, *profile.grid.batches} | {c["batch"] for _, *both in pairs for c in both if "batch" in c}
    if odd := sorted(b for b in batches if b % processes):
        raise ValueError(
            f"profile {profile.name}: batches of {odd} do not divide among {processes} processes; start as many as divide them"
        )


def compute(profile: Profile) -> None:
    """Fills what is missing of a profile's `steps`, one after the other, with a line for each. Raises ValueError as `check`."""
    with loop.agreed():
        check(profile)
    for number, step in enumerate(steps(profile), 1):
        made = fill(step)
        print(f"{number}: {step.name} {step.path.name}{'' if made else ', there already'}", flush=True)
