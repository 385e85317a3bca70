# SPDX-License-Identifier: Apache-2.0
"""Run a function in a child process, and decide at each of its calls on the files of a folder what becomes of it.

It works on whatever makes the calls: `os`, ctypes, a library in C, any thread. Each call is stopped before the kernel
has seen it, and can be let through, recorded, made to fail, cut short, or be the last thing that the process did.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

from milepost.testing.faults import ptrace
from milepost.testing.recorder import Call

# System call numbers of x86-64: the name of a call as `Call` has it, and what its first arguments are.
_Arguments: TypeAlias = Literal["fd", "path", "at", "two paths", "two at"]
_CALLS: dict[int, tuple[str, _Arguments]] = {
    1: ("write", "fd"), 18: ("write", "fd"), 20: ("write", "fd"), 296: ("write", "fd"), 328: ("write", "fd"),
    2: ("open", "path"), 257: ("open", "at"), 85: ("open", "path"), 437: ("open", "at"), 3: ("close", "fd"),
    0: ("read", "fd"), 17: ("read", "fd"), 19: ("read", "fd"), 295: ("read", "fd"), 327: ("read", "fd"),
    74: ("fsync", "fd"), 75: ("fsync", "fd"), 77: ("truncate", "fd"), 285: ("allocate", "fd"), 73: ("lock", "fd"),
    86: ("link", "two paths"), 265: ("link", "two at"), 82: ("rename", "two paths"), 264: ("rename", "two at"),
    316: ("rename", "two at"), 87: ("unlink", "path"), 263: ("unlink", "at"), 84: ("rmdir", "path"),
    83: ("mkdir", "path"), 258: ("mkdir", "at"), 91: ("chmod", "fd"), 326: ("copy", "fd"), 40: ("copy", "fd"),
    16: ("ioctl", "fd"),
}  # fmt: skip
# After these the disk may hold something else than before.
CHANGING = frozenset(
    {"create", "write", "fsync", "truncate", "allocate", "link", "rename", "unlink", "rmdir", "mkdir", "chmod", "copy"}
)
ALL = CHANGING | {"open", "close", "lock", "read"}
_HERE = -100  # AT_FDCWD
_FICLONE = 0x40049409


@final
@dataclass(frozen=True, slots=True)
class Kill:
    """The process is killed before it makes the call."""


@final
@dataclass(frozen=True, slots=True)
class Fail:
    """The call is not made, and fails with this number."""

    errno: int


@final
@dataclass(frozen=True, slots=True)
class Short:
    """The write takes so many bytes only."""

    nbytes: int


Fate: TypeAlias = Kill | Fail | Short | None


@dataclass(frozen=True, slots=True)
class Ended:
    """How a traced process ended.

    Attributes:
        how: `returned`, `killed` by us, `died` of something else, or `hung`.
        calls: what it did to the folder's files, when they were recorded.
    """

    how: Literal["returned", "killed", "died", "hung"]
    calls: list[Call]


def traced(
    folder: str | os.PathLike[str],
    work: Callable[[], object],
    decide: Callable[[Call], Fate],
    *,
    names: Collection[str] = ALL,
    record: bool = False,
    timeout_s: float = 30.0,
) -> Ended:
    """Run `work` in a forked child and ask `decide` at each of its calls on files below a folder.

    The calling process must have one thread, and must be the main thread of it.

    Args:
        folder: what is watched; it need not exist.
        work: what is done; nothing comes back but what it leaves on the disk or writes to a pipe.
        decide: called before each call is made. Its `inode`, `offset` and `data` are filled only with `record`.
        names: of the calls that are stopped at; the others cost nothing.
        record: keep the calls that succeeded, in an order that they had: while one is made, the other threads wait at
            theirs.
        timeout_s: after this time the process is killed, and has hung.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if not process:
        _child(work, names)
    tracer = _Tracer(process, os.path.realpath(folder), decide, record)
    try:
        with _alarm(timeout_s):
            return tracer.run()
    except TimeoutError:
        how = "hung"
    finally:
        if not tracer.ended:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            tracer.reap()
    return Ended(how, tracer.calls)


def _child(work: Callable[[], object], names: Collection[str]) -> None:
    code = 1
    try:
        ptrace.be_traced()
        os.kill(os.getpid(), signal.SIGSTOP)
        ptrace.stop_at(_numbers(names))
        work()
        code = 0
    except BaseException:  # the child must not go on as a second parent, whatever it was that failed
        sys.excepthook(*sys.exc_info())  # pyright: ignore[reportArgumentType]
        raise
    finally:
        os._exit(code)


def _numbers(names: Collection[str]) -> list[int]:
    """Return the system calls that may turn out to be calls of these names."""
    known_as = {"create": "open", "rmdir": "unlink", "copy": "ioctl"}
    wanted = {*names, *(known_as[name] for name in names if name in known_as)}
    return [number for number, (name, _) in _CALLS.items() if name in wanted]


@contextmanager
def _alarm(timeout_s: float) -> Generator[None]:
    def ring(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@final
class _Tracer:
    def __init__(self, process: int, folder: str, decide: Callable[[Call], Fate], record: bool) -> None:
        self._process, self._folder, self._decide, self._record = process, folder, decide, record
        self.calls: list[Call] = []
        self.ended = False
        self._killed = False

    def run(self) -> Ended:
        os.waitpid(self._process, os.WUNTRACED)
        ptrace.follow(self._process)
        ptrace.go_on(self._process)
        while True:
            thread, status = os.waitpid(-1, ptrace.WAIT_ALL)
            if os.WIFSTOPPED(status):
                self._stopped(thread, status >> 8)
            elif thread == self._process:
                self.ended = True
                how = "killed" if self._killed else "returned" if status == 0 else "died"
                return Ended(how, self.calls)

    def reap(self) -> None:
        """Wait until nothing is left of the process."""
        while True:
            try:
                thread, status = os.waitpid(-1, ptrace.WAIT_ALL)
            except ChildProcessError:
                return
            if thread == self._process and not os.WIFSTOPPED(status):
                return

    def _stopped(self, thread: int, what: int) -> None:
        signal_, event = what & 0xFF, what >> 8
        with suppress(ProcessLookupError):  # killed while it stood still
            if event == ptrace.EVENT_SECCOMP and not self._killed:
                self._called(thread)
            elif event or signal_ in (signal.SIGTRAP, signal.SIGSTOP, signal.SIGTRAP | 0x80):
                ptrace.go_on(thread)
            else:
                ptrace.go_on(thread, signal_)

    def _called(self, thread: int) -> None:
        registers = ptrace.registers(thread)
        call = self._call(thread, registers)
        fate = None if call is None else self._decide(call)
        if isinstance(fate, Kill):
            self._killed = True
            os.kill(self._process, signal.SIGKILL)
            return
        if isinstance(fate, Fail) and call is not None and call.name == "close":
            self._ended_with(thread, fate.errno)  # what could not be closed is closed all the same
            return
        if isinstance(fate, Fail):
            registers.orig_rax, registers.rax = (1 << 64) - 1, (1 << 64) - fate.errno
            ptrace.set_registers(thread, registers)
        elif isinstance(fate, Short) and registers.orig_rax in (1, 18):
            registers.rdx = min(registers.rdx, fate.nbytes)
            ptrace.set_registers(thread, registers)
        if call is None or not self._record or isinstance(fate, Fail):
            ptrace.go_on(thread)
        else:
            self._made(thread, call)

    def _ended_with(self, thread: int, errno: int) -> None:
        """Let a call be made, and the program think that it failed."""
        ptrace.go_on(thread, to_the_end=True)
        _, status = os.waitpid(thread, ptrace.WAIT_ALL)
        if os.WIFSTOPPED(status):
            registers = ptrace.registers(thread)
            registers.rax = (1 << 64) - errno
            ptrace.set_registers(thread, registers)
            ptrace.go_on(thread)

    def _made(self, thread: int, call: Call) -> None:
        """Let one call be made, and note it if it succeeded."""
        ptrace.go_on(thread, to_the_end=True)
        _, status = os.waitpid(thread, ptrace.WAIT_ALL)
        if not os.WIFSTOPPED(status):
            return
        result = ptrace.registers(thread).rax
        if result < 1 << 63:
            full = os.path.join(self._folder, call.path)
            inode = os.stat(full).st_ino if call.name in ("create", "mkdir") else call.inode
            data = call.data[:result] if call.name == "write" else call.data
            self.calls.append(Call(call.name, call.path, call.target, inode, call.offset, data))
        ptrace.go_on(thread)

    def _call(self, thread: int, registers: ptrace.Registers) -> Call | None:
        """Return the call that a thread is about to make, None when it is not on a file below the folder."""
        number = registers.orig_rax
        name, arguments = _CALLS[number]
        first, second, third, fourth = (registers.rdi, registers.rsi, registers.rdx, registers.r10)
        target = ""
        if arguments == "fd":
            full = _of_descriptor(thread, first)
        elif arguments == "path":
            full = _named(thread, _HERE, first)
        elif arguments == "at":
            full = _named(thread, first, second)
        elif arguments == "two paths":
            full, target = _named(thread, _HERE, first), _named(thread, _HERE, second)
        else:
            full, target = _named(thread, first, second), _named(thread, third, fourth)
        if not self._is_inside(full) and not (target and self._is_inside(target)):
            return None
        folder = os.path.isdir(full)
        if name == "open":
            flags = second if arguments == "path" else third
            name = "create" if number == 85 or (flags & os.O_CREAT and not os.path.lexists(full)) else "open"
        elif name == "unlink" and number == 263 and third & 0x200:  # AT_REMOVEDIR
            name = "rmdir"
        elif name == "ioctl":
            if second != _FICLONE:
                return None
            name = "copy"
        elif name == "close" and not _is_writable(thread, first):
            return None  # only what was written can be reported as lost so late
        call = Call(name, self._relative(full, folder or name == "mkdir"), target and self._relative(target, folder))
        return self._filled(call, thread, number, registers, full) if self._record else call

    def _filled(self, call: Call, thread: int, number: int, registers: ptrace.Registers, full: str) -> Call:
        fd = registers.rdi
        try:
            if _CALLS[number][1] == "fd":
                inode = os.stat(f"/proc/{thread}/fd/{fd}").st_ino
            else:
                inode = os.lstat(full).st_ino
        except OSError:
            inode = 0
        offset, data = 0, b""
        if call.name == "write":
            positioned = number in (18, 296, 328)
            offset = registers.r10 if positioned else _position(thread, fd)
            read = ptrace.memory if number in (1, 18) else ptrace.vectors
            data = read(thread, registers.rsi, registers.rdx)
        elif call.name in ("truncate", "allocate"):
            offset = registers.rsi if call.name == "truncate" else registers.rdx + registers.r10
        return Call(call.name, call.path, call.target, inode, offset, data)

    def _is_inside(self, full: str) -> bool:
        return full == self._folder or full.startswith(f"{self._folder}/")

    def _relative(self, full: str, folder: bool) -> str:
        path = os.path.relpath(full, self._folder)
        return f"{path}/" if folder and path != "." else path


def _of_descriptor(thread: int, fd: int) -> str:
    try:
        return os.readlink(f"/proc/{thread}/fd/{fd & 0xFFFFFFFF}").removesuffix(" (deleted)")
    except OSError:
        return ""


def _named(thread: int, folder: int, address: int) -> str:
    path = ptrace.text(thread, address)
    if os.path.isabs(path):
        return os.path.normpath(path)
    number = folder - (1 << 32) if folder & 0x80000000 else folder
    at = os.readlink(f"/proc/{thread}/cwd") if _is_here(number) else _of_descriptor(thread, folder)
    return os.path.normpath(os.path.join(at, path))


def _is_here(number: int) -> bool:
    return number in (_HERE, (1 << 64) + _HERE) or number & 0xFFFFFFFF == (1 << 32) + _HERE


def _position(thread: int, fd: int) -> int:
    return int(_about(thread, fd)["pos"])


def _is_writable(thread: int, fd: int) -> bool:
    return bool(int(_about(thread, fd)["flags"], 8) & os.O_ACCMODE)


def _about(thread: int, fd: int) -> dict[str, str]:
    with open(f"/proc/{thread}/fdinfo/{fd}") as file:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}
