# SPDX-License-Identifier: Apache-2.0
"""The sink that matters most: an rngd of our own, fed through a pipe one block at a time, and supervised.

An exit code proves nothing: a starved rngd waits for ever, one that gave its source up exits with 0.  So it
is judged by the bytes that it takes out of the pipe and by what it says.  It is started when the first block
is there and not before (one of the three gives up after ten seconds of silence), and restarted with a backoff
whenever it ends, leaves a block for 15 seconds, or rejects too many.
"""

import signal
from typing import Callable, Optional

from . import variants
from .blockpipe import BlockPipe
from .child import Child
from .demand import BLOCK_SIZE, SECOND_NS
from .loop import Loop
from .sink import Sink
from .variants import NOISE, Judge
from .wire import wipe

PARKED_NS = 15 * SECOND_NS
GRACE_NS = 3 * SECOND_NS  # from SIGTERM to SIGKILL
FIRST_BACKOFF_NS, MAX_BACKOFF_NS = SECOND_NS, 60 * SECOND_NS
STEADY_NS = 60 * SECOND_NS  # an rngd that lived this long starts over at the first backoff
LOOK_NS = SECOND_NS // 2  # between looks at a block in the pipe, should epoll keep silent

Log = Callable[[str], None]


class RngdSink(Sink):
    """``find`` returns the path of an rngd or None."""

    name = "rngd"
    piece = BLOCK_SIZE
    waits_for_seed = True  # rngd --help, --version and -l are run

    def __init__(self, loop: Loop, log: Log, find: Callable[[], Optional[str]] = variants.find_rngd) -> None:
        super().__init__()
        self._loop = loop
        self._log = log
        self._find = find
        self._variant: Optional[variants.Variant] = None
        self._pipe = BlockPipe(loop)
        self._left = bytearray()  # what its predecessor left, for the next rngd
        self._child: Optional[Child] = None
        self._consumed = 0  # bytes that this child took
        self._started_ns = self._looked_ns = 0
        self._moved_ns = 0  # when a byte last went into or out of the pipe
        self._due_ns = 0  # not looked for nor started before
        self._kill_ns: Optional[int] = None  # set between SIGTERM and the end
        self._backoff_ns = FIRST_BACKOFF_NS
        self._patience_s = variants.HELP_S
        self._judge = Judge()  # of this child

    @property
    def pid(self) -> Optional[int]:
        """The process ID of the rngd that runs, if one does."""
        return self._child.pid if self._child is not None else None

    @property
    def needed(self) -> int:
        return max(self._block_size() - len(self._left), 0)

    def offer(self, data: memoryview, now_ns: int) -> int:
        size = self._block_size()
        n = max(size - len(self._left), 0)
        if len(data) < n or self._pipe.waiting or self._judge.verdict is not None:
            return 0
        if self._child is None and not self._start(now_ns):
            return 0
        block = self._left[:size] + data[:n]
        rest = self._left[size:]  # an rngd that reads more at its start was replaced by one that reads less
        self._pipe.put(block)
        self._judge.gave_block()
        wipe(block)
        wipe(self._left)
        self._left = rest
        self._moved_ns = self._looked_ns = now_ns
        return n

    def tick(self, now_ns: int) -> None:
        if self._variant is None and now_ns >= self._due_ns:
            self._look_for_one(now_ns)
        if self._child is None:
            return
        self._looked_ns = now_ns
        self._count(now_ns)
        self._child.read()
        how = self._child.poll()
        if how is not None:
            self._count(now_ns)
            self._ended(how, now_ns)
        elif self._kill_ns is not None:
            if now_ns >= self._kill_ns:
                self._child.signal(signal.SIGKILL)
        elif self._pipe.waiting and now_ns >= self._moved_ns + PARKED_NS:
            detail = "left {} bytes untaken for 15 s".format(self._pipe.waiting)
            self._say(*self._judge.condemn("parked", detail))
        if self._child is not None and self._judge.verdict is not None and self._kill_ns is None:
            self._child.signal(signal.SIGTERM)
            self._kill_ns = now_ns + GRACE_NS

    def next_ns(self) -> Optional[int]:
        if self._child is None:
            return self._due_ns
        if self._kill_ns is not None:
            return self._kill_ns
        return self._looked_ns + LOOK_NS if self._pipe.waiting else None

    def flush(self, now_ns: int) -> None:
        rest, taken = self._pipe.take_back()
        self._consumed += taken
        wipe(rest)
        wipe(self._left)
        self._left = bytearray()
        self._passed_on = 0

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop(GRACE_NS // SECOND_NS)
            self._child = None
        self.flush(0)
        self._pipe.close()

    # --- blocks

    def _block_size(self) -> int:
        """What makes the child's next block whole."""
        start = self._variant.start_bytes if self._variant is not None else 0
        if self._consumed < start:
            return start - self._consumed + BLOCK_SIZE
        return BLOCK_SIZE - (self._consumed - start) % BLOCK_SIZE

    def _count(self, now_ns: int) -> None:
        taken = self._pipe.count()
        if not taken:
            return
        self._consumed += taken
        self._passed_on += taken
        self._moved_ns = now_ns
        if not self._pipe.waiting and self._judge.took_block():
            self._say("ok", self._title())

    # --- the child

    def _look_for_one(self, now_ns: int) -> None:
        path = self._find()
        try:
            self._variant = variants.identify(path, self._patience_s) if path is not None else None
        except variants.Slow as slow:
            self._say("starting", str(slow))
            # Nothing else is done while it is asked, so most of the time it is not.
            self._due_ns = now_ns + 5 * self._patience_s * SECOND_NS
            self._patience_s = min(2 * self._patience_s, variants.MAX_HELP_S)
            return
        if self._variant is not None:
            self._say("starting", self._title() + ": waits for a block")
            return
        if path is None:
            self._say("absent", "no rngd; install rng-tools, rng-tools5 or rng-tools-debian")
        else:
            self._say("absent", "{} is no rngd that we know".format(path))
        self._due_ns = now_ns + MAX_BACKOFF_NS

    def _start(self, now_ns: int) -> bool:
        if self._variant is None or now_ns < self._due_ns:
            return False
        self._consumed = 0
        self._judge = Judge()
        try:
            self._child = Child(self._loop, self._variant.argv, self._pipe.read_end, self._said)
        except OSError as error:
            self._variant = None
            self._say("failed", "{}: {}".format(variants.NAME, error.strerror))
            self._due_ns = now_ns + self._backoff_ns
            return False
        self._started_ns = now_ns
        self._say("starting", self._title())
        self._log("started {}".format(" ".join(self._variant.argv)))
        return True

    def _said(self, line: str) -> None:
        if not line.startswith(NOISE):
            self._log("rngd says: " + line)
            self._say(*(self._judge.heard(line) or (self.state, self.detail)))

    def _ended(self, how: str, now_ns: int) -> None:
        detail = "rngd ended, {}: {}".format(how, self._judge.last_line or "without a word")
        self._log(detail)
        state, detail = self._judge.verdict or ("dying", detail)
        self._say(state, detail)
        self._child = self._kill_ns = None
        self._judge = Judge()
        block, taken = self._pipe.take_back()
        later, self._left = self._left, block + self._left
        wipe(block)
        wipe(later)
        self._passed_on += taken
        if now_ns >= self._started_ns + STEADY_NS:
            self._backoff_ns = FIRST_BACKOFF_NS
        self._due_ns = now_ns + self._backoff_ns
        self._backoff_ns = min(2 * self._backoff_ns, MAX_BACKOFF_NS)
        if not self._consumed:
            self._variant = None  # perhaps another one was installed in its place
        self._consumed = 0

    def _title(self) -> str:
        return "rngd {0.version} of {0.kind}".format(self._variant) if self._variant is not None else ""
