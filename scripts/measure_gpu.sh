#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run tests/gpu and the benches that need a GPU on this machine, and keep the results.
#
#   scripts/measure_gpu.sh STEP... [FOLDER]
#
# STEP is tests, drivers, attention, overlap, offload, transformers, profile, baselines or all, or
# transfer, which wants two GPUs, or of vllm's: vllm-prompts, vllm-prompts-fp8, vllm-mask,
# vllm-short, vllm-decode, vllm-trace, vllm-rates, vllm-offload, against-vllm. FOLDER is where the
# JSON goes, docs/results/ and the GPU's name by default. pyvattn must be installed for PYTHON
# (python3), with torch; kernels that cannot be imported are left out. vllm-trace and vllm-rates
# want the file of arXiv lengths in TRACE, or make requests up.
# Every part runs, whatever came before, each in a process of its own; the summary says
# what failed.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}

usage() { sed -n '3,14s/^# \{0,1\}//p' "$0" >&2; exit 2; }
steps=()
folder=
for argument in "$@"; do
  case $argument in
    tests | drivers | attention | overlap | offload | transformers | profile | baselines | all)
      steps+=("$argument")
      ;;
    transfer | vllm-prompts | vllm-prompts-fp8 | vllm-mask | vllm-short | vllm-decode)
      steps+=("$argument")
      ;;
    vllm-trace | vllm-rates | vllm-offload | against-vllm)
      steps+=("$argument")
      ;;
    -*) usage ;;
    *) [ -z "$folder" ] || usage; folder=$argument ;;
  esac
done
[ ${#steps[@]} -gt 0 ] || usage
if [ -z "$folder" ]; then
  gpu=$(sed -n 's/^Model:[[:space:]]*NVIDIA //p' /proc/driver/nvidia/gpus/*/information 2>/dev/null | head -n 1)
  [ -n "$gpu" ] || { echo "no NVIDIA GPU here (/proc/driver/nvidia/gpus)" >&2; exit 3; }
  folder=docs/results/$(tr 'A-Z ' 'a-z-' <<<"$gpu")
fi
mkdir -p "$folder"

summary=()
failures=0
# part NAME SECONDS COMMAND...
part() {
  local name=$1 limit=$2 from=$SECONDS code=0
  shift 2
  printf '\n######## %s: %s\n' "$name" "$*"
  timeout --kill-after=20 "$limit" "$@" </dev/null || code=$?
  [ "$code" -eq 0 ] || failures=$((failures + 1))
  summary+=("$(printf '%-28s exit %3d %5d s' "$name" "$code" $((SECONDS - from)))")
}
bench() {
  local name=$1 limit=$2
  shift 2
  part "$name" "$limit" "$PYTHON" -m pyvattn bench "$@" --out "$folder/$name.json"
}

tests() {
  part tests 800 "$PYTHON" scripts/run_gpu_tests.py
}
drivers() {
  part info 60 "$PYTHON" -m pyvattn info --probe
  bench api-cumem 60 api --driver cumem
  bench api-stock-uvm 60 api --driver stock-uvm --page-size 64K
  bench bandwidth 120 bandwidth --driver stock-uvm --page-size 64K --against cumem
  bench bandwidth-2m 120 bandwidth --driver stock-uvm --page-size 2M --against cumem
  part calibrate 120 "$PYTHON" -m pyvattn calibrate --out "$folder/calibration.json"
}
attention() {
  local group
  bench attention-cumem 400 attention --driver cumem --layout layer --seconds 2
  bench attention-64k 400 attention --driver stock-uvm --page-size 64K --layout layer --seconds 2
  bench attention-token-2m 400 attention --driver stock-uvm --page-size 2M --layout token \
    --seconds 2
  for group in 16 8; do
    bench "attention-token-$group" 400 attention --driver cumem --layout token --seconds 2 \
      --layers-per-arena "$group"
  done
  for group in 1 2; do
    bench "attention-64k-token-$group" 400 attention --driver stock-uvm --page-size 64K \
      --layout token --seconds 2 --layers-per-arena "$group"
  done
  bench float8 120 float8
  bench rings-cumem 200 rings --driver cumem --seconds 3
  bench sharing-stock-uvm 200 sharing --device cuda:0 --driver stock-uvm --page-size 64K
}
overlap() {
  local batch
  for batch in 32 128 256; do
    bench "overlap-$batch" 120 overlap --driver cumem --batch "$batch" --steps 300
  done
  bench overlap-256-64k 120 overlap --driver stock-uvm --page-size 64K --batch 256 --steps 300
}
# A request to pinned memory and back: 64 copies where K and V of each layer lie apart, 2 where 16
# layers lie side by side.
offload() {
  bench offload-layer 90 offload --driver cumem --layout layer
  bench offload-token 90 offload --driver cumem
  bench offload-64k 90 offload --driver stock-uvm --page-size 64K --layout layer
}
# A request from one GPU's cache to another's, straight and by way of torch's memory.
transfer() {
  bench transfer-layer 90 transfer --driver cumem --layout layer
  bench transfer-layer-peers 90 transfer --driver cumem --layout layer --peer-access
  bench transfer-token 90 transfer --driver cumem
  bench transfer-token-peers 90 transfer --driver cumem --peer-access
}
# serve NAME SECONDS OPTIONS...: no round is begun that would end later, so at least two run.
serve() {
  local name=$1 seconds=$2
  shift 2
  bench "transformers-$name" $((seconds + 60)) transformers --seconds "$seconds" "$@"
}
# Continuous batching over what transformers chooses by itself here: 8 minutes on an H200.
transformers() {
  serve 32x4096 80 --requests 32 --prompt-tokens 4096 --new-tokens 128
  serve 16x16384 115 --requests 16 --prompt-tokens 16384 --new-tokens 128
  serve 192x1024 115 --requests 192 --prompt-tokens 1024 --new-tokens 256
  serve arrivals 130 --requests 96 --prompt-tokens 1024 --new-tokens 256 --rate 10
}
# Where a step's time goes, and requests without a tail guard, and with float8 K and V.
profile() {
  serve profile-32x4096 120 --requests 32 --prompt-tokens 4096 --new-tokens 32 --profile
  serve profile-32x4096-compiled 120 --requests 32 --prompt-tokens 4096 --new-tokens 32 --profile \
    --ours-compile
  serve profile-32x4096-fused 120 --requests 32 --prompt-tokens 4096 --new-tokens 32 --profile \
    --ours-compile --ours-fuse
  serve steps 240 --requests 32 --prompt-tokens 512 --new-tokens 128 --steps 10000 --ours-compile \
    --ours-fuse
  serve profile-32x4096-fp8 120 --requests 32 --prompt-tokens 4096 --new-tokens 32 --profile \
    --kv-dtype float8_e4m3fn --ours-compile --ours-fuse
  serve 32x4096-table 80 --requests 32 --prompt-tokens 4096 --new-tokens 128 \
    --guard-for flash-attn-3-paged
  serve 32x4096-fp8 80 --requests 32 --prompt-tokens 4096 --new-tokens 128 \
    --kv-dtype float8_e4m3fn
}
# The first of these over other settings of transformers: its SDPA, and its decode step compiled.
baselines() {
  serve compiled 120 --requests 32 --prompt-tokens 4096 --new-tokens 128 --compile-level 1
  serve both-compiled 120 --requests 32 --prompt-tokens 4096 --new-tokens 128 --compile-level 1 \
    --ours-compile
  serve both-fused 120 --requests 32 --prompt-tokens 4096 --new-tokens 128 --compile-level 1 \
    --ours-compile --ours-fuse
  serve both-fused-192x1024 150 --requests 192 --prompt-tokens 1024 --new-tokens 256 \
    --compile-level 1 --ours-compile --ours-fuse
  serve sdpa 200 --requests 32 --prompt-tokens 4096 --new-tokens 128 --against sdpa --rounds 1
}
# Our engine beside vLLM's, which serve the same requests by turns.
against-vllm() {
  serve against-vllm 240 --requests 32 --prompt-tokens 4096 --new-tokens 128 --against vllm \
    --ours-compile --ours-fuse
}
# vLLM over rows, and stock beside it, whose JSON is vllm-NAME. Each step is below ten minutes.
FP8=(--kv-dtype fp8 --quantization fp8)
over_rows() {
  local name=$1 seconds=$2
  shift 2
  bench "vllm-$name" $((seconds + 180)) vllm --seconds "$seconds" "$@"
}
vllm-prompts() {
  over_rows prompts 350 --ours-backend CUSTOM --workload prefill --rounds 3
}
vllm-prompts-fp8() {
  over_rows prompts-fp8 350 --ours-backend CUSTOM --workload prefill --rounds 3 "${FP8[@]}" \
    --block-size 32
}
# A mask that no paged kernel has, with vLLM's default block size and with a larger one.
vllm-mask() {
  over_rows mask 170 --flex-mask --workload prefill --long-tokens 16384 --rounds 2
  over_rows mask-128 170 --flex-mask --workload prefill --long-tokens 16384 --rounds 2 \
    --stock-block-size 128
}
# Each as it comes from vLLM, with the order of blocks, and with late binding.
vllm-short() {
  over_rows short 110 --workload short --rounds 2
  over_rows short-custom 110 --ours-backend CUSTOM --workload short --rounds 2
  over_rows short-table 110 --ours-backend CUSTOM --ours-kernel flash-attn-3-paged \
    --workload short --rounds 2
  over_rows short-late 110 --ours-backend CUSTOM --workload short --rounds 2 --late-binding
}
# 32 requests of 32k are 128 GiB in bf16 and two engines are alive: so with some of the layers.
vllm-decode() {
  over_rows decode 230 --ours-backend CUSTOM --workload decode --rounds 3 --layers 8 --block-size 64
  over_rows decode-fp8 230 --ours-backend CUSTOM --workload decode --rounds 3 --layers 8 \
    "${FP8[@]}" --block-size 128
}
on_trace() {
  over_rows "$@" --ours-backend CUSTOM --workload trace --trace-requests 200 --late-binding \
    ${TRACE:+--trace "$TRACE"}
}
vllm-trace() {
  on_trace trace 300 --rounds 2
}
# The paper's second load: the highest rate that both sustain is that with "keeps up" twice.
vllm-rates() {
  local rate
  for rate in 4 5 6 7; do
    on_trace "trace-$rate" 230 --rounds 1 --rate "$rate"
  done
}
# A request to pinned memory and back beside the transfers of vLLM's own CPU offload.
vllm-offload() {
  bench vllm-offload 200 offload --driver cumem --layout layer --against vllm
}

for step in "${steps[@]}"; do
  if [ "$step" = all ]; then
    tests; drivers; attention; overlap; offload; transformers; profile; baselines
  else
    "$step"
  fi
done
printf '\n######## summary: results in %s\n' "$folder"
printf '  %s\n' "${summary[@]}"
exit $((failures > 0))
