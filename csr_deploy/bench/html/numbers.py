"""Numbers as text, with their units."""

from __future__ import annotations

from collections.abc import Callable

NOTHING = "–"
_MINUS = "−"

Text = Callable[[float], str]


def signed(value: float, digits: int) -> str:
    """With a sign in any case, a real minus."""
    return f"{value:+.{digits}f}".replace("-", _MINUS)


def count(value: float) -> str:
    """Whole, with thousands apart."""
    return f"{value:,.0f}"


def large(value: float) -> str:
    """Of instructions, multiply-accumulates and parameters."""
    if abs(value) >= 1e9:
        return f"{value / 1e9:,.2f} G"
    if abs(value) >= 1e6:
        return f"{value / 1e6:,.2f} M"
    return f"{value / 1e3:,.1f} k" if abs(value) >= 1e4 else count(value)


def size(value: float) -> str:
    """Of bytes, in B, KiB or MiB."""
    if abs(value) >= 2**20:
        return f"{value / 2**20:,.2f} MiB"
    return f"{value / 2**10:,.1f} KiB" if abs(value) >= 2**13 else f"{value:,.0f} B"


def time(nanoseconds: float) -> str:
    """Of nanoseconds, in µs, ms or s."""
    if nanoseconds >= 1e9:
        return f"{nanoseconds / 1e9:,.2f} s"
    return f"{nanoseconds / 1e6:,.3f} ms" if nanoseconds >= 1e5 else f"{nanoseconds / 1e3:,.1f} µs"


def share(value: float) -> str:
    """0..1 as percent."""
    return f"{100 * value:.2f} %"


def ratio(value: float) -> str:
    """To the baseline."""
    return f"×{value:.2f}"


def energy(value: float) -> str:
    """Of mJ."""
    return f"{value:,.3f} mJ"


def rate(value: float) -> str:
    """Images a second."""
    return f"{value:,.1f}/s" if value < 100 else f"{value:,.0f}/s"
