import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["ensemble.thresholds", "ensemble.final", "report.evaluation"])
def test_metrics_and_exact_thresholds_do_not_import_optimisers(module):
    """They take 0.3 s and 30 MB, and every stage computes metrics."""
    code = f"import sys, ich.{module}; print({{'scipy.optimize', 'optuna', 'sklearn'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
