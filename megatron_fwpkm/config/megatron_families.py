"""Families of Megatron-LM's flags that mean nothing here, and why; single flags are in `megatron_flags`."""

from __future__ import annotations

_PROFILE = (
    "of profiling only --profile, --profile-step-start, --profile-step-end, --profile-ranks, --use-pytorch-profiler, "
    "--record-memory-history and --memory-snapshot-path exist; remove it"
)
_LOG = "all metrics are always logged to metrics.jsonl (see also --tensorboard-dir, --wandb-project); remove it"
_FSDP = (
    "FSDP is not supported; remove it, or use --use-distributed-optimizer to shard the optimizer states"
)
_OVERLAP = "only the gradient reduction can be overlapped, with --overlap-grad-reduce; remove it"
_CHECKPOINT = "checkpoints have a single format, which can be loaded with any parallel layout; remove it"
_PAIR = "BERT and retrieval models are not supported; remove it"

FAMILIES: dict[str, str] = {
    "mixture-of-experts layers are not supported; remove it": """
        moe-* expert-* overlap-moe-expert-parallel-comm overlap-dispatch-backward-with-experts-wgrad ep-overlap-*
        use-grouped-gemm-* num-experts high-priority-a2a-comm-stream save-tokens-per-expert-interval gtp-*
        tensor-parallel-num-weight-shards""",
    "multi-latent attention is not supported; remove it": """
        multi-latent-attention q-lora-rank kv-lora-rank qk-head-dim qk-pos-emb-head-dim v-head-dim mscale
        mscale-all-dim cache-mla-latents mla-*""",
    "only causal attention, full or sliding (--layer-pattern), is supported; remove it": """
        experimental-attention-variant dsa-* softmax-type flash-attention-version
        flash-decode enable-mhc-connections mhc-* use-kitchen-attention kitchen-*""",
    "state-space layers are not supported; remove it, or add memories with --fwpkm-layer-numbers": """
        mamba-* gdp-* disable-mamba-mem-eff-path""",
    "multi-token prediction is not supported; remove it": "mtp-*",
    "of FP8 only --fp8-format, --fp8-recipe and --fp8-margin are supported, for all layers alike; remove it": """
        fp8-amax-compute-algo fp8-amax-history-len fp8-interval fp8-output-proj fp8-param-gather fp8-quantizer-factory
        fp8-wgrad fp4-* first-last-layers-bf16 num-layers-at-start-in-bf16 num-layers-at-end-in-bf16
        keep-fp8-transpose-cache reuse-grad-buf-for-mxfp8-param-ag te-precision-config-file""",
    "fp16 and loss scaling are not supported; use --bf16 instead": """
        fp16-* loss-scale initial-loss-scale min-loss-scale loss-scale-window hysteresis
        no-log-loss-scale-to-tensorboard log-loss-scale-to-tensorboard""",
    "pretrain.py only trains; remove it, and use tools/generate_text.py to generate text": """
        inference-* max-tokens-to-oom use-legacy-static-engine decode-only-cuda-graphs enable-chunked-prefill
        num-speculative-tokens nccl-all-reduce-for-prefill mlp-chunks-for-prefill batch-invariant-*
        use-same-sampling-seed-across-dp-ranks symmetric-ar-type""",
    "reinforcement learning is not supported; remove it": """
        rl-* grpo-* langrl-env-config perform-rl-step refit-method""",
    "supervised fine-tuning on dialogues is not supported; remove it": "sft sft-* chat-template",
    "vision models are not supported; remove it": """
        vision-* swin-backbone-type num-classes img-h img-w num-channels patch-dim classes-fraction
        data-per-class-fraction no-data-sharding head-lr-mult mask-type mask-factor iter-per-epoch dino-*
        mrope-section""",
    _PAIR: """
        biencoder-* ict-* bert-* titles-data-path query-in-block-prob use-one-sent-docs evidence-data-path
        retriever-* block-data-path embedding-path indexer-* output-bert-embeddings mask-prob short-seq-prob
        vocab-extra-ids sample-rate encoder-num-layers decoder-seq-length""",
    "fill-in-the-middle training is not supported; remove it": "fim-*",
    "knowledge distillation is not supported; remove it": "logits-*",
    "AdamW is the only optimizer; remove it": "muon-* lion-* sgd-momentum use-precision-aware-optimizer",
    "the optimizer always keeps float32 weights, gradients and moments on the device; remove it": """
        main-grads-dtype main-params-dtype exp-avg-dtype exp-avg-sq-dtype optimizer-* overlap-cpu-optimizer-d2h-h2d
        use-torch-optimizer-for-cpu-offload no-pin-cpu-grads no-pin-cpu-params""",
    "layers can differ only in token mixer (--layer-pattern) and memory (--fwpkm-layer-numbers); remove it": """
        heterogeneous-* spec""",
    "CUDA graphs are not supported; remove it": "cuda-graph-* enable-cuda-graph external-cuda-graph",
    "Transformer Engine is used with its own defaults; remove it": """
        te-rng-tracker use-te-activation-func use-transformer-engine-op-fuser tp-comm-*""",
    _OVERLAP: """
        no-overlap-p2p-communication overlap-p2p-* defer-embedding-wgrad-compute wgrad-deferral-limit
        delay-wgrad-compute overlap-param-gather overlap-param-gather-with-optimizer-step align-param-gather
        align-grad-reduce use-ring-exchange-p2p microbatch-group-size-per-virtual-pipeline-stage""",
    _FSDP: """
        use-megatron-fsdp use-torch-fsdp2 megatron-fsdp-* fsdp-* torch-fsdp2-* data-parallel-sharding-strategy
        outer-dp-sharding-strategy enable-full-sharding-in-hsdp suggested-communication-unit-size
        num-distributed-optimizer-instances gradient-reduce-div-fusion use-layer-wise-param-layout
        strict-fsdp-dtensor-load create-all-gather-group""",
    "gradient buckets always have Megatron-Core's default size; remove it": "ddp-*",
    "NCCL is configured by its environment variables (NCCL_DEBUG=INFO logs what it does); remove it": """
        nccl-communicator-config-path use-nccl-ub disable-symmetric-registration use-sharp sharp-enabled-group
        high-priority-stream-groups pipeline-model-parallel-comm-backend""",
    "use TORCH_FR_BUFFER_SIZE and the other environment variables of PyTorch instead": "flight-recorder-*",
    "ranks and their order follow from torchrun and the parallel sizes; remove it": """
        local-rank lazy-mpu-init use-tp-pp-dp-mapping disable-gloo-process-groups fake-process-group""",
    "--distributed-timeout-minutes applies to the whole run; remove it": "distributed-timeout-seconds-after-init",
    "context parallelism is configured by --context-parallel-size alone; remove it": """
        cp-comm-type hierarchical-context-parallel-sizes hybrid-context-parallel max-seqlen-per-dp-cp-rank""",
    "all pipeline stages have the same number of layers; remove it": """
        decoder-first-pipeline-num-layers decoder-last-pipeline-num-layers pipeline-model-parallel-layout
        account-for-embedding-in-pipeline-split account-for-loss-in-pipeline-split""",
    _CHECKPOINT: """
        auto-detect-ckpt-format ckpt-convert-* ckpt-fully-parallel-* ckpt-assume-constant-structure
        ckpt-pg-tensors-cache-* ckpt-load-validate-sharding-integrity ckpt-drop-redundant-extra-state dist-ckpt-*
        distrib-optim-fully-reshardable-mem-efficient async-strategy async-ckpt-* use-persistent-ckpt-worker
        load-main-params-from-ckpt""",
    "every checkpoint in --save is complete and on disk, and the newest --keep-last are kept; remove it": """
        non-persistent-* persistent-save-interval replication replication-jump replication-factor""",
    "an interrupted run is continued by starting it again with --resume; remove it": """
        adlr-autoresume* inprocess-* enable-ft-package calc-ft-timeouts ft-num-warmup-iters""",
    "a loss or gradient that is not finite is always noticed; use --on-nan to choose what happens then": """
        check-for-nan-in-loss-and-grad check-for-large-grads""",
    "use --loss-spike-factor instead, which goes back to a checkpoint before the spike": "check-for-spiky-loss",
    "no step is run again on the same data; use --on-nan rewind, which continues without it": """
        rerun-mode result-rejected-tracker-filename""",
    "data is left out by --on-nan and --loss-spike-factor alone; remove it": "iterations-to-skip",
    "--log-straggler compares all ranks at every --log-interval (--straggler-threshold); remove it": """
        disable-straggler-on-startup straggler-ctrlr-port straggler-minmax-count""",
    "fault injection is not supported; remove it": "error-injection-* fault-injector-*",
    _PROFILE: """
        pytorch-profiler-* record-shapes nvtx-ranges run-workload-inspector-server gpu-sniff-test-interval""",
    _LOG: """
        log-params-norm log-progress log-timers-to-tensorboard log-validation-ppl-to-tensorboard
        log-memory-to-tensorboard log-memory-interval log-device-memory-used log-num-zeros-in-grad
        log-max-attention-logit log-world-size-to-tensorboard log-energy timing-log-*
        barrier-with-level-1-timing logging-level config-logger-dir
        dump-param-to-param-group-map save-params-interval save-activations-interval
        save-wgrads-interval save-dgrads-interval""",
    "metrics are logged to metrics.jsonl, TensorBoard and Weights & Biases only; remove it": """
        one-logger* no-one-logger otel-* app-tag-run-name app-tag-run-version""",
    "activations are offloaded by whole layers, with --cpu-offloading-num-layers; remove it": """
        cpu-offloading-retain-pinned-cpu-buffers fine-grained-* offload-modules min-offloaded-tensor-size
        delay-offload-until-cuda-graph delta-offload-bytes-across-pp-ranks activation-offload-fraction""",
    "files are read from the file system, which may be mounted object storage; remove it": """
        enable-msc disable-msc object-storage-cache-path""",
    "position embeddings are always rotary (--rotary-percent, --rotary-base); remove it": """
        position-embedding-type position-embedding no-position-embedding relative-attention-*
        yarn-correction-range-round-to-int no-rope-freq
        rotary-interleaved rotary-seq-len-interpolation-factor""",
    "muP is not supported; remove it, and scale --init-method-std and --lr by hand": "use-mup mup-*",
    "the MLP is always SwiGLU; remove it": """
        openai-gelu squared-relu quick-geglu glu-linear-offset activation-func-clamp-value mlp-chunks-for-training
        use-fused-weighted-squared-relu""",
    "every norm is a pre-norm RMSNorm (--qk-layernorm adds one to queries and keys); remove it": """
        apply-layernorm-1p normalization fused-residual-rmsnorm apply-residual-connection-post-layernorm qk-l2-norm
        qk-clip qk-clip-* fp32-residual-connection persist-layer-norm""",
}
"""What to do, a sentence without its full stop -> names, `*` at the end for all that begin so."""
