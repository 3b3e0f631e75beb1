"""Cut the power of recordings at many points, and look at each."""

from __future__ import annotations

import os
import random
import signal
import sys
import traceback
from collections.abc import Callable

from tests.cuts.checks import look, look_mounted
from tests.cuts.disks import Cut, Replay, mounted_image
from tests.cuts.recordings import Recording

LOOK_SECONDS_MAX = 120
MOUNTED_EACH, REPLICATES_EACH = 25, 8


class PowerCutFailed(AssertionError):
    """Something that was acknowledged is not there, or the archive does not open."""

    def __init__(self, cut: Cut, why: str) -> None:
        super().__init__(why)
        self.cut = cut


def chosen(recording: Recording, count: int, dice: random.Random) -> list[Cut]:
    """Half of them just after an answer, when the least of what it relied on has had time to get anywhere."""
    answers = recording.answers
    found = []
    for _ in range(count):
        at = dice.choice(answers) if dice.random() < 0.5 else dice.randrange(recording.first, recording.last) + 1
        found.append(Cut(at, dice.randrange(1 << 30)))
    return sorted(found, key=lambda cut: cut.position)


def cut_all(recording: Recording, cuts: list[Cut], *, mounted_each: int = MOUNTED_EACH) -> dict[str, int]:
    """Look at every cut; counts by kind of look. Raises PowerCutFailed that says how to see it again."""
    replay = Replay(recording.folder)
    counts = {"cuts": 0, "mounted": 0, "replicated": 0}
    image = recording.folder / "cut"
    try:
        for number, cut in enumerate(cuts, start=1):
            what = replay.build(cut, image)
            is_mounted, replicates = number % mounted_each == 0, number % REPLICATES_EACH == 0
            try:
                with mounted_image(image, recording.place, recording.kind):
                    if is_mounted:
                        look_mounted(recording, cut.position)
                    else:
                        _apart(lambda: look(recording, cut.position, replicates=replicates))  # noqa: B023 - at once
            except Exception as problem:
                notes = "\n".join(getattr(problem, "__notes__", ()))
                raise PowerCutFailed(
                    cut, f"{recording.kind}, {recording.engine}, {cut}, {what}: {problem}\n{notes}"
                ) from None
            counts["cuts"] += 1
            counts["mounted"] += is_mounted
            counts["replicated"] += replicates or is_mounted
    finally:
        replay.close()
        image.unlink(missing_ok=True)
    return counts


def _apart(work: Callable[[], None]) -> None:
    """Run in a child: an archive is opened once in a process, and one that hangs is ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            signal.alarm(LOOK_SECONDS_MAX)
            work()
            code = 0
        except BaseException:
            os.write(writing, traceback.format_exc()[-60_000:].encode())
        finally:
            sys.stdout.flush()
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    assert status == 0, said or f"it ended with {status}"
