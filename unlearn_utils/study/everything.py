"""The runs of a profile in several processes, for notebooks to find: what `accelerate launch -m unlearn_utils compute PROFILE` does."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from unlearn_utils.cache.store import Artifact
from unlearn_utils.engine import distributed
from unlearn_utils.profiles import Profile
from unlearn_utils.study import grid, pool, released_code, unlearning


def artifacts(profile: Profile) -> Iterator[Artifact]:
    """Every step that trains or reads a model of the profile's size at length, each after those that it needs."""
    yield from (pool.measurements(profile, model) for model in pool.train_baselines(profile).values())
    pairs = [(d, m) for d in profile.domains for m in grid.METHODS]
    yield from (unlearning.unlearning_run(profile, d, m) for d, m in pairs)
    yield from (unlearning.repeated_run(profile, d, m, seed) for d, m in pairs for seed in range(1, profile.seeds))
    yield from released_code.artifacts(profile, profile.domains[0]).values()
    yield from (grid.grid_run(profile, setting) for setting in grid.plan(profile))


def fill(step: Artifact) -> bool:
    """Fills an entry, all processes alike, if it is missing: they train together, and the first writes. Whether it was missing."""
    if distributed.on_main_process(step.done):
        return False
    if distributed.process_state().is_main_process:
        step.fill()
    else:
        with tempfile.TemporaryDirectory() as scratch:
            step.make(Path(scratch))
    distributed.process_state().wait_for_everyone()
    return True


def check(profile: Profile) -> None:
    """Raises ValueError for an optimizer batch of any run that does not divide among the processes."""
    pairs, processes = released_code.pairs(profile).values(), distributed.process_state().num_processes
    batches = {profile.unlearning.batch, *profile.grid.batches} | {c["batch"] for _, *both in pairs for c in both if "batch" in c}
    if odd := sorted(b for b in batches if b % processes):
        raise ValueError(
            f"profile {profile.name}: batches of {odd} do not divide among {processes} processes; start as many as divide them"
        )


def compute(profile: Profile) -> None:
    """Fills what is missing of a profile's `steps`, one after the other, with a line for each. Raises ValueError as `check`."""
    with distributed.raise_together():
        check(profile)
    for number, step in enumerate(artifacts(profile), 1):
        made = fill(step)
        print(f"{number}: {step.name} {step.path.name}{'' if made else ', there already'}", flush=True)
