"""Private directories and files that go with the process that made them, however it ends.

Their owner holds a lock (flock) on them for its life, which the kernel lets go of when it is killed; what is not locked
has no owner and is swept by the next process of the same user that makes one of its kind. systemd-tmpfiles leaves what
is locked alone, too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
import weakref
from pathlib import Path
from typing import Final

__all__ = ["LockedFile", "Scratch", "sweep"]

_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


class _Locked:
    """What has an owner: a path, and the descriptor that keeps its lock."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.owner = os.getpid()
        self.lock = lock
        _owned.add(self)

    def remove(self) -> None:
        """Remove it with all that is in it, and let go of the lock; idempotent, and nothing in a forked child."""
        if self.lock >= 0 and os.getpid() == self.owner:
            if _is_locked_by(self.path, self.lock):  # else somebody has put another one in its place
                _remove(self.path)
            self.release()

    def release(self) -> None:
        """Let go of the lock and leave what it was on to the next sweep."""
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1


class Scratch(_Locked):
    """A directory of mode 0700 with a name of its own, ``prefix`` and ``name`` or else some letters, in ``parent``.

    Making one sweeps those of the same prefix whose owners are gone. Raises OSError where no directory can be made.
    """

    def __init__(self, parent: Path, prefix: str, name: str = "") -> None:
        sweep(parent, prefix)
        while True:
            if name:
                path = parent / f"{prefix}{name}"
                path.mkdir(0o700)
            else:
                path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            try:
                lock = os.open(path, _FLAGS | os.O_DIRECTORY)
            except FileNotFoundError:
                continue  # it was swept before it could be locked
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_locked_by(path, lock):
                break
            os.close(lock)  # likewise
        super().__init__(path, lock)


class LockedFile(_Locked):
    """A file of mode 0600 at ``path``, in place of an old one; it has its lock from the moment that it is there.

    ``touch`` tells from time to time that it has an owner: see `sweep`. Raises OSError where it cannot be written.
    """

    def __init__(self, path: Path, text: str) -> None:
        lock, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")  # mkstemp creates with 0600
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.write(lock, text.encode())
            os.replace(temporary, path)
        except BaseException:
            os.close(lock)
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        super().__init__(path, lock)

    def touch(self) -> None:
        """It has an owner now."""
        if self.lock >= 0:
            os.utime(self.lock)


def sweep(parent: Path, prefix: str, kept: float = 0.0) -> None:
    """Remove what begins with ``prefix`` in ``parent``, belongs to this user, is locked by nobody, and has not been
    touched for ``kept`` seconds."""
    for path in parent.glob(prefix + "*"):
        with contextlib.suppress(OSError):  # another user's, or just now gone
            lock = os.open(path, _FLAGS)
            try:
                about = os.fstat(lock)
                if about.st_uid == os.getuid() and (not kept or time.time() - about.st_mtime > kept):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if _is_locked_by(path, lock):
                        _remove(path)
            finally:
                os.close(lock)


def _is_locked_by(path: Path, lock: int) -> bool:
    """Is what the descriptor has locked still what stands at the path?"""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(lock))
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    if stat.S_ISDIR(os.lstat(path).st_mode):
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


_owned: weakref.WeakSet[_Locked] = weakref.WeakSet()


def _in_child() -> None:
    """A forked child that lives longer must not keep its parent's locks."""
    for locked in list(_owned):
        locked.release()


os.register_at_fork(after_in_child=_in_child)
