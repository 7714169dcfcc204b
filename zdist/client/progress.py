"""A progress bar for futures: in a terminal with rich, in a notebook as HTML. Semantics: dask.distributed 2021.10."""

from __future__ import annotations

import html
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from zdist.client.arrivals import Arrivals
from zdist.client.containers import flatten
from zdist.client.future import Future

__all__ = ["progress"]

_REFRESH: Final = 0.1  # seconds between looks at the screen


class _Tally:
    """How far each group of futures is; without ``multi`` all are one group."""

    def __init__(self, futures: list[Future], multi: bool) -> None:
        self.rows: dict[str, list[int]] = {}  # group -> done, failed, all
        self._group: Callable[[Future], str] = _group_of if multi else lambda future: "tasks"
        for future in futures:
            self.rows.setdefault(self._group(future), [0, 0, 0])[2] += 1
        self.arrivals = Arrivals()
        self.arrivals.watch(futures)

    def take(self) -> bool:
        """Count what has arrived; returns whether all has."""
        ready = self.arrivals.ready
        while ready:
            future = ready.popleft()
            row = self.rows[self._group(future)]
            row[0] += 1
            row[1] += future.status != "finished"
        return not self.arrivals.pending and not ready

    def changed(self) -> bool:
        return bool(self.arrivals.ready) or not self.arrivals.pending


def _group_of(future: Future) -> str:
    """The function's part of a key such as "name-<hash>"; the key itself if it has no such part."""
    head, dash, tail = future.key.rpartition("-")
    return head if dash and len(tail) >= 8 else future.key


def progress(
    *futures: Any, notebook: bool | None = None, multi: bool = True, complete: bool = True, **kwargs: Any
) -> Any:
    """Show how far futures are.

    In a terminal (or a file) it draws one bar for each function, and returns when all are done; failed ones count as
    done and are shown. Ctrl-C ends the bars, not the tasks. In a notebook it shows HTML that goes on updating by
    itself, and returns at once.

    Parameters:
        futures: futures or containers of them.
        notebook: True or False to say which; None to find out.
        multi: a bar for each function instead of one for all.
        complete: keep the bars on the screen at the end.
        kwargs: accepted for the sake of programs written for dask.distributed; not used.

    Returns:
        None; for futures of an asynchronous client outside a notebook an awaitable of None.
    """
    wanted = flatten(list(futures))[0]
    tally = _Tally(wanted, multi)
    if _in_notebook() if notebook is None else notebook:
        return _show_html(tally)
    if wanted and wanted[0].client.asynchronous:
        return _draw_async(tally, complete)
    bars = _Bars(tally, complete)
    with bars:
        while not bars.update():
            tally.arrivals.wait(tally.changed, time.monotonic() + 1.0)
            # Not more often than the eye can follow: 10,000 tasks/s must not each redraw a screen.
            tally.arrivals.wait(lambda: not tally.arrivals.pending, time.monotonic() + _REFRESH)
    return None


async def _draw_async(tally: _Tally, complete: bool) -> None:
    with _Bars(tally, complete) as bars:
        while not bars.update():
            await tally.arrivals.wait_async(tally.changed, time.monotonic() + 1.0)
            await tally.arrivals.wait_async(lambda: not tally.arrivals.pending, time.monotonic() + _REFRESH)


class _Bars:
    """The bars in a terminal; rich is loaded here, at the first use."""

    def __init__(self, tally: _Tally, complete: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._tally = tally
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]}", style="red"),
            TimeElapsedColumn(),
            transient=not complete,
        )
        self._ids = {group: self._bars.add_task(group, total=row[2], failed="") for group, row in tally.rows.items()}

    def __enter__(self) -> _Bars:
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()

    def update(self) -> bool:
        done = self._tally.take()
        for group, (arrived, failed, _) in self._tally.rows.items():
            text = f"{failed} failed" if failed else ""
            self._bars.update(self._ids[group], completed=arrived, failed=text)
        return done


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"


def _html(tally: _Tally) -> str:
    rows = [
        f"<tr><td style='text-align:left'>{html.escape(group)}</td>"
        f"<td><progress max='{total}' value='{done}'></progress></td>"
        f"<td>{done} / {total}{f', <b>{failed} failed</b>' if failed else ''}</td></tr>"
        for group, (done, failed, total) in tally.rows.items()
    ]
    return f"<table>{''.join(rows)}</table>"


def _show_html(tally: _Tally) -> None:
    from IPython.display import HTML, display  # type: ignore[import-not-found]

    done = tally.take()
    handle = display(HTML(_html(tally)), display_id=True)
    if done:
        return

    def follow() -> None:
        done = False
        while not done:
            tally.arrivals.wait(tally.changed, None, drive=False)
            time.sleep(_REFRESH)
            done = tally.take()
            handle.update(HTML(_html(tally)))

    threading.Thread(target=follow, name="zdist-progress", daemon=True).start()
