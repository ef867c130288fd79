"""These tests need torchvision, which the others do without: ``tests/e2e/test_videos.py`` runs them, with it."""

import os

collect_ignore_glob = [] if os.environ.get("SAMPLERPOOL_VIDEO_TESTS") else ["test_*.py"]
