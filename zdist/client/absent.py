"""What dask.distributed's client has and this one has not, with the reason: an error says it where it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

__all__ = ["ABSENT", "Absent"]

ABSENT: Final = {
    "collections_to_dsk": "it serves dask's own collections: dask.utils and dask.base have its parts",
    "dashboard_link": "there is no dashboard in a browser: `zdist top ADDRESS` shows the cluster in a terminal",
    "get_task_stream": "what each task did is not recorded; the futures tell their status, `zdist top` the rates",
    "io_loop": "there is no event loop of tornado; an asynchronous client runs on the loop that awaits it",
    "profile": "workers are not sampled all the time; call_stack() shows what they do, py-spy follows a process",
    "register_scheduler_plugin": "nothing of a user's runs in the broker",
    "run_on_scheduler": "nothing of a user's runs in the broker; run() runs a function on the workers",
    "start_ipython": "no shell is opened in processes that others share; run() runs a function on the workers",
    "start_ipython_scheduler": "nothing of a user's runs in the broker",
    "start_ipython_workers": "no shell is opened in processes that others share; run() runs a function on the workers",
}


class Absent:
    """The part of the client that is not there."""

    if not TYPE_CHECKING:  # a type checker knows by itself what there is

        def __getattr__(self, name: str) -> Any:
            why = ABSENT.get(name)
            if why is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            raise AttributeError(f"zdist's client has no {name}: {why}")
