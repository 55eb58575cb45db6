import importlib.util
import sys

import pytest


def test_a_missing_torch_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "models.train", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"Training needs torch: pip install torch==2\.13\.0"):
        importlib.import_module("models.train")
