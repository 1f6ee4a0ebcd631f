# SPDX-License-Identifier: Apache-2.0
"""Check that what the plug-in relies on is in a release of vLLM, without importing it.

    check_vllm_names.py FOLDER_OR_WHEEL...

A folder is one that has ``vllm/`` in it. None of these names is a public interface: this fails
on the day that vLLM moves one.
"""

from __future__ import annotations

import ast
import sys
import zipfile
from pathlib import Path

# File, class ("" for the module), function, and parameters that are passed or taken, in order.
RELIED_ON = [
    ("v1/worker/gpu_worker.py", "Worker", "init_device", ()),
    ("v1/worker/gpu_worker.py", "Worker", "shutdown", ()),
    ("v1/worker/cpu_worker.py", "CPUWorker", "init_device", ()),
    ("v1/worker/utils.py", "", "bind_kv_cache", (
        "kv_caches", "forward_context", "runner_kv_caches", "num_attn_module")),
    # Runner V1 and its table.
    ("v1/worker/gpu_model_runner.py", "GPUModelRunner", "initialize_kv_cache_tensors", (
        "kv_cache_config", "kernel_block_sizes")),
    ("v1/worker/gpu_input_batch.py", "InputBatch", "add_request", ("request",)),
    ("v1/worker/block_table.py", "BlockTable", "add_row", ("block_ids", "row_idx")),
    ("v1/worker/block_table.py", "BlockTable", "append_row", ("block_ids", "row_idx")),
    ("v1/worker/block_table.py", "BlockTable", "clear_row", ("row_idx",)),
    ("v1/worker/block_table.py", "BlockTable", "move_row", ("src", "tgt")),
    ("v1/worker/block_table.py", "BlockTable", "swap_row", ("src", "tgt")),
    ("v1/worker/gpu_model_runner.py", "GPUModelRunner", "_model_forward", ()),
    ("v1/worker/gpu_model_runner.py", "GPUModelRunner", "_dummy_run", ()),
    # Runner V2 and its table.
    ("v1/worker/gpu/model_runner.py", "GPUModelRunner", "initialize_kv_cache", (
        "kv_cache_config",)),
    ("v1/worker/gpu/model_runner.py", "GPUModelRunner", "_remove_request", ("req_id",)),
    ("v1/worker/gpu/model_runner.py", "GPUModelRunner", "add_requests", ("scheduler_output",)),
    ("v1/worker/gpu/attn_utils.py", "", "init_kv_cache", ()),
    ("v1/worker/gpu/block_table.py", "BlockTables", "append_block_ids", (
        "req_index", "new_block_ids", "overwrite")),
    ("v1/worker/gpu/kv_connector.py", "KVConnector", "pre_forward", ("scheduler_output",)),
    ("v1/worker/gpu/model_runner.py", "GPUModelRunner", "finish_requests", (
        "scheduler_output",)),
    # KV connectors.
    ("distributed/kv_transfer/kv_connector/factory.py", "KVConnectorFactory",
        "register_connector", ("name", "module_path", "class_name")),
    *(("distributed/kv_transfer/kv_connector/v1/base.py", "KVConnectorBase_V1", name, taken)
      for name, taken in (
        ("__init__", ("vllm_config", "role", "kv_cache_config")),
        ("register_kv_caches", ("kv_caches",)),
        ("handle_preemptions", ("kv_connector_metadata",)),
        ("start_load_kv", ("forward_context",)),
        ("_get_connector_metadata", ()),
        ("get_block_ids_with_load_errors", ()),
        ("build_connector_worker_meta", ()),
        ("get_num_new_matched_tokens", ("request", "num_computed_tokens")),
        ("update_state_after_alloc", ("request", "blocks", "num_external_tokens")),
        ("build_connector_meta", ("scheduler_output",)),
        ("update_connector_output", ("connector_output",)),
        ("request_finished", ("request", "block_ids")),
        ("reset_cache", ()),
        ("shutdown", ()))),
    # Schedulers.
    ("v1/core/sched/scheduler.py", "Scheduler", "__init__", ()),
    ("v1/core/sched/async_scheduler.py", "AsyncScheduler", "", ()),
    # Sharing: what changes blocks, and the queue that they are held out of.
    ("v1/core/sched/scheduler.py", "Scheduler", "schedule", ()),
    ("v1/core/sched/scheduler.py", "Scheduler", "update_from_output", ()),
    ("v1/core/sched/scheduler.py", "Scheduler", "finish_requests", ()),
    ("v1/core/sched/scheduler.py", "Scheduler", "reset_prefix_cache", ()),
    ("v1/core/sched/scheduler.py", "Scheduler", "has_requests", ()),
    ("v1/core/sched/scheduler.py", "Scheduler", "shutdown", ()),
    ("v1/core/sched/scheduler.py", "Scheduler", "_preempt_request", ("request", "timestamp")),
    ("v1/core/block_pool.py", "BlockPool", "_maybe_evict_cached_block", ("block",)),
    ("v1/core/block_pool.py", "BlockPool", "get_num_free_blocks", ()),
    ("v1/core/kv_cache_utils.py", "FreeKVCacheBlockQueue", "popleft_n", ("n",)),
    ("v1/core/kv_cache_utils.py", "FreeKVCacheBlockQueue", "append_n", ("blocks",)),
    ("v1/core/kv_cache_utils.py", "FreeKVCacheBlockQueue", "remove", ("block",)),
    ("v1/core/kv_cache_utils.py", "FreeKVCacheBlockQueue", "get_all_free_blocks", ()),
    ("v1/worker/gpu_worker.py", "Worker", "determine_available_memory", ()),
    ("v1/worker/cpu_worker.py", "CPUWorker", "determine_available_memory", ()),
    ("v1/kv_cache_interface.py", "FullAttentionSpec", "", ()),
    ("v1/kv_cache_interface.py", "SlidingWindowSpec", "", ()),
    # Attention backends.
    ("v1/attention/backends/registry.py", "", "register_backend", ("backend", "class_path")),
    ("v1/attention/backends/registry.py", "AttentionBackendEnum", "clear_override", ()),
    ("v1/attention/backend.py", "AttentionBackend", "get_name", ()),
    ("v1/attention/backend.py", "AttentionMetadataBuilder", "__init__", (
        "kv_cache_spec", "layer_names", "vllm_config", "device")),
    ("v1/attention/backend.py", "AttentionImpl", "", ()),
    ("v1/worker/gpu_worker.py", "Worker", "load_model", ()),
    ("v1/worker/gpu_worker.py", "Worker", "compile_or_warm_up_model", ()),
    ("config/scheduler.py", "SchedulerConfig", "get_scheduler_cls", ()),
    ("v1/attention/backends/fa_utils.py", "", "get_flash_attn_version", ()),
    ("v1/attention/backends/flash_attn.py", "FlashAttentionBackend", "", ()),
    ("v1/attention/backends/flash_attn.py", "FlashAttentionImpl", "do_kv_cache_update", (
        "layer", "key", "value", "kv_cache", "slot_mapping")),
    ("v1/attention/backends/flash_attn.py", "FlashAttentionMetadataBuilder", "build", (
        "common_prefix_len", "common_attn_metadata", "fast_build")),
    ("_custom_ops.py", "", "reshape_and_cache_flash", (
        "key", "value", "key_cache", "value_cache", "slot_mapping", "kv_cache_dtype", "k_scale",
        "v_scale")),
    # Its KV cache manager, whose free queue is put in order.
    ("v1/core/kv_cache_manager.py", "KVCacheManager", "allocate_slots", (
        "request", "num_new_tokens", "num_new_computed_tokens", "new_computed_blocks",
        "num_lookahead_tokens")),
    ("v1/core/kv_cache_manager.py", "KVCacheManager", "free", ("request",)),
    ("v1/core/kv_cache_manager.py", "KVCacheManager", "pop_blocks_for_free", ("request",)),
    ("v1/core/kv_cache_manager.py", "KVCacheManager", "get_blocks", ("request_id",)),
    ("v1/core/kv_cache_manager.py", "KVCacheBlocks", "get_block_ids", ()),
    ("v1/core/kv_cache_utils.py", "FreeKVCacheBlockQueue", "remove", ("block",)),
    ("v1/core/kv_cache_utils.py", "FreeKVCacheBlockQueue", "prepend_n", ("blocks",)),
    ("v1/core/block_pool.py", "BlockPool", "get_num_free_blocks", ()),
    # Its CPU offload, which a bench measures.
    ("v1/kv_offload/cpu/gpu_worker.py", "CPUOffloadingWorker", "__init__", (
        "kv_caches", "blocks_per_chunk")),
    ("v1/kv_offload/cpu/gpu_worker.py", "CPUOffloadingWorker", "submit_store", (
        "job_id", "src_spec", "dst_spec")),
    ("v1/kv_offload/cpu/gpu_worker.py", "CPUOffloadingWorker", "submit_load", (
        "job_id", "src_spec", "dst_spec")),
    ("v1/kv_offload/cpu/gpu_worker.py", "CPUOffloadingWorker", "wait", ("job_ids",)),
    ("v1/kv_offload/cpu/gpu_worker.py", "CPUOffloadingWorker", "get_finished", ()),
    ("v1/kv_offload/cpu/gpu_worker.py", "CPUOffloadingWorker", "shutdown", ()),
    ("v1/kv_offload/cpu/common.py", "CPULoadStoreSpec", "", ()),
    ("v1/kv_offload/base.py", "BlockIDsLoadStoreSpec", "__init__", ("block_ids",)),
    ("v1/kv_offload/base.py", "GPULoadStoreSpec", "__init__", (
        "block_ids", "group_sizes", "block_indices")),
    ("v1/kv_offload/base.py", "CanonicalKVCaches", "", ()),
    ("v1/kv_offload/base.py", "CanonicalKVCacheRef", "", ()),
    ("v1/kv_offload/base.py", "CanonicalKVCacheTensor", "", ()),
]  # fmt: skip

# Attributes that are read or set, as they stand in the text of a file.
MENTIONED = [
    ("distributed/kv_transfer/__init__.py", "get_kv_transfer_group,"),
    ("distributed/kv_transfer/__init__.py", "has_kv_transfer_group,"),
    ("distributed/kv_transfer/kv_connector/v1/base.py", "class KVConnectorWorkerMetadata("),
    ("v1/core/sched/scheduler.py", "kv_transfer_config.kv_load_failure_policy"),
    ("v1/core/sched/scheduler.py", "kv_transfer_config.is_kv_consumer"),
    ("v1/core/sched/output.py", "preempted_req_ids: "),
    ("v1/core/sched/output.py", "num_computed_tokens: list[int]"),
    ("v1/outputs.py", "kv_connector_worker_meta: "),
    ("v1/worker/gpu_model_runner.py", ".handle_preemptions(kv_connector_metadata)"),
    ("v1/worker/gpu_worker.py", "self.use_v2_model_runner"),
    ("v1/worker/gpu/model_runner.py", "self.kernel_block_sizes"),
    ("v1/worker/gpu/model_runner.py", "self.attn_groups"),
    ("v1/worker/gpu/model_runner.py", "self.kv_cache_config"),
    ("v1/worker/gpu/model_runner.py", "self.compilation_config.static_forward_context"),
    ("v1/worker/gpu/model_runner.py", "self.req_states.req_id_to_index"),
    ("v1/worker/gpu/model_runner.py", "in scheduler_output.scheduled_new_reqs"),
    ("v1/worker/gpu/model_runner.py", "init_kv_cache("),
    ("v1/worker/gpu/model_runner.py", "self.kv_connector = "),
    ("v1/worker/gpu/model_runner.py", "self.kv_connector.pre_forward("),
    ("v1/worker/gpu/model_runner.py", "get_kv_connector(self.vllm_config, kv_caches_dict)"),
    ("v1/worker/gpu_model_runner.py", ".register_kv_caches(kv_caches)"),
    ("v1/worker/gpu_model_runner.py", "self.attn_groups"),
    ("v1/worker/gpu_model_runner.py", "model_output = self._model_forward("),
    ("v1/worker/gpu_model_runner.py", "self.input_batch.block_table"),
    ("v1/worker/gpu_model_runner.py", "self.input_batch.add_request("),
    ("v1/worker/gpu_input_batch.py", "request.num_computed_tokens"),
    ("v1/worker/block_table.py", "self.num_blocks_per_row"),
    ("v1/worker/block_table.py", "self.block_tables = "),
    ("v1/core/sched/scheduler.py", "self.num_lookahead_tokens"),
    ("v1/core/sched/scheduler.py", "self.kv_cache_manager"),
    ("v1/attention/backend.py", "query_start_loc_cpu: "),
    ("v1/attention/backend.py", "block_table_tensor: "),
    ("v1/attention/backend.py", "slot_mapping: "),
    ("v1/attention/backend.py", "forward_includes_kv_cache_update"),
    ("v1/attention/backends/flash_attn.py", "page_size=self.block_size"),
    ("v1/attention/backends/flash_attn.py", "self.max_cudagraph_size = "),
    ("v1/attention/backends/flash_attn.py", "self.vllm_flash_attn_version = "),
    ("v1/attention/backends/flash_attn.py", "supports_quant_query_input"),
    ("vllm_flash_attn/flash_attn_interface.py", "torch.ops._vllm_fa3_C.fwd("),
    ("v1/core/kv_cache_manager.py", "self.block_pool"),
    ("v1/core/kv_cache_utils.py", "self.fake_free_list_head"),
    ("v1/kv_offload/base.py", "transfer_size: int"),
]


class Release:
    """The Python files of one release: of a folder, or of a wheel."""

    def __init__(self, where: Path) -> None:
        self._where = where
        self._wheel = zipfile.ZipFile(where) if where.is_file() else None

    def text(self, name: str) -> str | None:
        """Return a file below ``vllm/``, or None where there is none."""
        if self._wheel is None:
            path = self._where / "vllm" / name
            return path.read_text(encoding="utf-8") if path.exists() else None
        try:
            return self._wheel.read(f"vllm/{name}").decode()
        except KeyError:
            return None


def missing(release: Release) -> list[str]:
    """Return a line for each name that is not there, or has other parameters."""
    found = [_missing_name(release, *entry) for entry in RELIED_ON]
    for name, mention in MENTIONED:
        text = release.text(name)
        found.append(f"{name}: no file" if text is None else "")
        if text is not None and mention not in text:
            found.append(f"{name}: does not mention {mention}")
    return [line for line in found if line]


def _missing_name(
    release: Release, name: str, class_: str, function: str, parameters: tuple[str, ...]
) -> str:
    text = release.text(name)
    if text is None:
        return f"{name}: no file"
    body = ast.parse(text).body
    if class_:
        classes = [node for node in body if isinstance(node, ast.ClassDef) and node.name == class_]
        if not classes:
            return f"{name}: no class {class_}"
        body = classes[0].body
    if not function:
        return ""
    functions = [
        node for node in body if isinstance(node, ast.FunctionDef) and node.name == function
    ]
    if not functions:
        return f"{name}: no {class_}.{function}".replace(" .", " ")
    taken = [argument.arg for argument in functions[-1].args.args]
    taken = taken[1:] if class_ else taken
    if tuple(taken[: len(parameters)]) != parameters:
        return f"{name}: {function} takes {', '.join(taken)}, not first {', '.join(parameters)}"
    return ""


def main(places: list[str]) -> int:
    """Check each release; return 1 where one lacks something."""
    lines = [f"{place}: {line}" for place in places for line in missing(Release(Path(place)))]
    print("\n".join(lines) or f"names: {len(RELIED_ON) + len(MENTIONED)} are there")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
