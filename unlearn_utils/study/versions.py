"""The version of each kind of artifact, by the kind's name.

Raise a number when the code of an artifact changes its result. The version is part of the key under
which a result is stored, so that a result of the older code is not taken for one of the newer.
"""

from __future__ import annotations

VERSIONS = {
    "pretrained": 5,
    "measured": 2,
    "path": 1,
    "continued": 1,
    "token_losses": 1,
    "answered": 1,
    "margins": 1,
    "relearned": 1,
    "rounded": 1,
    "prefixed": 1,
    "rewound": 2,
    "distilled": 2,
    "soup": 1,
    "counted": 2,
    "timed": 3,
}
