#!/usr/bin/env bash
# Every architecture of tests/architectures.py, the marked ones too: about three minutes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec ./run_tests.sh tests/test_architectures.py -m "" "$@"
