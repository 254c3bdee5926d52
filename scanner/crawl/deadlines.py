"""How long a worker may take: to start, to answer, for a stage, and for a whole scan.

Ages are measured by the clock of the driver. A worker that is stopped (SIGSTOP, a machine that swaps, a
network disk that hangs) reports nothing any more, so its last report does not show that it is alive. Knows no
Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from finextract.reasons import ReasonCode
from scanner.crawl.pool import WorkerFailed, WorkerHandle

STAGES_S = {"fetch": 7200.0, "load": 1800.0, "screen": 3600.0, "sample": 8 * 3600.0, "embed": 3600.0,
            "cliques": 3600.0, "match": 1800.0}  # fmt: skip


class DeadlinePassed(WorkerFailed):
    """A scan took too long. The checkpoint may be the cause."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ReasonCode.TIMED_OUT)


@dataclass(frozen=True, slots=True)
class Deadlines:
    """The deadlines of a crawl, in seconds."""

    stages: Mapping[str, float] = field(default_factory=lambda: STAGES_S)  # since the stage began
    scan: float = 12 * 3600.0  # since the scan began
    answer: float = 600.0  # since a busy worker was asked for its stage; it answers from a thread of its own
    start: float = 900.0  # since the worker has a process; the wait for a node with room is not counted

    def passed(self, worker: WorkerHandle, checkpoint_id: str | None, at: float) -> WorkerFailed | None:
        """Why a worker is to be ended at a time of `time.monotonic`, or None.

        `checkpoint_id` is what it scans. What it told of an earlier scan does not count.
        """
        if worker.starting is not None:
            if worker.placed is not None and at - worker.placed > self.start:
                return WorkerFailed(
                    f"the worker did not start within {self.start:.0f} s", ReasonCode.TIMED_OUT
                )
            return None
        if worker.answer is None:
            return None
        if worker.asked is not None and at - worker.asked_at > self.answer:
            return WorkerFailed(
                f"the worker did not answer for {self.answer:.0f} s, and was ended", ReasonCode.TIMED_OUT
            )
        if worker.stage is not None and worker.stage.checkpoint_id == checkpoint_id:
            name, seconds = worker.stage.name, worker.stage.seconds
            if seconds > (most := self.stages.get(name, self.scan)):
                return DeadlinePassed(f"{name} took longer than {most:.0f} s, and was ended")
        if at - worker.began > self.scan:
            return DeadlinePassed(f"the scan took longer than {self.scan:.0f} s, and was ended")
        return None


DEADLINES = Deadlines()  # of every crawl outside the tests
