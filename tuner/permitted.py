"""What a tuning run may try of a workload: limits of the device, bans and pins, what was asked."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import UnsupportedOperation
from ..kernels import SPECS
from ..kernels.capability import Capabilities
from ..kernels.rules import Rules
from ..kernels.types import Config, DeviceLimits, Workload
from ..kernels.uses import Use
from ..kernels.variants import VariantRequest


class Permitted:
    """Answers for one device, the ``rules`` of its driver and a run's ``variants``.

    Where something that reads a weight can't have the kind that was asked of all operations, none
    of the ``uses`` in its group has to.
    """

    def __init__(
        self, limits: DeviceLimits, rules: Rules, variants: VariantRequest, uses: Sequence[Use]
    ) -> None:
        self.rules, self._limits, self._variants = rules, limits, variants
        self._capabilities = Capabilities(limits, rules)
        self._fallen: set[Workload] = set()
        groups = {
            use.group
            for use in uses
            if variants.kind(use.workload.op) and self.kind(use.workload) is None
        }
        self._fallen = {use.workload for use in uses if use.group in groups - {None}}

    def kind(self, workload: Workload) -> str | None:
        """The kind of variant that ``workload`` has to have; None if any will do."""
        if workload in self._fallen:
            return None
        return self._capabilities.kind(self._variants, workload)

    def fits(self, workload: Workload, config: Config) -> bool:
        """Whether ``config`` can run, and no rule is against it."""
        spec = SPECS[workload.op]
        fits = spec.contains(workload, config)
        fits = fits and self.rules.allows(workload, config, self._limits)
        return fits and spec.check(workload, config, self._limits) is None

    def allows(self, workload: Workload, config: Config) -> bool:
        """Whether ``config`` fits and is of the kind that was asked for."""
        if not self.fits(workload, config):
            return False
        own = SPECS[workload.op].variant(config.variant).kind
        return self.kind(workload) in (None, own)

    def safe(self, workload: Workload) -> Config:
        """The safe default, or what the rules leave in its place.

        Raises :class:`~clkiln.errors.UnsupportedOperation` if they leave nothing.
        """
        spec, kind = SPECS[workload.op], self.kind(workload)
        safe = spec.safe(workload, self._limits)
        if kind is not None:
            safe = spec.safe_of_kind(workload, self._limits, kind) or safe
        if self.rules.allows(workload, safe, self._limits):
            return safe
        left = self.rules.safe(workload, self._limits, kind=kind)
        if left is None:
            raise UnsupportedOperation(f"{workload}: nothing to tune: {self.rules.why(workload)}")
        return left
