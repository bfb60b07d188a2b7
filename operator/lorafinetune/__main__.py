"""``lorafinetune`` or ``python -m lorafinetune``: the operator; ``simulate`` first: its decisions in virtual time."""

import asyncio
import contextlib
import sys


def main() -> None:
    """Read the command line and run until told to end."""
    arguments = sys.argv[1:]
    # Each way imports its own: a simulation needs no cluster's libraries.
    if arguments[:1] == ["simulate"]:
        from lorafinetune.simulate import command

        command.main(arguments[1:])
        return
    from lorafinetune import settings, telemetry
    from lorafinetune.serve import serve

    given = settings.parse(arguments)
    telemetry.set_up_logging(given.log_level)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(given))


if __name__ == "__main__":
    main()
