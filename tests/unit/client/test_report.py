"""What gather_report tells: rows in order, one for each way and reason, told apart by gather, and never too many."""

from __future__ import annotations

from operator import add

from fake_driver import FakeBroker

from zdist.client.client import Client
from zdist.client.report import GatherReport
from zdist.core.carried import ROWS, Carried, Report


def rows(report: Report) -> list[tuple[str, str, int, int, float, str, int]]:
    return [tuple(row) for row in report]


def test_what_differs_in_numbers_only_is_one_row_of_a_gather() -> None:
    report = Report()
    report.begin(alone=False)
    report.add("peer", "w0", 2, 100, 0.5, "open")
    report.add("relay", "w1", 1, 10, 0.25, "closed")
    report.add("peer", "w0", 3, 200, 0.25, "open")
    report.begin(alone=False)
    report.add("peer", "w0", 1, 50, 0.125, "open")
    assert rows(report) == [
        ("peer", "w0", 5, 300, 0.75, "open", 1),
        ("relay", "w1", 1, 10, 0.25, "closed", 1),
        ("peer", "w0", 1, 50, 0.125, "open", 2),
    ]


def test_the_number_of_rows_is_bounded() -> None:
    report = Report()
    for _ in range(2 * ROWS):
        report.begin(alone=False)
        report.add("peer", "w0", 1, 1, 0.1, "open")
    assert len(rows(report)) == ROWS and rows(report)[-1][-1] == 2 * ROWS
    report.begin(alone=False)
    for number in range(3 * ROWS):  # within one gather as well
        report.add("peer", f"w{number}", 1, 1, 0.1, "open")
    assert len(rows(report)) == ROWS
    assert len(report._same) <= ROWS


def test_gathers_of_one_future_in_a_loop_are_one_row(client: Client) -> None:
    client.gather(client.map(add, range(10), range(10)))
    for future in client.map(add, range(50), range(50)):
        client.gather(future)
    for future in client.map(add, range(7), range(7)):
        future.result()
    report = client.gather_report()
    assert [(batch.path, batch.keys, batch.gather) for batch in report] == [("inline", 10, 1), ("inline", 57, 2)]
    assert all(batch.reason == "came with the completion" and not batch.seconds for batch in report)


def test_the_last_gather_is_told_apart(client: Client, broker: FakeBroker) -> None:
    assert client.gather_report() == [] and client.gather_report().last == []
    futures = client.map(add, range(10), range(10))
    client.gather(futures)
    client.gather(futures[:4])
    client.gather(futures[:5])
    report = client.gather_report()
    assert [batch.keys for batch in report] == [10, 4, 5]
    assert [batch.keys for batch in report.last] == [5]
    client.gather([])  # sends nothing and is none
    assert [batch.keys for batch in client.gather_report().last] == [5]


def test_a_report_prints_as_a_table() -> None:
    report = GatherReport(
        [Carried("inline", "", 1000, 8000, 0.0, "came with", 1), Carried("peer", "<w>", 2, 5_000_000, 0.01, "open", 12)]
    )
    assert str(report).splitlines() == [
        "gather  path    worker   keys      bytes  seconds  MB/s  why",
        "     1  inline          1,000      8,000                 came with",
        "    12  peer    <w>         2  5,000,000   0.0100   500  open",
    ]
    assert repr(report) == str(report)
    html = report._repr_html_()
    assert html.count("<tr>") == 3 and "<td>&lt;w&gt;</td>" in html and "<td>5,000,000</td>" in html


def test_an_empty_report_says_so() -> None:
    assert str(GatherReport()) == "nothing was gathered yet"
    assert "nothing was gathered yet" in GatherReport()._repr_html_()
