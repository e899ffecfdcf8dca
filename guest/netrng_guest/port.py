# SPDX-License-Identifier: Apache-2.0
"""The guest's end of the channel: open it, read and write it, never wait on it.

A virtio-serial port (drivers/char/virtio_console.c): one program may hold it open; to another, open() says
EBUSY.  With no host connected read() returns nothing at once, poll() says POLLHUP for ever and write() would
block: whoever loops on either, spins.  The kernel wakes the poller when the host connects, which an
edge-triggered epoll sees once.  After a detach read() says ENODEV.

A terminal, as a Xen console is (drivers/tty/hvc/hvc_console.c): its settings are lost when nobody holds it,
so it is set to raw after every open.  It never tells whether a host is connected.  Others take what has room
and say POLLOUT when there is more; Xen's takes all and hangs in the kernel until dom0 has made room for it,
so Line keeps what it is given small (MAX_UNHEARD).

For tests and unusual set-ups ``--channel`` names a port, a terminal or a listening UNIX socket.
"""

import errno
import fcntl
import os
import socket
import stat
import termios
from typing import Optional, Tuple, Union

from .finder import DEV, SYSFS, NoChannel, find_channel
from .wire import wipe

READ_SIZE = 65536
# A session's end must be seen together with all that came before it.  A window of 64 KiB in samples of 32
# bytes is 2,048 frames of 64 bytes, 2 * READ_SIZE; HOLD (32 bytes) and PROBE (26) come on top.
MAX_READ = 4 * READ_SIZE
# Bytes; a terminal that holds as much may have more behind it (TTY_THRESHOLD_THROTTLE, drivers/tty/n_tty.c).
TTY_FULL = 4096 - 128
NO_CONSOLE = "no Xen console is behind it (xenstore-list device/console shows which there are)"
BUSY = "another program has it open (is a second netrng-guest running?)"
_GONE = (errno.ENODEV, errno.ENXIO, errno.EIO, errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF)
_NOT_NOW = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR)


class PortError(Exception):
    """The channel is not usable now; the text says why, in one line."""


class Port:
    """The channel's open end.  ``fd`` is None while it is closed; ``path`` is what was opened last."""

    def __init__(self, channel: Optional[str] = None, sysfs: str = SYSFS, dev: str = DEV) -> None:
        self._channel = channel
        self._sysfs = sysfs
        self._dev = dev
        self._end_is_gone = False  # a port's host may return after the end of input, others' not
        self.is_terminal = False  # what was opened last
        self._was_empty = False  # since it was opened
        self._buffer = bytearray(READ_SIZE)
        self.path = ""
        self.fd: Optional[int] = None

    def open(self) -> int:
        """Finds and opens the channel; returns the descriptor.  Raises PortError."""
        self.close()
        try:
            path = self._channel or find_channel(self._sysfs, self._dev)
        except NoChannel as error:
            raise PortError("{}; {}".format(error, error.how)) from None
        self.path = path
        self.is_terminal = self._was_empty = False
        try:
            mode = os.stat(path).st_mode
            if stat.S_ISSOCK(mode):
                self.fd = _connect(path)
            elif stat.S_ISCHR(mode):
                self.fd = _open_device(path)
                self.is_terminal = os.isatty(self.fd)
                if self.is_terminal:
                    _lock(self.fd)
                    _set_raw(self.fd)
            else:
                raise PortError("{}: neither a character device nor a socket".format(path))
        except (OSError, termios.error) as error:
            self.close()
            raise PortError("{}: {}".format(path, _explain(error))) from None
        self._end_is_gone = stat.S_ISSOCK(mode) or self.is_terminal
        return self.fd

    def read_all(self) -> Tuple[bytearray, bool, bool]:
        """What has come, to be overwritten by the caller; whether a host is connected; whether there is more.

        Raises PortError when the channel is gone.
        """
        assert self.fd is not None
        found = bytearray()
        # A terminal gives all it holds, and its poll tells of what comes after (n_tty_read and
        # n_tty_receive_buf_common, drivers/tty/n_tty.c); but what lay there before it was raw comes in parts,
        # and what waits behind a full one.
        at_once = self.is_terminal and self._was_empty
        while len(found) < MAX_READ:
            try:
                n = os.readv(self.fd, [self._buffer])
            except OSError as error:
                if error.errno in _NOT_NOW:
                    self._was_empty = True
                    return found, True, False
                wipe(found)
                raise PortError("{}: {}".format(self.path, _explain(error))) from None
            if not n:
                if self._end_is_gone and not found:
                    raise PortError("{}: closed by the host".format(self.path))
                return found, self._end_is_gone, self._end_is_gone
            found += self._buffer[:n]
            self._buffer[:n] = bytes(n)
            at_once = at_once and n < TTY_FULL
            if at_once:
                return found, True, False
        return found, True, True

    def write(self, data: Union[bytes, bytearray]) -> int:
        """Writes what fits now; returns how many bytes.  Raises PortError when the channel is gone."""
        assert self.fd is not None
        try:
            return os.write(self.fd, data)
        except OSError as error:
            if error.errno in _NOT_NOW:
                return 0
            raise PortError("{}: {}".format(self.path, _explain(error))) from None

    def close(self) -> None:
        """Closes the channel, if open."""
        if self.fd is not None:
            fd, self.fd = self.fd, None
            os.close(fd)


def _open_device(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        # A /dev/hvcN without a console (hvc_install in hvc_console.c); a virtio-serial port says ENXIO.
        if error.errno == errno.ENODEV:
            raise PortError("{}: {}".format(path, NO_CONSOLE)) from None
        raise


def _connect(path: str) -> int:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    with link:
        link.connect(path)
        return link.detach()


def _lock(fd: int) -> None:
    """A terminal can be opened twice, and each reader takes what is meant for the other.

    TIOCEXCL would not stop root.  Raises OSError, EBUSY as from a virtio-serial port.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(errno.EBUSY, "") from None


def _set_raw(fd: int) -> None:
    """Eight bits, unchanged, both ways, whatever its settings are.  Raises termios.error.

    tty.setraw() leaves what others may have set: INLCR, IGNCR and IXOFF among them, before Python 3.12.  What
    came before, changed and echoed, is still read: frames are found in any garbage, and a host that connected
    a moment ago may have its PROBE among it.
    """
    settings = termios.tcgetattr(fd)
    control = settings[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    settings[:4] = [0, 0, control, 0]
    settings[6][termios.VMIN], settings[6][termios.VTIME] = 1, 0
    termios.tcsetattr(fd, termios.TCSANOW, settings)


def _explain(error: Union[OSError, termios.error]) -> str:
    code = error.args[0] if error.args else 0
    if code == errno.EBUSY:
        return BUSY
    if code == errno.EACCES:
        return "permission denied (run as root)"
    if code in _GONE:
        return "detached or closed by the host"
    return os.strerror(code) if isinstance(code, int) else str(error)
