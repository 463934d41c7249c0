"""Fixtures that all tests share. MindSpore is imported only by the tests that need it."""

from __future__ import annotations

import os

os.environ.setdefault("GLOG_v", "3")  # MindSpore's warnings would bury a failure
