#!/usr/bin/env bash
# Without arguments every check, as in CI; with arguments pytest alone: ./run_tests.sh tests/test_metrics.py -k auc
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./environment.sh
export OMP_NUM_THREADS=1 # two test processes share two cores
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1

if (($#)); then
    exec "$PYTHON" -m pytest "$@" 3>&-
fi

step "$PYTHON" -m ruff check .
step "$PYTHON" -m ruff format --check .
step "$PYTHON" -m pytest -n 2 --dist loadscope

# The notebooks: executed at the smallest scale, then again by nbval. Those that only read results must repeat their outputs
# exactly (strict), the others must run and repeat what is tagged (lax). figures/ stays as it is.
export UNLEARN_FIGURES
export PYTHONWARNINGS="ignore:IProgress not found" # as a run sets it for its kernels
UNLEARN_FIGURES=$root/runs/tests/figures
rm -rf "$UNLEARN_FIGURES" runs/smoke/stamps # so that every notebook is executed
step "$PYTHON" -m unlearn_utils run smoke
lax=() strict=()
for notebook in notebooks/[0-9][0-9]_*.ipynb; do
    copy="runs/smoke/${notebook##*/}"
    if grep -q '"reads_only": true' "$copy"; then strict+=("$copy"); else lax+=("$copy"); fi
done
nbval=(step "$PYTHON" -m pytest -n 2 --dist loadscope --nbval-current-env)
((${#lax[@]} == 0)) || "${nbval[@]}" --nbval-lax "${lax[@]}"
((${#strict[@]} == 0)) || "${nbval[@]}" --nbval "${strict[@]}"
echo "All checks passed in $(((SECONDS + 30) / 60)) min."
