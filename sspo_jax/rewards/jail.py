"""Run as a script in a process of its own: gives up all it can, then runs a program. Imports nothing of the project.

What is given up needs no privileges, and cannot be had back: resources (setrlimit), files (Landlock), and system calls
(seccomp): no sockets, no new processes, no signals to anything, no changes of files, modes or limits.

    python -I jail.py PROGRAM LIMITS        LIMITS is JSON: {"seconds", "memory_bytes", "nonce", "read": [paths]}

Where a nonce is given the program holds its own tests, and the nonce is printed at the very end: not where the program
left early.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys
from collections.abc import Sequence

# name: numbers on x86_64 and aarch64, -1 where there is no such call
_DENIED = {
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200),
    "fork": (57, -1), "vfork": (58, -1), "execve": (59, 221), "execveat": (322, 281),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "prlimit64": (302, 261), "setrlimit": (160, 164), "setpriority": (141, 140),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "memfd_create": (319, 279), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, -1),
    "fchown": (93, 55), "lchown": (94, -1), "fchownat": (260, 54), "utime": (132, -1), "utimes": (235, -1),
    "futimesat": (261, -1), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
}  # fmt: skip
_CLONE = (56, 220)
_CLONE3 = 435
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_*
_CLONE_THREAD = 0x10000
_EPERM, _ENOSYS = 1, 38
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_READ_FILE, _READ_FOLDER, _EXECUTE = 1 << 2, 1 << 3, 1 << 0
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_LIBC = ctypes.CDLL(None, use_errno=True)


def landlock_version() -> int:
    """Version of Landlock's interface, 0 where the kernel has none or it is off."""
    return max(0, _LIBC.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)) if sys.platform == "linux" else 0


def missing() -> list[str]:
    """What cannot be had here: parts of the isolation, in words; empty where a program can be held."""
    if sys.platform != "linux":
        return [f"files, network and processes: {sys.platform} offers neither Landlock nor seccomp"]
    found = []
    if landlock_version() == 0:
        found.append("files: the kernel has no Landlock (Linux 5.13), or it is off")
    if platform.machine() not in _MACHINES:
        found.append(f"network and processes: no table of system calls for {platform.machine()}")
    elif _LIBC.prctl(21, 0, 0, 0, 0) < 0:  # PR_GET_SECCOMP
        found.append("network and processes: the kernel has no seccomp")
    return found


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def limit_resources(seconds: float, memory_bytes: int) -> None:
    """Time on the processor, memory, and no files that grow."""
    whole = int(seconds) + 1
    for name, value in (
        (resource.RLIMIT_CPU, whole),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))


def limit_files(read: Sequence[str]) -> None:
    """Files may only be read, and only below the given paths."""
    version = landlock_version()
    handled = (1 << 13) - 1  # of version 1: execute, write, read, remove, make
    handled |= (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0) | (1 << 15 if version >= 5 else 0)
    network, scoped = (3 if version >= 4 else 0), (3 if version >= 6 else 0)
    sizes = {1: 8, 2: 8, 3: 8, 4: 16, 5: 16}
    attributes = struct.pack("<QQQ", handled, network, scoped)[: sizes.get(version, 24)]
    rules = _checked(_LIBC.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0), "landlock")
    for path in read:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # not on this machine
        access = _READ_FILE | _EXECUTE | (_READ_FOLDER if os.path.isdir(path) else 0)
        rule = struct.pack("<Qi", access, descriptor)
        _checked(_LIBC.syscall(_LANDLOCK_ADD, rules, 1, rule, 0), f"landlock, {path}")
        os.close(descriptor)
    _checked(_LIBC.syscall(_LANDLOCK_RESTRICT, rules, 0), "landlock")
    os.close(rules)


def limit_calls() -> None:
    """Denies the system calls above, for good; a thread may be started, a process may not."""
    column, architecture = _MACHINES[platform.machine()]
    load, equal, at_least, bits, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    kill, allow, deny, absent = 0x80000000, 0x7FFF0000, 0x00050000 | _EPERM, 0x00050000 | _ENOSYS
    numbers = [pair[column] for pair in _DENIED.values() if pair[column] >= 0]
    program = [
        (load, 0, 0, 4),  # the architecture
        (equal, 1, 0, architecture),
        (answer, 0, 0, kill),
        (load, 0, 0, 0),  # the number of the call
        (at_least, 0, 1, 0x40000000),  # the x32 calls, under other numbers
        (answer, 0, 0, deny),
        (equal, 0, 1, _CLONE3),  # its flags lie in memory; the C library then takes clone
        (answer, 0, 0, absent),
        (equal, 0, 4, _CLONE[column]),
        (load, 0, 0, 16),  # flags, the first argument
        (bits, 0, 1, _CLONE_THREAD),
        (answer, 0, 0, allow),
        (answer, 0, 0, deny),
    ]
    for number in numbers:
        program += [(equal, 0, 1, number), (answer, 0, 0, deny)]
    program.append((answer, 0, 0, allow))
    code = b"".join(struct.pack("<HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    _checked(_LIBC.prctl(_PR_SET_SECCOMP, 2, head, 0, 0), "seccomp")


def give_up_privileges() -> None:
    """No new ones by any program, and none of root's; the process ends with its parent."""
    _checked(_LIBC.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0), "prctl")
    _checked(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    header = struct.pack("<Ii", 0x20080522, 0)
    capset = {"x86_64": 126, "aarch64": 91}[platform.machine()]
    _checked(_LIBC.syscall(capset, header, bytes(24)), "capset")


def main() -> None:
    """Give up, then run."""
    path, limits = sys.argv[1], json.loads(sys.argv[2])
    with open(path, encoding="utf-8") as file:
        text = file.read()
    limit_resources(limits["seconds"], limits["memory_bytes"])
    if not missing():
        give_up_privileges()
        limit_files(limits["read"])
        limit_calls()
    sys.argv[:] = ["program.py"]
    sys.dont_write_bytecode = True
    space = {"__name__": "__main__", "__builtins__": __builtins__}
    exec(compile(text, "program.py", "exec"), space)
    if limits["nonce"]:
        sys.stdout.flush()
        print("\n" + limits["nonce"], flush=True)


if __name__ == "__main__":
    main()
