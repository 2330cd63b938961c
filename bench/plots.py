"""Curves as PNG files, by matplotlib (the ``bench`` extra)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .measure import Curve, MissingError


def plot(curves: Iterable[Curve], directory: Path) -> list[Path]:
    """Draw each of *curves* into *directory*; return the files.

    Raises:
        MissingError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise MissingError("matplotlib is not installed: pip install 'modelcache[bench]'") from None
    mpl.use("agg")
    from matplotlib import pyplot

    directory.mkdir(parents=True, exist_ok=True)
    files = []
    for curve in curves:
        figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
        for name, points in curve.series.items():
            axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
        axes.set(title=curve.title, xlabel=curve.x, ylabel=curve.y, xscale="log", yscale="log")
        ticks = sorted({x for points in curve.series.values() for x, _ in points})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
        files.append(directory / f"{curve.name}.png")
        figure.savefig(files[-1], dpi=120)
        pyplot.close(figure)
    return files
