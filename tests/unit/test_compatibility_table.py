"""README's table of dask.distributed's client methods says what is true of this client."""

from __future__ import annotations

import re
from pathlib import Path

from zdist import Client
from zdist.client.absent import ABSENT

README = Path(__file__).parents[2] / "README.md"
VERDICTS = ("same", "better", "different", "absent", "not yet")

#: Public methods and properties of distributed.Client 2021.10.0.
METHODS = """
as_current asynchronous call_stack cancel close collections_to_dsk compute current dashboard_link futures_of gather
get get_dataset get_events get_executor get_metadata get_scheduler_logs get_task_stream get_versions get_worker_logs
has_what list_datasets log_event map nbytes ncores normalize_collection nthreads persist processing profile
publish_dataset rebalance recreate_error_locally recreate_task_locally register_scheduler_plugin
register_worker_callbacks register_worker_plugin replicate restart retire_workers retry run run_coroutine
run_on_scheduler scatter scheduler_info set_metadata shutdown start start_ipython start_ipython_scheduler
start_ipython_workers submit subscribe_topic sync unpublish_dataset unregister_worker_plugin unsubscribe_topic
upload_file wait_for_workers who_has write_scheduler_file
"""


def table() -> dict[str, tuple[str, str]]:
    text = README.read_text().partition("## dask.distributed's client, method by method")[2]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \| ?([^|]*) \|$", text, re.MULTILINE)
    assert len({name for name, _, _ in rows}) == len(rows)
    return {name: (verdict, why.strip()) for name, verdict, why in rows}


def test_every_method_has_a_row_and_nothing_else() -> None:
    assert sorted(table()) == sorted(METHODS.split())


def test_rows_say_what_is_there_and_why_not() -> None:
    attributes = {"asynchronous"}  # of an instance
    for name, (verdict, why) in table().items():
        assert verdict in VERDICTS, name
        there = hasattr(Client, name) or name in attributes
        assert there == (verdict not in ("absent", "not yet")), f"{name} is {verdict}"
        assert why or verdict in ("same", "not yet"), f"{name} is {verdict}, and nobody says why"
        assert (name in ABSENT) == (verdict == "absent"), name
