"""A picture of how busy each worker was over time: ``Insights.plot()``. matplotlib draws it, only here is it needed."""

from __future__ import annotations

import errno
import importlib.util
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pool.insights import Insights

_SUFFIXES = (".svg", ".png")
_DEATH = "#d62728"
_BUSY = "#2c7fb8"


def check(path: str | os.PathLike[str]) -> None:
    """Raises ValueError, FileNotFoundError (for the folder) or ModuleNotFoundError if there can be no such plot, for
    those who want to know beforehand."""
    if os.path.splitext(path)[1].lower() not in _SUFFIXES:
        raise ValueError(f"a plot is a {' or a '.join(_SUFFIXES)} file, not {os.fspath(path)!r}")
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "no such folder", folder)
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError("plots need matplotlib: pip install 'prefork-pool[plot]'", name="matplotlib")


def draw(insights: Insights, path: str | os.PathLike[str]) -> None:
    """See ``Insights.plot``."""
    check(path)
    suffix = os.path.splitext(path)[1].lower()
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    use, workers, elapsed = insights.utilisation, len(insights.workers), max(insights.elapsed, 1e-9)
    unit, seconds = next((u for u in (("hours", 3600.0), ("minutes", 60.0)) if elapsed > 3 * u[1]), ("seconds", 1.0))
    step, end = use.step / seconds, elapsed / seconds
    columns = len(use.busy[0])
    rows = min(max(workers * 0.22, 0.7), 6.0)  # inches
    figure = Figure(figsize=(9.0, 2.3 + rows), layout="constrained")
    total, each = figure.subplots(2, 1, sharex=True, height_ratios=[1.1, rows])

    total.stairs(
        [sum(worker[k] for worker in use.busy) for k in range(columns)],
        [k * step for k in range(columns + 1)],
        fill=True,
        color=_BUSY,
    )
    total.set_ylim(0, workers)
    total.set_yticks([0, workers])
    total.set_ylabel("busy workers")
    tasks, busy = sum(w.tasks for w in insights.workers), sum(w.busy for w in insights.workers)
    total.set_title(
        f"{tasks:,} task{'s' * (tasks != 1)} on {workers} worker{'s' * (workers != 1)}: "
        f"{busy / elapsed / workers:.0%} busy in {end:.3g} {unit}",
        loc="left",
    )

    picture = each.imshow(
        use.busy,
        cmap=LinearSegmentedColormap.from_list("busy", ["#f0f0f0", "#b3d3e8", _BUSY]),
        vmin=0.0,
        vmax=1.0,
        aspect="auto",
        interpolation="nearest",
        extent=(0.0, columns * step, workers - 0.5, -0.5),
    )
    each.set_ylabel("worker")
    every = -(-workers // 40)
    each.set_yticks(range(0, workers, every))
    each.tick_params(axis="y", length=0, labelsize=8)
    each.set_xlim(0.0, end)
    each.set_xlabel(f"{unit} since the start")
    for between in range(1, workers):
        each.axhline(between - 0.5, color="white", linewidth=1.0 if workers <= 32 else 0.4)
    ticks = [0.0, 0.5, 1.0]
    bar = figure.colorbar(picture, ax=each, pad=0.01, aspect=8 * rows, ticks=ticks)
    bar.ax.set_yticklabels([f"{share:.0%}" for share in ticks], fontsize=8)
    bar.set_label("busy", labelpad=2)

    if use.deaths:
        each.scatter(
            [at / seconds for at, _, _ in use.deaths],
            [slot for _, slot, _ in use.deaths],
            marker="x",
            color=_DEATH,
            zorder=3,
            clip_on=False,
        )
        counts: dict[str, int] = {}
        for _, _, how in use.deaths:
            counts[how] = counts.get(how, 0) + 1
        most = sorted(counts.items(), key=lambda item: -item[1])[:4]
        label = "x  " + ", ".join(f"{count:,} {how}" for how, count in most) + (", ..." if len(counts) > 4 else "")
        total.text(1.0, 1.04, label, transform=total.transAxes, color=_DEATH, ha="right", va="bottom")

    for axes in (total, each):
        axes.spines[["top", "right"]].set_visible(False)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pool"}):
        figure.savefig(path, format=suffix[1:], dpi=120, metadata={"Date": None} if suffix == ".svg" else None)


__all__ = ["draw"]
