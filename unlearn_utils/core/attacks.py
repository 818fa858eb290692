"""What an attack gives back of what was unlearned, beside a control that goes through the same.

The control is a retrained model, or what stands for one. A *level* is log perplexity of forget
documents that the attack itself never read, in nats a token. Any model learns from an attack, so
what counts is how much more the attacked model does than the control.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from unlearn_utils.core.arrays import Floats


def levels(rows: pd.DataFrame, weights: Floats) -> Floats:
    """Return log perplexity at each mark of an attack, in each draw: (draws, marks).

    Args:
        rows: step, nll, tokens; at every step the same documents in one order.
        weights: how often each document counts, (draws, documents), as `tables.draw_weights`.
    """
    found = []
    for _, at_mark in rows.groupby("step"):
        found.append(weights @ at_mark.nll.to_numpy() / (weights @ at_mark.tokens.to_numpy()))
    return np.stack(found, axis=1)


def fall(levels: Floats) -> Floats:
    """Return by how much a level falls at most on the way: (draws,), 0 if it only rises.

    Somebody who attacks may stop where the documents are easiest. A mark that is no number, as
    after a run that diverged, is none.

    levels: (draws, marks), the first before the attack.
    """
    return levels[:, 0] - np.fmin.reduce(levels, axis=1)


def recovery(attacked: Floats, control: Floats) -> Floats:
    """Return the fall of a model's level less the control's, in nats a token: (draws,).

    attacked, control: (draws, marks), each the first before the attack.
    """
    return fall(attacked) - fall(control)


def area_between(steps: Sequence[int], attacked: Floats, control: Floats) -> Floats:
    """Return the mean over the steps of the control's level less the model's: (draws,).

    It is the area between the two curves by the trapezoidal rule, over the number of steps; above 0
    the attacked model knows the documents better than the control. Not a number if a mark is none.

    Args:
        steps: of the marks, rising.
        attacked, control: (draws, marks).
    """
    return np.trapezoid(control - attacked, steps, axis=1) / (steps[-1] - steps[0])
