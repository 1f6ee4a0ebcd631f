#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Serve two models with vLLM on one GPU, sharing memory for KV:
#
#     PYVATTN_SHARED_BUDGET=60GiB scripts/serve_two.sh MODEL_A MODEL_B [OPTIONS OF BOTH]
#
# On ports PORT_A (8001) and PORT_B (8002), the second once the first has started. `pyvattn top`
# shows who has how much; docs/elastic.md. Where one ends, both do.
set -euo pipefail

if [ $# -lt 2 ]; then
  echo "usage: scripts/serve_two.sh MODEL_A MODEL_B [options of vllm serve for both]" >&2
  exit 2
fi
first=$1 second=$2
shift 2

trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
trap 'exit 143' INT TERM

serve() {  # MODEL PORT NAME OPTIONS...
  local model=$1 port=$2 name=$3
  shift 3
  exec vllm serve "$model" --port "$port" --gpu-memory-utilization 0.4 "$@" --worker-cls pyvattn.vllm.Worker \
    --scheduler-cls pyvattn.vllm.Scheduler --additional-config "{\"pyvattn\": {\"memory\": \"shared\", \"name\": \"$name\"}}"
}

serve "$first" "${PORT_A:-8001}" a "$@" &
# One after the other: vLLM measures the GPU's free memory while it starts, and ends where that of
# another engine changes meanwhile. It listens once it has started.
until (exec 3<>"/dev/tcp/127.0.0.1/${PORT_A:-8001}") 2>/dev/null; do
  kill -0 $! 2>/dev/null || { wait $!; exit; }
  sleep 1
done
serve "$second" "${PORT_B:-8002}" b "$@" &
wait -n
