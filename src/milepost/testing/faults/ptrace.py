# SPDX-License-Identifier: Apache-2.0
"""What the tracer asks of Linux: a filter that stops a process at some system calls, its registers, its memory.

Sources: ptrace(2), seccomp(2), and the tables of the x86-64 ABI in the kernel's `arch/x86/entry/syscalls`.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Sequence
from functools import cache

# Threads of the child are waited for as well.
WAIT_ALL = 0x40000000

_TRACE_ME, _CONTINUE, _GET_REGISTERS, _SET_REGISTERS, _SYSTEM_CALL = 0, 7, 12, 13, 24
_SET_OPTIONS = 0x4200
# The process dies with its tracer; its new threads are traced; stops of ours can be told from signals.
_OPTIONS = 0x100000 | 0x80 | 0x08 | 0x04 | 0x02 | 0x01
EVENT_SECCOMP = 7

_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2
_ALLOW, _TRACE, _REFUSE = 0x7FFF0000, 0x7FF00000, 0x00050000 | 38  # 38: ENOSYS
_X86_64 = 0xC000003E

# What cannot be seen from outside is refused: io_uring and Linux AIO do their work in the kernel.
_UNSEEN = (425, 426, 427, 206, 209)


class Registers(ctypes.Structure):
    """`struct user_regs_struct` of x86-64."""

    _fields_ = [
        (name, ctypes.c_ulonglong)
        for name in [
            "r15",
            "r14",
            "r13",
            "r12",
            "rbp",
            "rbx",
            "r11",
            "r10",
            "r9",
            "r8",
            "rax",
            "rcx",
            "rdx",
            "rsi",
            "rdi",
            "orig_rax",
            "rip",
            "cs",
            "eflags",
            "rsp",
            "ss",
            "fs_base",
            "gs_base",
            "ds",
            "es",
            "fs",
            "gs",
        ]
    ]


class _Filter(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.POINTER(_Filter))]


def why_not() -> str:
    """Return why processes cannot be traced here; empty when they can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"tracing needs Linux on x86-64, this is {sys.platform} on {platform.machine()}"
    return ""


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    return libc


def _ptrace(request: int, thread: int, data: int | ctypes.Structure | None = None) -> None:
    pointer = ctypes.cast(ctypes.byref(data), ctypes.c_void_p) if isinstance(data, ctypes.Structure) else data
    if _libc().ptrace(request, thread, None, pointer) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace: {os.strerror(number)}")


def be_traced() -> None:
    """Let the parent trace this process."""
    _ptrace(_TRACE_ME, 0)


def stop_at(numbers: Sequence[int]) -> None:
    """Stop this process, and its threads to come, at some system calls; the others cost nothing."""
    load, equals, answer = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    lines = [(load, 0, 0, 4), (equals, 1, 0, _X86_64), (answer, 0, 0, _ALLOW), (load, 0, 0, 0)]
    for number in numbers:
        lines += [(equals, 0, 1, number), (answer, 0, 0, _TRACE)]
    for number in _UNSEEN:
        lines += [(equals, 0, 1, number), (answer, 0, 0, _REFUSE)]
    lines.append((answer, 0, 0, _ALLOW))
    program = _Program(len(lines), (_Filter * len(lines))(*lines))
    libc = _libc()
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")


def follow(process: int) -> None:
    """Begin to trace a child that has stopped itself."""
    _ptrace(_SET_OPTIONS, process, _OPTIONS)


def go_on(thread: int, signal: int = 0, *, to_the_end: bool = False) -> None:
    """Let a stopped thread run: to its next stop, or to the end of its system call."""
    _ptrace(_SYSTEM_CALL if to_the_end else _CONTINUE, thread, signal)


def registers(thread: int) -> Registers:
    found = Registers()
    _ptrace(_GET_REGISTERS, thread, found)
    return found


def set_registers(thread: int, values: Registers) -> None:
    _ptrace(_SET_REGISTERS, thread, values)


def memory(thread: int, address: int, nbytes: int) -> bytes:
    """Return a stopped thread's memory."""
    fd = os.open(f"/proc/{thread}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, nbytes, address)
    finally:
        os.close(fd)


def text(thread: int, address: int) -> str:
    """Return a string in a stopped thread's memory."""
    data = b""
    while b"\0" not in data and len(data) < 4096:
        # Up to the end of a page: the next one may not be there.
        data += memory(thread, address + len(data), 4096 - (address + len(data)) % 4096)
    return os.fsdecode(data.partition(b"\0")[0])


def vectors(thread: int, address: int, count: int) -> bytes:
    """Return what an array of `struct iovec` points to."""
    raw = memory(thread, address, 16 * count)
    return b"".join(memory(thread, *struct.unpack_from("QQ", raw, 16 * i)) for i in range(count))
