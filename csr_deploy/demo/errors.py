"""Errors of the demo that its own parts tell apart."""

from __future__ import annotations

from csr_deploy.errors import CsrError, DataError


class SourceError(CsrError):
    """A source that cannot be opened or that stopped; it may come back."""


class DamagedFrameError(DataError):
    """One frame that is no picture; the ones after it may be."""
