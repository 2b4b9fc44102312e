"""When to lower the learning rate and when to stop, judged by the validation loss."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass
class PlateauDecay:
    """Lowers the learning rate when the loss no longer falls.

    The rules are those of PyTorch's `ReduceLROnPlateau` in mode `min`: a loss counts as better when it
    lies below `best * (1 - threshold)`, and changes of the rate by 1e-8 or less are not made. Of negative losses,
    such as decibels, PyTorch would take slightly worse ones for better; here the threshold is always below the best.

    Args:
        factor: what the rate is multiplied by.
        patience: epochs without a better loss that are tolerated; the next one lowers the rate.
        cooldown: epochs after a reduction that do not count.
        threshold: smallest relative improvement that counts.
    """

    factor: float
    patience: int
    cooldown: int = 0
    threshold: float = 1e-4
    best: float = math.inf
    bad_epochs: int = 0
    cooldown_left: int = 0

    def step(self, loss: float, learning_rate: float) -> float:
        """Take in an epoch's loss and return the learning rate of the next one."""
        if math.isinf(self.best) or loss < self.best - self.threshold * abs(self.best):
            self.best, self.bad_epochs = loss, 0
        else:
            self.bad_epochs += 1
        if self.cooldown_left:
            self.cooldown_left -= 1
            self.bad_epochs = 0
        if self.bad_epochs <= self.patience:
            return learning_rate
        self.bad_epochs, self.cooldown_left = 0, self.cooldown
        reduced = learning_rate * self.factor
        return reduced if learning_rate - reduced > 1e-8 else learning_rate

    def reset(self) -> None:
        """Forget all losses, as those of other data do not compare."""
        self.best = math.inf
        self.restart_count()

    def restart_count(self) -> None:
        """Grant full patience anew, and end a cooldown."""
        self.bad_epochs = self.cooldown_left = 0


def share_done(epoch: float, seconds: float, epochs: int, max_minutes: float | None) -> float:
    """Return how much of a training is done, by epochs or by time, from 0 to 1."""
    return min(1.0, max(epoch / epochs, seconds / (60 * max_minutes) if max_minutes else 0.0))


def cosine_decay(learning_rate: float, before: float, now: float) -> float:
    """Return the rate to go on with, given the one of the last epoch.

    When a share p of the training is done, the rate is `(1 + cos(pi p)) / 2` of the first one (Loshchilov & Hutter,
    "SGDR", 2017, without restarts). Made as a step from rate to rate, so that one that was lowered stays lower.

    Args:
        learning_rate: of the last epoch.
        before: share that was done before that epoch, from 0 to 1.
        now: share that is done after it.
    """
    if before >= 1:
        return 0.0
    return learning_rate * (1 + math.cos(math.pi * now)) / (1 + math.cos(math.pi * before))


@dataclasses.dataclass
class EarlyStopping:
    """Ends training when the best loss is `patience` epochs old (Open-Unmix, `openunmix/utils.py`).

    Args:
        patience: epochs without a better loss that end training.
    """

    patience: int
    best: float = math.inf
    bad_epochs: int = 0

    def step(self, loss: float) -> bool:
        """Take in an epoch's loss and return whether it is the best so far."""
        if loss < self.best:
            self.best, self.bad_epochs = loss, 0
            return True
        self.bad_epochs += 1
        return False

    def reset(self) -> None:
        """Forget all losses, as those of other data do not compare."""
        self.best, self.bad_epochs = math.inf, 0

    @property
    def stop(self) -> bool:
        """Whether patience has run out."""
        return self.bad_epochs >= self.patience
