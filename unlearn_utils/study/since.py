"""The methods since the paper, beside those of the paper, at the same learning rates.

They are run on one domain alone, and at fewer rates than the paper's methods in the hyperparameter
study, for time. A path of the profile `laptop` takes about 20 core seconds: so nine methods, three
rates and six replicates take about 54 core minutes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from unlearn_utils.core.methods import SINCE
from unlearn_utils.profiles import Profile
from unlearn_utils.study import method_paths
from unlearn_utils.study.single_run import Run


def compared(profile: Profile, rates: tuple[float, ...] | None = None) -> Profile:
    """Return a profile whose grid has the rates and the domain that all methods are compared at.

    rates: some of those of the profile; None: all.
    """
    domains = profile.grid.domains[:1]
    grid = replace(
        profile.grid,
        learning_rates=profile.grid.since if rates is None else rates,
        domains=domains,
        claimed_domains=domains,
    )
    return replace(profile, grid=grid)


def runs(profile: Profile, names: Iterable[str] = tuple(SINCE)) -> list[Run]:
    """Return the runs of some methods at the rates that all are compared at.

    profile: `compared`, or the one that it is made of.
    """
    of = compared(profile)
    found = []
    for replicate in of.replicates:
        for domain in of.grid.domains:
            for name in names:
                found += method_paths.grid_runs(of, replicate, domain, name)
    return found
