"""What the kernel can do for a pipe."""

from __future__ import annotations

import array
import contextlib
import fcntl
import termios

_LARGE = 1 << 20  # what anybody may ask for


def enlarge_pipe(fd: int) -> None:
    """Have a pipe hold a megabyte, so that its ends wake each other less often. Any other file is left as it is."""
    with contextlib.suppress(OSError):  # more than this user may have: then it goes a little slower
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _LARGE)


def unread(fd: int) -> int:
    """Bytes in a pipe that nobody has read yet; also when its reader is gone."""
    number = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, number)
    return number[0]
