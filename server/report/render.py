"""Templates of the pages, and how they write figures in words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).parent / "templates"  # of this checkout, or of an unpacked app package
MISSING = "–"


def percent(value: float | None) -> str:
    """0.2345 -> 23.5 %."""
    return MISSING if value is None else f"{100 * value:.1f} %"


def short(value: float) -> str:
    """Write three significant digits, no exponent where it can be avoided."""
    return f"{value:.3g}"


def byte_text(count: float | None) -> str:
    """Return a byte count in decimal units: 815320 -> 0.82 MB, 50788016 -> 50.8 MB."""
    if count is None:
        return MISSING
    if count < 1000:
        return f"{count:.0f} B"
    if count < 1e5:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e6:.2f} MB" if count < 1e7 else f"{count / 1e6:.1f} MB"


def mean_and_spread(values: Sequence[float]) -> str:
    """Per cent: ``23.4 ± 1.1`` (sample standard deviation), ``23.4`` for one value, a dash for none."""
    if not values:
        return MISSING
    mean = f"{100 * fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * stdev(values):.1f}"


@lru_cache(1)
def _environment() -> Environment:
    # strict: a name that is misspelt is an error, not a gap in the page
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"percent": percent, "byte_text": byte_text, "mean": fmean, "deviation": stdev}
    return made


def render_page(template: str, **values: Any) -> str:
    """Fill a template of ``templates/``; every value is escaped but where the template says that it is markup."""
    return _environment().get_template(f"{template}.html.md").render(values)
