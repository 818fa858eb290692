"""The runs of a profile in several processes, for notebooks to find.

It is what `accelerate launch -m unlearn_utils compute PROFILE` does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from unlearn_utils.cache.store import Artifact
from unlearn_utils.engine import distributed
from unlearn_utils.profiles import Profile
from unlearn_utils.study import attacked, method_paths, pool, released_code, since
from unlearn_utils.study.single_run import Run


def artifacts(profile: Profile) -> Iterator[Artifact]:
    """Yield every artifact that trains, or reads at length, a model of the profile's size.

    Each comes after those that it needs.
    """
    if profile.hub:
        for model in pool.models_of(profile).values():
            yield pool.measurements(profile, model)
    else:
        for member in pool.all_members(profile):
            model = pool.trained_model(profile, member)
            yield model
            yield pool.measurements(profile, model)
    for run in every_run(profile):
        yield method_paths.path(run, method_paths.keeps(run))
    if not profile.notebooks:  # else it has no notebook on attacks
        yield from attacked.artifacts(profile)


def every_run(profile: Profile) -> list[Run]:
    """Return the runs of a profile's paths, once each.

    They are of all methods, of the released code's defects, and of what is attacked.
    """
    runs = [
        *method_paths.every_run(profile),
        *released_code.all_runs(profile),
        *since.runs(profile),
    ]
    if not profile.notebooks:
        for replicate in attacked.replicates_of(profile):
            runs += attacked.runs(profile, replicate).values()
    return list(dict.fromkeys(runs))


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
    batches = {run.recipe.batch for run in every_run(profile)}
    if not profile.hub:
        batches.add(profile.pretraining.batch)
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
