"""One handle's hold on a queue: opening, closing and forking. How it steps into the locks is in `_stepping`.

    a handle is     its descriptors          what it holds
    open            are its own              is its own
    closed          are closed               went back to the queue, under both locks
    thrown away     are closed               returns as if its process had died: its owner slot is found free
    forked          are closed at once       stays its parent's; the child's first operation opens the queue anew
    left at exit    are closed               went back, as if closed; an operation that comes later all the same opens it anew

A handle that was forked or pickled belongs to the same ERA as the one it comes from, even if that is closed when it is first
used: what was shut down for it stays shut down.

What a thread is just opening or closing while another one forks is looked after in `_fork`.
"""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import suppress

from durableq import _os
from durableq._checkpoint import mark_head, mark_open, mark_tail_synced
from durableq._commit import Committer
from durableq._fork import begin, end
from durableq._leases import owner_code
from durableq._ledger import Ledger
from durableq._lifetimes import hold, is_last_thread, is_leaving
from durableq._locks import HotLock, under_cold_lock
from durableq._owner import Owners
from durableq._reclaim import Reclaimer
from durableq._recovery import rebuild
from durableq._runs import RunLedger
from durableq._scan import Reader
from durableq._spool import USERS_BYTE, Options, Spool, check_place
from durableq._state import (
    EPOCH,
    ERA,
    H_STATE,
    HEAD_MUTEX,
    OWNER_DIRTY,
    OWNER_LENT,
    SHUTDOWN,
    SYNC_MUTEX,
    SYNC_STATE,
    T_STATE,
    TAIL_MUTEX,
    Control,
    belongs,
    create,
    identity,
    owner_word,
    reuse,
)
from durableq._stepping import Stepping, at_head, at_tail
from durableq._trust import keep_counts, put_in_force, still_fits
from durableq._wakeup import Wakeup
from durableq.errors import ClosedError, DamagedError, DurableQError, PoisonedError


class Handle(Stepping):
    """The open files of one handle, its locks, and its place among the owners."""

    compiled = True
    """Whether to use the compiled calls, where there are any."""

    def __init__(
        self,
        path: str,
        options: Options,
        *,
        sync: float | None,
        mode: int,
        create: bool,
        runs_code: bool,
        era: int | None = None,
    ) -> None:
        """`era`: that of the handle of which this one is a copy, made by pickling."""
        self.path = path
        self.era = era
        self._wanted = options
        self._sync = sync
        self._mode = mode
        self._runs_code = runs_code
        self._barred: DurableQError | None = None
        self._unfit = False  # barred or forked: what the hot paths look at
        self._own_code = 0
        self._forked = False
        self._guard = threading.Lock()
        self._open(create)

    # -- opening and closing -------------------------------------------------------------------------------------------

    def _open(self, create_file: bool) -> None:
        check_place(self.path)  # before the lock file: nothing is created where the queue is refused
        self._opened = False
        under_cold_lock(self.path, lambda: self._open_locked(create_file), self._mode)

    def _open_locked(self, create_file: bool) -> None:
        self._spool = spool = Spool.open(self.path, self._wanted, self._mode, create=create_file, runs_code=self._runs_code)
        control_fd, forked = -1, self._forked
        try:
            control_fd = self._open_control()
            # Mapped through a descriptor of its own: see `_owner` on what keeps a lock alive.
            mapped_fd = os.open(f"/proc/self/fd/{control_fd}", os.O_RDWR | os.O_CLOEXEC)
            try:
                self._control = control = Control(mapped_fd)
                self._mapped_fd = mapped_fd
                self._words = control.words
                self._ledger = RunLedger(control, mapped_fd)
                if not control.words[EPOCH]:
                    self._recover()
                self._join_owners(control_fd)
                self._wanted = Options()  # to be opened again in a child: with what the file says by then
                hold(self)
                self._opened = True
                self._forked = self._unfit = False
            except BaseException:
                # Interrupted at the very end: nobody may use what is closed now.
                self._opened, self._unfit, self._forked = False, True, forked
                os.close(mapped_fd)
                raise
        except BaseException:
            # By calls of the system alone: an interrupt that follows the first one may end either, but not before it is done.
            try:
                if control_fd >= 0:
                    os.close(control_fd)
            finally:
                os.close(spool.fd)
            raise

    def _open_control(self) -> int:
        """The control file's descriptor, for locks only; a fresh empty file if what is there cannot be used."""
        spool = self._spool
        path = f"{self.path}-shm"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            fd = -1
        ours = fd >= 0 and belongs(fd, identity(spool.fd, spool.salt))
        if not (ours and still_fits(fd, spool)):
            if not _os.try_lock_byte(spool.fd, USERS_BYTE):
                if fd >= 0:
                    os.close(fd)
                raise DamagedError(
                    f"{path}: was deleted or overwritten while processes use the queue, or they use it under another name; "
                    f"stop them (`fuser {self.path}`), then open it again: nothing is lost"
                )
            try:
                if ours:
                    keep_counts(fd, spool)
                # With nobody else here, an old file is used again: on a full disk there may be no room for a new one.
                fd = create(path, os.fstat(spool.fd)) if fd < 0 else reuse(fd)
                put_in_force(fd, spool)
            except OSError as exc:
                if fd >= 0:
                    os.close(fd)
                raise spool.disk_error(exc, f"cannot create {path}") from exc
        if not _os.try_lock_byte(spool.fd, USERS_BYTE, exclusive=False):
            os.close(fd)
            raise DamagedError(f"{self.path}: is being repaired; try again when that has ended")
        return fd

    def _recover(self) -> None:
        try:
            for mutex in (SYNC_MUTEX, TAIL_MUTEX, HEAD_MUTEX):
                _os.mutex_create(self._control.address + mutex)
            Ledger.create(self._mapped_fd, self._words)
            self._ledger.attach()
            rebuild(self._spool, self._control, self._ledger, os.fstat(self._spool.fd).st_size)
        except OSError as exc:
            raise self._spool.disk_error(exc, "cannot recover the queue") from exc

    def _join_owners(self, control_fd: int) -> None:
        self._control_fd = control_fd
        self._fd = self._spool.fd
        self._owners = Owners(self._control, control_fd, self.path)
        namespace = self._owners.note_namespace()
        self._tail = HotLock(self._control, TAIL_MUTEX, T_STATE, self.path, namespace)
        self._head = HotLock(self._control, HEAD_MUTEX, H_STATE, self.path, namespace)
        self._wakeup = Wakeup(self._control)
        self._reclaimer = Reclaimer(self._spool, self._control, self._ledger, self._tail)
        self._tail_calm = self._calm = -1
        self._base = self._head_base = 0
        self._ledger_region = self._ledger_address = 0
        self._salt = self._spool.salt
        self._buffer = b""
        self._buffer_at = 0
        self._tail_seen = 0
        self._back = b""
        self._back_at = 0
        self._handed_out = 0  # items that were done when taken, and are not counted off; under the head lock
        self._counts_off = False
        self._odd_reader: Reader | None = None
        self._look_at = 0.0
        self._sync_lock = HotLock(self._control, SYNC_MUTEX, SYNC_STATE, self.path, namespace)
        self._claim()
        self._own_code = owner_code(self._owners.slot)
        self._lent_word = owner_word(self._owners.slot) + OWNER_LENT
        self._committer = Committer(
            self._spool,
            self._control,
            self._sync_lock,
            owner_word(self._owners.slot) + OWNER_DIRTY,
            0 if self._sync is not None and is_leaving() else self._sync,
            weakref.WeakMethod(self._bar),
        )
        self._bind()
        self._owners.pay_syncs(self._committer.sync_now)
        _os.advise_stream(self._spool.fd)

    def _bind(self) -> None:
        """Let the compiled calls work on this handle. Until then each of them leaves its work to its twin."""
        if self.compiled and self._fast_append is not None:
            dirty = owner_word(self._owners.slot) + OWNER_DIRTY if self._sync is not None else 0
            options = self._spool.options
            plain = (not options.lease_ms, not options.lease_ms and not options.max_deliveries)
            self._fast_bind(self._control.map, self._fd, self._salt, dirty, self._lent_word, self._own_code, *plain)

    @at_tail
    @at_head
    def _claim(self) -> None:
        self._owners.claim(self._ledger)
        self._owners.reap(self._ledger)  # also for the syncs that they owe: nobody else may be there to pay them
        self._retire()
        if self._owners.alone():
            if self.era != self._words[ERA]:
                self._words[ERA] += 1
                self._words[SHUTDOWN] = 0
            mark_open(self._spool, self._control)
        self.era = self._words[ERA]

    def close(self) -> None:
        """Give back what this handle holds, make what it wrote durable, leave. A second call does nothing."""
        if self._forked:
            self._barred = self._barred or ClosedError(f"{self.path}: the queue is closed")
            return
        with self._guard:
            if self._control_fd < 0:
                return
            sound = not isinstance(self._barred, PoisonedError)
            self._bar(ClosedError(f"{self.path}: the queue is closed; open it again to go on"))
            self._wake_everybody()
            self._committer.close()
            try:
                if self._sync is not None and sound:
                    self._committer.sync_now()  # not under the cold lock, so that all who close at a time share one
            finally:
                # If an interrupt comes before the files are closed, the next call goes on; if it comes behind, the others
                # find this owner dead and return what it held.
                if self._spool.is_deleted():  # nobody can open it, and the lock's file would stay behind for nothing
                    self._close_locked(sound)
                else:
                    under_cold_lock(self.path, lambda: self._close_locked(sound))

    def _close_locked(self, sound: bool) -> None:
        try:
            self._tail.hold(lambda: self._head.hold(lambda: self._leave(sound)))
            self._wake_everybody()
        finally:
            self._tail.hold(lambda: self._head.hold(self._let_go))

    def _leave(self, sound: bool) -> None:
        """Under both locks: what this handle does last."""
        barred, self._barred = self._barred, None  # the last step in is ours
        if self._words[EPOCH] & 1:
            self._reclaimer.settle()
        self._see_tail()
        self._see_head()
        self._barred = barred
        self._owners.release(self._ledger)
        self._retire()
        if self._owners.alone():
            self._control.settle_tail_state()
            if sound:
                self._reclaimer.cut_tail()
                self._mark_closed()
        self._leave_head()
        # What comes after us into the locks in another thread finds another epoch and looks, before it touches a
        # descriptor that may soon belong to another file.
        self._tail_calm = self._calm = -1

    def _mark_closed(self) -> None:
        """The last one leaves: what recovery would have to look for is all here now."""
        if self._sync is not None:
            self._spool.sync()  # before the checkpoints that say that all is on the disk
            with suppress(OSError):  # hints: without them recovery looks for itself
                mark_tail_synced(self._spool, self._control)
                mark_head(self._spool, self._control, reach=0)

    def leave(self) -> None:
        """The process ends: make what this handle wrote durable, and close it if no thread is left that may be using it."""
        if self._barred is not None or self._forked:
            return
        if is_last_thread():
            self.close()
            self._barred, self._forked = None, True  # who comes now, an `atexit` handler, opens it anew
        else:
            with suppress(DurableQError, OSError):  # nobody is left to tell
                self._committer.hurry()

    def give_back(self) -> None:
        """The program has ended, and its children may wait for what it had in hand."""
        if self._barred is None and not self._forked and self._words[self._lent_word] and is_last_thread():
            with suppress(DurableQError, OSError):
                self._return_all()
                self._wake_everybody()

    @at_head
    def _return_all(self) -> None:
        self._ledger.give_back(self._owners.slot)
        self._retire()

    def __del__(self) -> None:
        # Whoever collects garbage may hold the locks of this very queue through another handle, so nothing is locked here:
        # the descriptors are closed, and what it held returns as if its process had died.
        if self.__dict__.get("_opened") and self._control_fd >= 0 and not self._forked:
            self._bar(ClosedError(f"{self.path}: the queue is closed; open it again to go on"))
            files, self._control_fd = (self._ledger, self._spool, self._mapped_fd, self._control_fd), -1
            closing = begin(self.path)
            if self._committer.idle():
                _close_files(*files)
                end(closing)
            else:
                with suppress(RuntimeError):  # the interpreter is on its way out, and has synced at its exit
                    threading.Thread(target=_sync_and_close, args=(self._committer, closing, *files), daemon=True).start()

    def _let_go(self) -> None:
        if self._fast_unbind is not None:
            self._fast_unbind()
        files, self._control_fd = (self._control_fd, self._mapped_fd), -1
        _close_files(self._ledger, self._spool, *files)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return isinstance(self._barred, ClosedError)

    def _check(self) -> None:
        self._check_barred()
        if self._forked:
            with self._guard:
                if self._forked:
                    self._open(False)

    # -- fork ----------------------------------------------------------------------------------------------------------

    def after_fork(self) -> None:
        """In the child: leave everything that belongs to the parent, at once.

        The descriptors share the parent's open file descriptions: they exclude nobody from anybody, and as long as they
        are open here, the parent's death would not free its locks.
        """
        if self._control_fd >= 0 and not self._forked:
            for fd in (self._spool.fd, self._control_fd, self._mapped_fd):
                os.close(fd)
            self._spool.fd = -1
        self._guard = threading.Lock()  # another thread of the parent may have held it
        self._forked = self._unfit = True


def _close_files(ledger: Ledger, spool: Spool, *descriptors: int) -> None:
    ledger.detach()
    for fd in descriptors:
        os.close(fd)
    spool.close()


def _sync_and_close(committer: Committer, closing: object, ledger: Ledger, spool: Spool, *descriptors: int) -> None:
    committer.close()
    with suppress(OSError):
        spool.sync()
    _close_files(ledger, spool, *descriptors)
    end(closing)
