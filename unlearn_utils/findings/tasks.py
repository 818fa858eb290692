"""What published models can still do after unlearning: downstream tasks, question by question."""

from __future__ import annotations

import pandas as pd

from unlearn_utils.core.methods import METHODS
from unlearn_utils.profiles import Profile
from unlearn_utils.study import extra_measurements, method_paths, pool


def downstream_tasks(profile: Profile, seed: int) -> pd.DataFrame:
    """Return what the models can still do on each of the profile's tasks.

    That is the target's score, and each unlearned model's less the target's, question by question.
    An unlearned model is that of the first replicate's path at the usual rate, at the step whose
    weights are kept: the nearest to retraining on the selection half, or to what stands for it.

    Args:
        profile: names the tasks.
        seed: of the bootstrap.

    Returns:
        model, target_domain, task, measure, value, low, high, n (questions).

    Raises:
        ValueError: as `downstream.load`.
    """
    from unlearn_utils.engine import downstream

    replicate = profile.replicates[0]
    target = extra_measurements.task_answers(profile, pool.target(profile, replicate))
    before = extra_measurements.rows_of([target])
    scores = downstream.summarise(before, seed, profile.resamples)
    parts = [scores.assign(model="target", target_domain="")]
    runs = []
    for domain in profile.domains:
        for method in METHODS:
            runs.append(method_paths.usual_run(profile, replicate, domain, method))
    for run, path in zip(runs, method_paths.make_all(runs), strict=True):
        answered = extra_measurements.task_answers(profile, path)
        after = extra_measurements.rows_of([answered])
        lost = downstream.differences(after, before, seed, profile.resamples)
        parts.append(lost.assign(model=f"{run.method} - target", target_domain=run.target_domain))
    found = pd.concat(parts, ignore_index=True)
    keys = ["model", "target_domain"]
    return found[[*keys, *found.columns.drop(keys)]]
