"""When a training is not worth its rest: own rule, as Optuna's pruners know one objective only.

A small network is less accurate than a large one, and must not be stopped for that: it may be the best of its
size. So a network is compared, after the same number of epochs, with those that cost no more than it does. If
one of them is ahead by the margin, this one has no place on the front, and its training ends. As in
successive halving this is asked after 1, 2, 4, … epochs: most of what is hopeless costs one epoch. Nobody
waits for anybody: a network is compared with what is known at that moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Contender:
    """What is known of a network during its training.

    Attributes:
        network: Its name.
        costs: Objective → value; less is better.
        curve: Accuracy after each epoch, 0..1.
    """

    network: str
    costs: Mapping[str, float]
    curve: Sequence[float]


def better_one(own: Contender, others: Sequence[Contender], margin: float) -> Contender | None:
    """The network that makes another one hopeless.

    Args:
        own: The one in training.
        others: All other ones, in training or trained.
        margin: Points of accuracy, 0..100, that the other one must be ahead after as many epochs.

    Returns:
        The one that is furthest ahead among those that cost no more in any objective; None if there is none.
    """
    epoch = len(own.curve)
    ahead = [
        other
        for other in others
        if len(other.curve) >= epoch
        and other.costs.keys() >= own.costs.keys()
        and all(other.costs[name] <= cost for name, cost in own.costs.items())
        and 100 * (other.curve[epoch - 1] - own.curve[epoch - 1]) >= margin
    ]
    return max(ahead, key=lambda other: other.curve[epoch - 1], default=None)
