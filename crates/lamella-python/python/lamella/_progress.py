"""Progress bars: tqdm's where it is installed, else one line on standard error."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

Callback = Callable[[str, int, int, str], None]
Progress = bool | Callback | None

# Jobs shorter than this show nothing.
_QUIET_SECONDS = 2.0


class _Bar:
    """One bar a stage."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._stage = ""
        self._bar = None
        self._stage_started = self._started

    def __call__(self, stage: str, done: int, total: int, current: str) -> None:
        if stage != self._stage:
            self.close()
            self._stage, self._stage_started = stage, time.monotonic()
        if time.monotonic() - self._started < _QUIET_SECONDS:
            return
        try:
            from tqdm.auto import tqdm
        except ImportError:
            self._line(stage, done, total, current)
            return
        if self._bar is None:
            self._bar = tqdm(total=total, desc=stage, leave=False)
        self._bar.total = total
        self._bar.set_postfix_str(current, refresh=False)
        self._bar.update(done - self._bar.n)

    def _line(self, stage: str, done: int, total: int, current: str) -> None:
        elapsed = time.monotonic() - self._stage_started
        left = f", about {elapsed * (total - done) / done:.0f} s left" if done else ""
        text = f"{stage}: {done} of {total}{left}  {current}"
        sys.stderr.write(f"\r{text[:100]:<100}")
        sys.stderr.flush()
        self._bar = False

    def close(self) -> None:
        if self._bar is False:
            sys.stderr.write("\r" + " " * 100 + "\r")
        elif self._bar is not None:
            self._bar.close()
        self._bar = None


@contextlib.contextmanager
def watch(progress: Progress) -> Iterator[Callback | None]:
    """The callback that a job is given."""
    if callable(progress):
        yield progress
        return
    is_shown = sys.stderr.isatty() if progress is None else progress
    if not is_shown:
        yield None
        return
    bar = _Bar()
    try:
        yield bar
    finally:
        bar.close()
