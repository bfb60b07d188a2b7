"""Four real photographs to train on, as scikit-image ships them: a cat, an astronaut, a cup of coffee, a rocket.

python -m examples.photographs FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

from examples.stage import photographs

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m examples.photographs", description="Write four photographs.")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    folder = parser.parse_args().folder
    print(f"{len(photographs(folder))} photographs are in {folder}: name it in dataset.source")
