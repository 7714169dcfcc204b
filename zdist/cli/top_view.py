"""What ``zdist top`` draws: from a look at the cluster, and what the user has chosen, to lines and tables."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

__all__ = ["COLUMNS", "View", "by_column", "detail", "overview", "size"]

KEYS_SHOWN: Final = 12  # of one worker, of each kind
RECORDS: Final = 5  # last failures, and last log records
NAME: Final = 30  # characters of a worker's name that are never cut
FRAME: Final = 7  # lines of a screen around header, rows and notes
LEAST: Final = 3  # rows of workers, on however small a screen


class Column(NamedTuple):
    """A column: its heading, the field that rows are sorted by, and whether they are shown to the right."""

    title: str
    field: str
    numeric: bool = True


COLUMNS: Final = (
    Column("worker", "name", False),
    Column("status", "status", False),
    Column("threads", "nthreads"),
    Column("processing", "processing"),
    Column("held", "held"),
    Column("tasks/s", "per_second"),
    Column("cpu", "cpu"),
    Column("memory", "memory"),
    Column("values", "stored"),
    Column("on disk", "spilled"),
    Column("seen", "last_seen"),
)


class View:
    """What the user has chosen."""

    def __init__(self) -> None:
        self.column = 0  # sorted by
        self.selected = ""  # a worker's name
        self.inside = False  # look into it
        self.trouble = ""  # why there is nothing new


def by_column(workers: list[dict[str, Any]], column: int) -> list[dict[str, Any]]:
    """Numbers largest first, texts in their order; what is not known comes last."""
    field, numeric = COLUMNS[column].field, COLUMNS[column].numeric
    if numeric:
        return sorted(workers, key=lambda row: (row[field] is None, -(row[field] or 0), row["name"]))
    return sorted(workers, key=lambda row: (row[field], row["name"]))


def size(nbytes: float | None) -> str:
    """Bytes with a unit, in three digits or so."""
    if nbytes is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if nbytes >= 100 or unit == "B" else f"{nbytes:.3g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.3g} TiB"


def rate(value: float | None) -> str:
    """A number per second."""
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def span(seconds: float) -> str:
    """A time span of a person's measure."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02}:{minutes:02}:{rest:02}" if days else f"{hours:02}:{minutes:02}:{rest:02}"


# --- the cluster ------------------------------------------------------------------------------------------


def header(found: dict[str, Any], view: View) -> Text:
    """The lines above the table."""
    broker, tasks, workers = found["broker"], found["tasks"], found["workers"]
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"broker {broker['address']}", style="bold")
    text.append(f"  up {span(broker['uptime'])}")
    text.append(f"  {len(workers)} workers with {sum(row['nthreads'] for row in workers)} threads")
    text.append(f" on {found['nodes']} nodes, {found['clients']} clients\n")
    states = "  ".join(f"{number:,} {state}" for state, number in tasks.items() if state != "total" and number)
    text.append(f"tasks  {tasks['total']:,}{': ' if states else ''}{states}\n")
    per = found["per_second"]
    text.append(f"rates  {rate(per['completed'])} tasks/s  {found['completed']:,} done  {found['failed']:,} failed\n")
    ways = "".join(f"  {way} {size(nbytes)}" for way, nbytes in sorted(found["bytes"]["fetched_by_workers"].items()))
    relayed = size(found["bytes"]["relayed_by_broker"])
    text.append(f"bytes  relayed by the broker {relayed}, {size(per['relay_bytes'])}/s")
    text.append(f"  fetched by workers{ways}" if ways else "")
    if view.trouble:
        text.append(f"\n{view.trouble}", style="bold red")
    return text


def table(found: dict[str, Any], view: View, rows: int, live: bool) -> Table:
    """The workers; with too many for the ``rows`` of a screen, those around the one that is selected."""
    workers = by_column(found["workers"], view.column)
    names = [row["name"] for row in workers]
    at = names.index(view.selected) if view.selected in names else 0
    start = min(max(0, at - rows // 2), max(0, len(workers) - rows))
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    name = min(max((len(row["name"]) for row in workers[start : start + rows]), default=0), NAME)
    for number, column in enumerate(COLUMNS):
        title = f"{column.title} ▾" if live and number == view.column else column.title
        out.add_column(
            title,
            justify="right" if column.numeric else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=0 if number else name,
        )
    for row in workers[start : start + rows]:
        style = "reverse" if live and row["name"] == view.selected else ""
        out.add_row(*cells(row), style=style)
    if len(workers) > rows:
        out.caption = f"{rows} of {len(workers)} workers"
    return out


def cells(row: dict[str, Any]) -> list[str]:
    """One worker's fields, in the order of the columns."""
    limit, memory = row["memory_limit"], row["memory"]
    share = f" {100 * memory / limit:.0f} %" if limit and memory is not None else ""
    colour = {"running": "green", "paused": "yellow"}.get(row["status"], "red")
    return [
        escape(row["name"]),
        f"[{colour}]{escape(row['status'])}[/]",
        str(row["nthreads"]),
        f"{row['processing']:,}",
        f"{row['held']:,}",
        rate(row["per_second"]),
        "-" if row["cpu"] is None else f"{100 * row['cpu']:.0f} %",
        f"{size(memory)}{share}",
        size(row["stored"]),
        size(row["spilled"]) if row["spilled"] else "-",
        f"{row['last_seen']:.1f} s",
    ]


def overview(found: dict[str, Any], view: View, height: int | None = None) -> RenderableType:
    """All of the cluster; ``height`` in lines of a screen, None for paper."""
    last = [f"[red]{escape(each['key'])}[/]: {escape(each['text'])}" for each in found["failures"][-RECORDS:]]
    records = [escape(f"{each['level']} {each['line']}") for each in found["log"][-RECORDS:]]
    notes = ["[bold]last failures[/]", *last] if last else []
    notes += ["[bold]log of the broker[/]", *records] if records else []
    top = header(found, view)
    rows = max(len(found["workers"]), 1)
    if height is not None:
        free = height - top.plain.count("\n") - FRAME
        notes = notes[: max(0, free - LEAST)]  # a small screen is for the workers
        rows = max(LEAST, free - len(notes))
    parts: list[RenderableType] = [top, table(found, view, rows, height is not None)]
    parts += [Text.from_markup(note, overflow="ellipsis") for note in notes]
    if height is not None:
        for part in parts[2:]:
            assert isinstance(part, Text)
            part.no_wrap = True
        parts.append(Text("q quit  s sort  ↑↓ jk 1-9 select  enter look into", style="dim", no_wrap=True))
    return Group(*parts)


# --- one worker -------------------------------------------------------------------------------------------


def detail(inner: dict[str, Any] | None, found: dict[str, Any], view: View) -> RenderableType:
    """One worker, from `Watcher.inspect` and from the look at the cluster."""
    row = next((row for row in found["workers"] if row["name"] == view.selected), None)
    parts: list[RenderableType] = []
    if view.trouble:
        parts.append(Text(view.trouble, style="bold red"))
    if inner is None or row is None:
        parts.append(Text(f"worker {view.selected} is not there"))
    else:
        titles = (f"[bold]{column.title}[/] {cell}" for column, cell in zip(COLUMNS, cells(row), strict=True))
        parts.append(Text.from_markup("  ".join(titles)))
        parts.append(Text(f"{row['address']}  process {row['pid']} on {row['host']}  node {row['node']}"))
        parts += _keys("has been given", inner["assigned"], row["processing"])
        held = [(key, f"{size(nbytes)} {kind}") for key, nbytes, kind in inner["keys"]]
        parts += _keys("holds", held, row["held"])
        parts += _stacks(inner["stacks"])
    parts.append(Text("q quit  esc back", style="dim"))
    return Group(*parts)


def _keys(title: str, keys: list[Any], number: int) -> list[RenderableType]:
    lines = [Text(f"{title} {number:,}", style="bold")]
    lines += [Text(f"  {key}  {about}", no_wrap=True, overflow="ellipsis") for key, about in keys[:KEYS_SHOWN]]
    return [*lines, Text(f"  and {number - KEYS_SHOWN:,} more")] if number > KEYS_SHOWN else [*lines]


def _stacks(stacks: dict[str, Any] | None) -> list[RenderableType]:
    if stacks is None:
        return [
            Text("its call stacks are not known: it has not answered yet (a task may hold the GIL)", style="yellow")
        ]
    parts: list[RenderableType] = []
    for key, lines in stacks.items():
        parts.append(Text(f"call stack of {key}", style="bold"))
        parts += [Text(line.rstrip("\n"), no_wrap=True, overflow="ellipsis") for line in lines]
    return parts
