"""The programs of tests/e2e/programs under dask.distributed and under zdist: do they print the same?

``python tests/ecosystem/programs_on_both.py``; exit code 1 if one does not.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAMS = Path(__file__).parents[1] / "e2e" / "programs"
LAST = "restarts"  # of workers, which all share


def run(program: Path, address: str) -> str:
    done = subprocess.run([sys.executable, program, address], capture_output=True, text=True, timeout=200)
    return done.stdout if done.returncode == 0 else done.stderr


def main() -> int:
    try:
        import distributed
    except ImportError:
        print("skipped: dask.distributed is not installed (pip install distributed)")
        return 0
    import zdist

    programs = sorted(PROGRAMS.glob("*.py"), key=lambda path: (path.stem == LAST, path.stem))
    with distributed.LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None) as cluster:
        theirs = {path.stem: run(path, cluster.scheduler_address) for path in programs}
    ours = {}
    with zdist.LocalCluster(n_workers=2, threads_per_worker=2) as own, tempfile.TemporaryDirectory() as room:
        for path in programs:
            copy = Path(room) / path.name
            copy.write_text(path.read_text().replace("from dask.distributed import", "from zdist import"))
            ours[path.stem] = run(copy, own.broker_address)
    different = [name for name in theirs if theirs[name] != ours[name]]
    for name in theirs:
        print(f"{'different' if name in different else 'same':9} {name}")
    for name in different:
        print(f"--- {name}, dask.distributed:\n{theirs[name]}\n--- {name}, zdist:\n{ours[name]}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
