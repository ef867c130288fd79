"""The tests of videos, in a process of their own: they need torchvision, and which of its classes transformers has is
decided once a process."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
APART = Path(sys.prefix) / ".samplerpool" / "torchvision"
"""Where scripts/setup --dev puts it."""
TIMEOUT_S = 300


def test_videos() -> None:
    paths = [str(ROOT / "src")]
    if importlib.util.find_spec("torchvision") is None:
        if not APART.is_dir():
            pytest.skip("torchvision is not installed; scripts/setup --dev puts one where this test looks for it")
        paths = [str(ROOT / "tests" / "videos" / "beside_cpu_torch"), str(APART), *paths]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "SAMPLERPOOL_VIDEO_TESTS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/videos"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout
