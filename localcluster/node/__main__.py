"""Run one node: `python -m localcluster.node CONFIG`. Started by the supervisor, one process a node."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path

from localcluster.node.agent import serve
from localcluster.nodespec import AgentConfig

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    os.umask(0o022)
    asyncio.run(serve(AgentConfig.read(Path(sys.argv[1]))))
