import subprocess
import sys


def test_metrics_and_exact_thresholds_do_not_import_optimisers():
    """They take 0.3 s and 30 MB, and every stage computes metrics."""
    code = "import sys, ich.ensemble.thresholds, ich.ensemble.final, ich.report.evaluation\n"
    code += "print({'scipy.optimize', 'optuna', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
