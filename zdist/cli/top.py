"""``zdist top``: the cluster as it is now, again and again."""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from zdist import log
from zdist.cli.top_view import COLUMNS, View, by_column, detail, overview
from zdist.errors import ZdistError

if TYPE_CHECKING:
    from zdist.client.watching import Watcher

__all__ = ["command"]

PIPED: Final = 160  # columns where nobody says how many there are
PATIENCE: Final = 1.0  # seconds without an answer after which the broker counts as away
ONCE: Final = 2.0  # the same, and for workers, where there is one answer only
REDRAW: Final = 0.5  # seconds: the size of the terminal may have changed
ARROWS: Final = {"\x1b[A": "k", "\x1b[B": "j", "\x1bOA": "k", "\x1bOB": "j", "\x1b[D": "\x1b", "\x1b[C": "\n"}


@click.command("top")
@click.argument("address")
@click.option("--token-file", metavar="FILE", type=click.Path(dir_okay=False), help="Where the cluster token lies.")
@click.option(
    "--interval", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True, help="Seconds between two looks."
)
@click.option("--json", "as_json", is_flag=True, help="Look twice, --interval apart, and print all of it for programs.")
def command(address: str, token_file: str | None, interval: float, as_json: bool) -> None:
    """Show what the cluster of the broker at ADDRESS does: workers, tasks by state, rates, memory, last failures.

    Keys: q quits, s sorts by the next column, arrows, j, k or a digit select a worker, enter looks into it (what it
    runs and holds, and its call stacks), esc comes back. Where standard input or output is no terminal it prints the
    table once. Tasks that a client and a worker settle between them, without the broker, are not among the rates.
    """
    from zdist.client.client import Client
    from zdist.client.watching import Watcher

    live = not as_json and sys.stdin.isatty() and sys.stdout.isatty()
    try:
        client = Client(address, token_file=token_file, name="zdist-top", set_as_default=False, shared_memory=0)
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="ADDRESS") from None
    with client, contextlib.suppress(KeyboardInterrupt):
        watcher = Watcher(client)
        if live:
            Top(watcher, interval).run()
            return
        watcher.look(ONCE, patience=ONCE)
        client.block(lambda: False, interval)
        found = watcher.look(ONCE, patience=ONCE)
        if as_json:
            click.echo(json.dumps(found, indent=2))
        else:
            console = Console()
            console = console if console.is_terminal else Console(width=PIPED)
            console.print(overview(found, View()), highlight=False)


class Top:
    """The screen: one thread looks, this one reads keys and draws."""

    def __init__(self, watcher: Watcher, interval: float) -> None:
        self.watcher = watcher
        self.interval = interval
        self.view = View()
        self.lock = threading.Lock()
        self.found: dict[str, Any] | None = None
        self.inner: dict[str, Any] | None = None
        self.ended = ""  # why there is nothing more to see
        self.closing = False
        self.soon = threading.Event()  # look now, and not when the interval is over
        self.drawn, self.draw = os.pipe()

    def run(self) -> None:
        """Until q, Ctrl-C, or the end of the cluster."""
        looker = threading.Thread(target=self._look, name="zdist-top", daemon=True)
        console = Console()
        log.configure(stream=open(os.devnull, "w"))  # noqa: SIM115  the screen says it
        try:
            with keys_at_once(sys.stdin.fileno()), Live(console=console, screen=True, auto_refresh=False) as screen:
                looker.start()
                while not self.ended:
                    screen.update(self._picture(console.size.height), refresh=True)
                    if self._read():
                        return
            console.print(Text(self.ended))
        finally:
            self.closing = True
            self.soon.set()
            looker.join(2 * PATIENCE)
            os.close(self.draw)
            os.close(self.drawn)

    # --- looking, in a thread of its own ------------------------------------------------------------------

    def _look(self) -> None:
        while not self.closing:
            try:
                with self.lock:
                    selected, inside = self.view.selected, self.view.inside
                found = self.watcher.look(PATIENCE, [selected] if selected else None)
                inner = self.watcher.inspect(selected, PATIENCE) if inside else None
                with self.lock:
                    self.found, self.view.trouble = found, ""
                    if inside and selected == self.view.selected:
                        self.inner = inner
            except TimeoutError as exc:
                with self.lock:
                    self.view.trouble = f"the broker does not answer; what is shown is from before ({exc})"
            except Exception as exc:  # said, instead of a screen that stands still
                self.ended = str(exc) if isinstance(exc, ZdistError) else f"{type(exc).__name__}: {exc}"
            with contextlib.suppress(OSError):  # the screen is gone
                os.write(self.draw, b".")
            if self.ended:
                return
            self.soon.wait(self.interval)
            self.soon.clear()

    # --- reading and drawing ------------------------------------------------------------------------------

    def _picture(self, height: int) -> RenderableType:
        with self.lock:
            if self.found is None:
                return Text(self.view.trouble or "looking")
            if self.view.inside:
                return detail(self.inner, self.found, self.view)
            return overview(self.found, self.view, height)

    def _read(self) -> bool:
        """Wait for a key, a look, or a while; True to quit."""
        stdin = sys.stdin.fileno()
        ready = select.select([stdin, self.drawn], [], [], REDRAW)[0]
        if self.drawn in ready:
            os.read(self.drawn, 4096)
        if stdin not in ready:
            return False
        typed = os.read(stdin, 1024).decode(errors="replace")
        if not typed:  # the terminal is gone
            return True
        for sequence, key in ARROWS.items():
            typed = typed.replace(sequence, key)
        return any(self._press(key) for key in typed)

    def _press(self, key: str) -> bool:
        """One key; True to quit."""
        with self.lock:
            view = self.view
            if key in "qQ":
                return True
            rows = by_column(self.found["workers"], view.column) if self.found is not None else []
            names = [row["name"] for row in rows]
            at = names.index(view.selected) if view.selected in names else -1
            if view.inside:
                view.inside = key not in "\x1b\x7f\r\n"
            elif key == "s":
                view.column = (view.column + 1) % len(COLUMNS)
            elif key == "j" and names:
                view.selected = names[min(at + 1, len(names) - 1)]
            elif key == "k" and names:
                view.selected = names[max(at - 1, 0)]
            elif key.isdigit() and 0 < int(key) <= len(names):
                view.selected = names[int(key) - 1]
            elif key in "\r\n" and names:
                view.selected = view.selected if at >= 0 else names[0]
                view.inside, self.inner = True, None
                self.soon.set()
        return False


@contextlib.contextmanager
def keys_at_once(fd: int) -> Iterator[None]:
    """Read keys when they are pressed and do not show them; the terminal is as it was afterwards."""
    import termios
    import tty

    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
