"""Errors that a user can act on.

Every error says what is wrong, where, and what to do. The command line catches `CsrError` and
nothing else: anything that is not a `CsrError` is a defect of this package and keeps its traceback.
"""

from __future__ import annotations


class CsrError(Exception):
    """Base of every error whose cause lies in the input, the options or the machine."""

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        """Builds the message.

        Args:
            what: What is wrong, one sentence.
            where: File, layer, tensor or option concerned.
            fix: What the user can do about it.
        """
        self.what = what
        self.where = where
        self.fix = fix
        parts = [f"{where}: {what}" if where else what]
        if fix:
            parts.append(fix)
        super().__init__("\n".join(parts))


class OptionError(CsrError):
    """An option's value or combination that cannot be used."""


class CheckpointError(CsrError):
    """A checkpoint that cannot be trusted or does not fit its architecture."""


class DataError(CsrError):
    """A dataset that is missing, empty, damaged or of the wrong shape."""


class MissingPartError(DataError):
    """A dataset that is sound but has no training or no test part."""


class ModelError(CsrError):
    """A network, layer or replacement that is not possible."""


class CaptureError(CsrError):
    """A torch module that cannot be turned into a static graph."""


class GraphError(CsrError):
    """A static graph that is not well formed."""


class ExportError(CsrError):
    """An export that could not be completed."""


class ParityError(ExportError):
    """An exported network that does not compute what the checkpoint computes."""


class LedgerError(ExportError):
    """An exported network whose tied weights were duplicated."""


class ArtifactError(CsrError):
    """An artifact directory that is incomplete, changed or of an unknown version."""


class RuntimeUnavailableError(CsrError):
    """A runtime that cannot run on this machine."""


class BenchError(CsrError):
    """A measurement that could not be completed."""


class MissingDependencyError(CsrError):
    """A Python package that an optional feature needs."""

    def __init__(
        self,
        package: str,
        extra: str,
        purpose: str,
        *,
        fix: str | None = None,
        cause: ImportError | None = None,
    ) -> None:
        """Builds the message.

        Args:
            package: The distribution that is missing.
            extra: The extra of csr-deploy that brings it.
            purpose: What it is needed for.
            fix: What to do where installing the extra is not it.
            cause: What importing it raised: a package may be there and lack a library of the system.
        """
        self.package = package
        self.extra = extra
        if cause is not None and not isinstance(cause, ModuleNotFoundError):
            reason = (str(cause).splitlines() or [type(cause).__name__])[0]
            super().__init__(
                f"{purpose} needs the package '{package}', which is there but cannot be imported: {reason}",
                fix="Install what it lacks, or a version of it that is made for this Python and this system.",
            )
            return
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed.",
            fix=fix or f"Run: pip install 'csr-deploy[{extra}]'",
        )
