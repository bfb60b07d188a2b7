"""``python -m tests.bench.trainer.probed WHAT FD``: a process that writes down its wake-ups, a line for each SIGINT.

The thread that is measured is the trainer's own, which waits for SIGTERM: each time it is awake it writes the time (of
the clock that all processes share) and the phase to the descriptor FD. WHAT is ``trainer``, ``control`` (the same wait
and nothing else) or ``state`` (a saver with tensors of the sizes of rank 32 beside a busy main thread).
"""

from __future__ import annotations

from lorafinetune_trainer import signals

signals.install()

import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

from lorafinetune_trainer.ending import Ending  # noqa: E402
from tests.bench.trainer.sizes import TENSORS, VALUES_PER_RANK  # noqa: E402

WHAT, FD = sys.argv[1], int(sys.argv[2])
VALUES = 32 * VALUES_PER_RANK


ending = Ending()
_wait = signals.wait


def wait() -> signal.Signals:
    while True:
        heard = _wait()
        phase = ending.standing.phase or "Starting"
        os.write(FD, f"{time.monotonic_ns()} {phase}\n".encode())
        if heard is signal.SIGTERM:
            return heard


signals.wait = wait


def save_large_states() -> None:
    """Train nothing, and save states of real sizes; a line from the standard input says that one is to be saved."""
    import torch

    from lorafinetune.contract.event import Phase
    from lorafinetune.contract.manifest import SaveReason
    from lorafinetune.contract.runconfig import ENV_TERMINATION_LOG
    from lorafinetune_trainer import places
    from lorafinetune_trainer.main import read_config
    from lorafinetune_trainer.saving.checkpoints import Checkpoints, Snapshot
    from lorafinetune_trainer.saving.saver import Saver
    from lorafinetune_trainer.saving.snapshots import HostCopies
    from lorafinetune_trainer.telling.report import Reporter

    config = read_config(None)
    ending.notice_seconds = config.notice_seconds
    bucket = places.open_prefix(config)
    checkpoints = Checkpoints(bucket, bucket.hasty(max(2.0, config.notice_seconds / 4)), config, "pod")
    checkpoints.claim(None, expect_head=False)
    reporter = Reporter(run_uid=config.run.uid, attempt=1, webhook=None, on_stop=lambda *_: None, readable=False)
    ending.reporter = reporter
    # As the loop keeps them: one vector of each kind, copied at once, of whose parts a snapshot is made.
    state = {kind: torch.randn(TENSORS * VALUES) for kind in ("lora", "exp_avg", "exp_avg_sq")}
    copies = HostCopies(torch.device("cpu"))
    ending.termination_log = Path(os.environ[ENV_TERMINATION_LOG])
    step = [1]

    def take() -> Snapshot:
        parts = {kind: copy.view(TENSORS, 32, -1) for kind, copy in copies.take(state).items()}
        named = {f"{kind}.{number:04}": one for kind, every in parts.items() for number, one in enumerate(every)}
        return Snapshot(step[0], step[0], named)

    saver = Saver(checkpoints, take=take, ending=ending, reporter=reporter)
    ending.rescue = saver.rescue
    ending.standing.phase = Phase.TRAINING
    os.set_blocking(0, False)
    left, right = torch.randn(256, 256), torch.randn(256, 256)
    print("ready", flush=True)
    while True:  # as training does: calls of torch that let others run, and Python between them that does not
        ending.hold()
        left = (left @ right).tanh()
        sum(range(2000))
        try:
            said = os.read(0, 64)
        except BlockingIOError:
            continue
        if said:
            saver.offer(take(), SaveReason.PERIODIC)
            step[0] += 1


if __name__ == "__main__":
    if WHAT == "control":
        while True:
            wait()
    ending.watch()
    if WHAT == "state":
        save_large_states()
    else:
        from lorafinetune_trainer.main import main

        main([], ending)
