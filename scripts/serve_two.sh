#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Serve two models with vLLM on one GPU, sharing memory for KV:
#
#     PYVATTN_SHARED_BUDGET=60GiB scripts/serve_two.sh MODEL_A MODEL_B [OPTIONS OF BOTH]
#
# On ports PORT_A (8001) and PORT_B (8002). `pyvattn top` shows who has how much; docs/elastic.md.
# Where one ends, both do.
set -euo pipefail

if [ $# -lt 2 ]; then
  echo "usage: scripts/serve_two.sh MODEL_A MODEL_B [options of vllm serve for both]" >&2
  exit 2
fi
first=$1 second=$2
shift 2

trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
trap 'exit 143' INT TERM

vllm serve "$first" --port "${PORT_A:-8001}" --gpu-memory-utilization 0.4 "$@" --worker-cls pyvattn.vllm.Worker \
  --scheduler-cls pyvattn.vllm.Scheduler --additional-config '{"pyvattn": {"memory": "shared", "name": "a"}}' &
vllm serve "$second" --port "${PORT_B:-8002}" --gpu-memory-utilization 0.4 "$@" --worker-cls pyvattn.vllm.Worker \
  --scheduler-cls pyvattn.vllm.Scheduler --additional-config '{"pyvattn": {"memory": "shared", "name": "b"}}' &
wait -n
