"""Where this node keeps files that it can fetch or create again."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def node_folder(purpose: str) -> Path:
    """The folder for `purpose` below $XDG_CACHE_HOME (in a pod: /scratch), else below $TMPDIR.

    The same for all processes of a node. Weights and shards are too large for a pod's /tmp.
    """
    root = os.environ.get("XDG_CACHE_HOME") or tempfile.gettempdir()
    return Path(root) / "cogvx" / purpose
