"""Which stems are written of a separation: a linear map from the estimates and the mixture to named stems.

With estimates e_t of T targets and the mixture x, at the mixture's rate and channels:

    targets            e_t + (x - sum_k e_k) / T                their sum is x, by `consistency`
    aggregates         sum of the above over some targets
    targets, residual  e_t, and x - sum of the e_t written
    two stems          e_t, and x - e_t

So whatever makes up a whole sums to the mixture: the stems null against it. The first rule is the
smallest change that does so, and takes the same from each target (Wisdom et al., "Differentiable consistency
constraints for improved deep speech enhancement", 2019).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from umx_model.errors import InputError

Waveform = npt.NDArray[np.float32]

RESIDUAL = "residual"
REST = "no_{}"  # of two stems, the other one


@dataclass(frozen=True)
class Stems:
    """Stems as sums of estimates and mixture.

    Attributes:
        names: of the stems.
        from_estimates: what each takes of each estimate, float32 `[targets, stems]`.
        from_mixture: what each takes of the mixture, float32 `[stems]`.
    """

    names: tuple[str, ...]
    from_estimates: npt.NDArray[np.float32]
    from_mixture: npt.NDArray[np.float32]

    def __call__(self, mixture: Waveform, estimates: Waveform) -> Waveform:
        """Return the stems `[stems, samples, channels]` of a piece of a mixture.

        Args:
            mixture: `[samples, channels]`.
            estimates: `[samples, channels, targets]`.
        """
        targets = self.from_estimates.shape[0]
        stems = self.from_estimates.T @ estimates.reshape(-1, targets).T
        for stem, weight in zip(stems, self.from_mixture, strict=True):
            if weight:
                stem += weight * mixture.reshape(-1)
        return stems.reshape(len(self.names), *mixture.shape)


@dataclass(frozen=True)
class StemSelection:
    """A choice of stems. What nothing is said of gives one stem per target, together as loud as the mixture.

    Attributes:
        targets: of the model, one stem each; None for all that are in no aggregate.
        two_stems: instead of all else, this target and the rest of the mixture, `no_<target>`.
        residual: add a stem of that name with what the stems' targets leave of the mixture.
        aggregates: stems that are sums of targets, as `{"accompaniment": ["drums", "bass", "other"]}`.
        consistency: correct the estimates so that they sum to the mixture. Without, they are what the
            model says. A model's only target is never corrected: it is not the whole mixture. Where a
            model's targets are not all that music is made of, `residual` keeps the rest out of them.
    """

    targets: Sequence[str] | None = None
    two_stems: str | None = None
    residual: bool = False
    aggregates: Mapping[str, Sequence[str]] = field(default_factory=dict)
    consistency: bool = True

    def names(self, known: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the stems that a model with these targets gives; raises as `resolve`."""
        return self.resolve(known).names

    def resolve(self, known: Sequence[str]) -> Stems:
        """Return the stems that a model with these targets gives: its targets, aggregates, the residual.

        Raises:
            InputError: a target that the model does not have, two stems of one name, or no stem.
        """
        unit = {target: row for target, row in zip(known, np.eye(len(known)), strict=True)}
        if self.two_stems is not None:
            if self.targets is not None or self.residual or self.aggregates:
                raise InputError("two stems: leave out targets, aggregates and the residual, which are other choices")
            _check_targets("two stems", [self.two_stems], known)
            vocals = unit[self.two_stems]
            return _stems({self.two_stems: (vocals, 0.0), REST.format(self.two_stems): (-vocals, 1.0)})

        members = {name: tuple(targets) for name, targets in self.aggregates.items()}
        for name, targets in members.items():
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
                raise InputError(f"aggregates: {name!r} cannot name a stem; use letters, digits, - and _")
            _check_targets(f"aggregate {name}", targets, known)
        if self.targets is None:
            chosen = [target for target in known if not any(target in targets for targets in members.values())]
        else:
            _check_targets("targets", self.targets, known)
            chosen = [target for target in known if target in self.targets]
        whole = {target: (target,) for target in chosen}
        taken = (set(whole) & set(members)) | ({RESIDUAL} & {*whole, *members} if self.residual else set())
        if taken:
            raise InputError(f"stems: {taken.pop()} would be two stems of one name; rename the aggregate")

        rows = {name: np.sum([unit[target] for target in dict.fromkeys(targets)], axis=0)
                for name, targets in (whole | members).items()}  # fmt: skip
        if self.residual:
            used = np.max(list(rows.values()), axis=0)  # each target once, however many stems have it
            return _stems({name: (row, 0.0) for name, row in rows.items()} | {RESIDUAL: (-used, 1.0)})
        if not self.consistency or len(known) == 1:
            return _stems({name: (row, 0.0) for name, row in rows.items()})
        return _stems({name: (row - row.mean(), row.mean()) for name, row in rows.items()})


def _check_targets(what: str, targets: Sequence[str], known: Sequence[str]) -> None:
    unknown = [target for target in targets if target not in known]
    if unknown:
        raise InputError(f"{what}: the model has no {', '.join(unknown)}; it has {', '.join(known)}")
    if not targets:
        raise InputError(f"{what}: none given; the model has {', '.join(known)}")


def _stems(weights: Mapping[str, tuple[npt.NDArray[np.float64], float]]) -> Stems:
    from_estimates = np.stack([row for row, _ in weights.values()], axis=-1).astype(np.float32)
    return Stems(tuple(weights), from_estimates, np.array([share for _, share in weights.values()], np.float32))
