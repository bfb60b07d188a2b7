"""``python -m lorafinetune``: the operator."""

import asyncio
import contextlib
import sys

from lorafinetune import settings, telemetry
from lorafinetune.serve import serve


def main() -> None:
    """Read the command line and run until told to end."""
    given = settings.parse(sys.argv[1:])
    telemetry.set_up_logging(given.log_level)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(given))


if __name__ == "__main__":
    main()
