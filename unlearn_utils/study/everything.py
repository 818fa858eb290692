"""The runs of a profile in several processes, for notebooks to find.

It is what `accelerate launch -m unlearn_utils compute PROFILE` does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from unlearn_utils.cache.store import Artifact
from unlearn_utils.core.methods import METHODS
from unlearn_utils.engine import distributed
from unlearn_utils.profiles import Profile
from unlearn_utils.study import grid, pool, released_code, unlearning


def artifacts(profile: Profile) -> Iterator[Artifact]:
    """Yield every artifact that trains, or reads at length, a model of the profile's size.

    Each comes after those that it needs.
    """
    for model in pool.train_baselines(profile).values():
        yield pool.measurements(profile, model)
    for domain in profile.domains:
        for method in METHODS:
            yield unlearning.unlearning_run(profile, domain, method)
    for domain in profile.domains:
        for method in METHODS:
            for seed in range(1, profile.seeds):
                yield unlearning.repeated_run(profile, domain, method, seed)
    yield from released_code.artifacts(profile, profile.domains[0]).values()
    for setting in grid.plan(profile):
        yield grid.grid_run(profile, setting)


def fill(artifact: Artifact) -> bool:
    """Fill an artifact if it is missing, and return whether it was.

    All processes call this alike: they train together, and the first writes.
    """
    if distributed.on_main_process(artifact.done):
        return False
    if distributed.process_state().is_main_process:
        artifact.fill()
    else:
        with tempfile.TemporaryDirectory() as scratch:
            artifact.make(Path(scratch))
    distributed.process_state().wait_for_everyone()
    return True


def check(profile: Profile) -> None:
    """Check that the optimizer batch of every run divides among the processes.

    Raises:
        ValueError: one does not.
    """
    batches = {profile.unlearning.batch, *profile.grid.batches}
    for pair in released_code.pairs(profile).values():
        for choices in (pair.corrected, pair.official):
            if "batch" in choices:
                batches.add(choices["batch"])
    processes = distributed.process_state().num_processes
    undivided = sorted(batch for batch in batches if batch % processes)
    if undivided:
        raise ValueError(
            f"profile {profile.name}: batches of {undivided} do not divide among {processes} "
            "processes; start as many as divide them"
        )


def compute(profile: Profile) -> None:
    """Fill what is missing of `artifacts`, one after the other, and print a line for each.

    Raises:
        ValueError: as `check`.
    """
    with distributed.raise_together():
        check(profile)
    for number, artifact in enumerate(artifacts(profile), 1):
        line = f"{number}: {artifact.name} {artifact.path.name}"
        if not fill(artifact):
            line += ", there already"
        print(line, flush=True)
