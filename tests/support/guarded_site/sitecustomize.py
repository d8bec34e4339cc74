"""Loaded by every Python that a test starts, from PYTHONPATH: the guard holds there too."""

import importlib.util
import pathlib
import sys

_path = pathlib.Path(__file__).parents[1] / "offline_guard.py"
_spec = importlib.util.spec_from_file_location("offline_guard", _path)
if _spec is None or _spec.loader is None:
    raise ImportError(f"no guard at {_path}")
_guard = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _guard  # the one that a test process would import itself
_spec.loader.exec_module(_guard)
_guard.install()
