#!/usr/bin/env python3
"""The old name of python -m pyllmc.prepro, in a checkout."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from pyllmc.base.errors import begin_command

if __name__ == "__main__":
    begin_command()
    from pyllmc.prepro import main

    sys.exit(main(prog=os.path.basename(__file__)))
