"""``python -m lorafinetune_trainer``: one attempt of a run, in a pod or by hand."""

from lorafinetune_trainer import signals

signals.install()  # before anything that takes time: SIGTERM may come while torch is being imported

import sys  # noqa: E402

from lorafinetune_trainer.ending import Ending  # noqa: E402

ending = Ending()
ending.watch()

from lorafinetune_trainer.main import main  # noqa: E402

if __name__ == "__main__":
    main(sys.argv[1:], ending)
