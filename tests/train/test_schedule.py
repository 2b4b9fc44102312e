"""Against sequences worked out by hand from PyTorch's and Open-Unmix's code."""

import math

import pytest

from umx_model.train.schedule import EarlyStopping, PlateauDecay, cosine_decay, share_done


def rates(plateau: PlateauDecay, losses: list[float], rate: float = 1.0) -> list[float]:
    result = []
    for loss in losses:
        rate = plateau.step(loss, rate)
        result.append(rate)
    return result


def test_the_epoch_after_patience_lowers_the_rate() -> None:
    # torch: bad epochs 1, 2 are tolerated, the third one reduces.
    assert rates(PlateauDecay(0.5, patience=2), [1, 1, 1, 1, 1, 1, 1]) == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]


def test_a_better_loss_starts_the_count_again() -> None:
    assert rates(PlateauDecay(0.5, patience=1), [1, 1, 0.9, 0.9, 0.9]) == [1, 1, 1, 1, 0.5]


def test_improvement_must_exceed_the_relative_threshold() -> None:
    # 0.99995 > 1 - 1e-4 is no improvement, and the best stays 1, so that small steps add up: 0.9998 is one.
    plateau = PlateauDecay(0.5, patience=10)
    rates(plateau, [1, 0.99995])
    assert (plateau.best, plateau.bad_epochs) == (1, 1)
    rates(plateau, [0.9998])
    assert (plateau.best, plateau.bad_epochs) == (0.9998, 0)
    # Relative, not absolute: a gain of 2e-6 counts where losses are 1e-3.
    small = PlateauDecay(0.5, patience=10)
    rates(small, [1e-3, 0.998e-3])
    assert small.bad_epochs == 0
    # Nor is a loss of decibels better for being slightly worse.
    negative = PlateauDecay(0.5, patience=10)
    rates(negative, [-6, -5.9998, -6.0003])
    assert (negative.best, negative.bad_epochs) == (-6, 2)
    rates(negative, [-6.001])
    assert (negative.best, negative.bad_epochs) == (-6.001, 0)


def test_cooldown_epochs_do_not_count() -> None:
    # Reduced at epoch 3 (patience 1); epochs 4 and 5 cool down; 6 and 7 are bad: reduced at 7.
    assert rates(PlateauDecay(0.1, patience=1, cooldown=2), [1] * 7) == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.1, 0.01])


def test_a_count_that_is_restarted_grants_full_patience() -> None:
    plateau = PlateauDecay(0.1, patience=1, cooldown=5)
    rates(plateau, [1, 1, 1])  # cooling down
    plateau.restart_count()
    assert plateau.best == 1
    assert rates(plateau, [1, 1]) == pytest.approx([1, 0.1])


def test_losses_are_forgotten() -> None:
    plateau, stopping = PlateauDecay(0.5, patience=0, cooldown=3), EarlyStopping(patience=2)
    for loss in (1, 2, 3):
        plateau.step(loss, 1.0)
        stopping.step(loss)
    plateau.reset()
    stopping.reset()
    assert (plateau, stopping) == (PlateauDecay(0.5, patience=0, cooldown=3), EarlyStopping(patience=2))


def test_the_rate_does_not_vanish() -> None:
    assert PlateauDecay(0.5, patience=0, best=1.0).step(2.0, 1.5e-8) == 1.5e-8


def test_stops_when_the_best_is_patience_epochs_old() -> None:
    stopping = EarlyStopping(patience=3)
    improved, stopped = [], []
    for loss in [3, 2, 2, 2.5, 1.9, 1.9, 2, 3]:
        improved.append(stopping.step(loss))
        stopped.append(stopping.stop)
    assert improved == [True, True, False, False, True, False, False, False]
    assert stopped == [False] * 7 + [True]
    assert stopping.best == 1.9


def test_nothing_is_better_than_no_loss() -> None:
    assert EarlyStopping(patience=1).best == math.inf


def test_half_a_cosine_to_nothing() -> None:
    rates = [0.002]
    for epoch in range(8):
        rates.append(cosine_decay(rates[-1], epoch / 8, (epoch + 1) / 8))
    assert rates == pytest.approx([0.001 * (1 + math.cos(math.pi * epoch / 8)) for epoch in range(9)])
    # A rate that was lowered stays lower, and what is trained for longer than was planned stands still.
    assert cosine_decay(rates[3] / 2, 3 / 8, 4 / 8) == pytest.approx(rates[4] / 2)
    assert cosine_decay(rates[7], 7 / 8, 1.0) == 0
    assert cosine_decay(0.0, 1.0, 1.0) == 0


def test_share_done_by_epochs_or_time() -> None:
    assert share_done(3, 30, 4, None) == 0.75
    assert share_done(3, 30, 12, 1.0) == 0.5
    assert share_done(5, 0, 4, 1.0) == 1
