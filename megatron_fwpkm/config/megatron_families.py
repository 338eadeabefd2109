"""Families of Megatron-LM's flags that mean nothing here, and why; single flags are in `megatron_flags`."""

from __future__ import annotations

_PROFILE = "remove it: profile with `py-spy` or `nsys profile` around the command, for nothing here is a profiler"
_LOG = "remove it: every record of metrics.jsonl holds what is logged here, also for --tensorboard-dir"
_FSDP = (
    "remove it: optimizer states are sharded by --use-distributed-optimizer; weights are never sharded over replicas"
)
_OVERLAP = "remove it: of communication only gradients are overlapped here, by --overlap-grad-reduce"
_CHECKPOINT = "remove it: checkpoints have one format here, which loads at any layout"
_PAIR = "remove it: this trains decoders on plain text, not retrieval or BERT models"

FAMILIES: dict[str, str] = {
    "there are no experts here: remove it": """
        moe-* expert-* overlap-moe-expert-parallel-comm overlap-dispatch-backward-with-experts-wgrad ep-overlap-*
        use-grouped-gemm-* num-experts high-priority-a2a-comm-stream save-tokens-per-expert-interval gtp-*
        tensor-parallel-num-weight-shards""",
    "attention has no latent projections here: remove it": """
        multi-latent-attention q-lora-rank kv-lora-rank qk-head-dim qk-pos-emb-head-dim v-head-dim mscale
        mscale-all-dim cache-mla-latents mla-* rotary-scaling-factor""",
    "attention is plain causal attention here, with --window-size for sliding windows: remove it": """
        experimental-attention-variant dsa-* linear-* attention-output-gate softmax-type flash-attention-version
        flash-decode window-attn-skip-freq enable-mhc-connections mhc-* use-kitchen-attention kitchen-*""",
    "there are no state-space layers here, a memory (--fwpkm-layer-numbers) is what carries long texts: remove it": """
        mamba-* is-hybrid-model hybrid-layer-pattern hybrid-override-pattern gdp-* disable-mamba-mem-eff-path""",
    "a token predicts the next one only: remove it": "mtp-*",
    "there is no 8- or 4-bit arithmetic here: remove it, and give --bf16": """
        fp8-* fp4-* first-last-layers-bf16 num-layers-at-start-in-bf16 num-layers-at-end-in-bf16
        keep-fp8-transpose-cache reuse-grad-buf-for-mxfp8-param-ag te-precision-config-file""",
    "fp16 and its loss scaling do not exist here: remove it, and give --bf16": """
        fp16-* loss-scale initial-loss-scale min-loss-scale loss-scale-window hysteresis
        no-log-loss-scale-to-tensorboard log-loss-scale-to-tensorboard""",
    "pretrain.py only trains: remove it; an export made by tools/convert_checkpoint.py generates text": """
        inference-* max-tokens-to-oom use-legacy-static-engine decode-only-cuda-graphs enable-chunked-prefill
        num-speculative-tokens nccl-all-reduce-for-prefill mlp-chunks-for-prefill batch-invariant-*
        use-same-sampling-seed-across-dp-ranks symmetric-ar-type""",
    "this is pretraining, not reinforcement learning: remove it": """
        rl-* grpo-* langrl-env-config perform-rl-step refit-method""",
    "this is pretraining on plain text, not fine-tuning on dialogues: remove it": "sft sft-* chat-template",
    "this trains language models, not vision models: remove it": """
        vision-* swin-backbone-type num-classes img-h img-w num-channels patch-dim classes-fraction
        data-per-class-fraction no-data-sharding head-lr-mult mask-type mask-factor iter-per-epoch dino-*
        mrope-section""",
    _PAIR: """
        biencoder-* ict-* bert-* titles-data-path query-in-block-prob use-one-sent-docs evidence-data-path
        retriever-* block-data-path embedding-path indexer-* output-bert-embeddings mask-prob short-seq-prob
        vocab-extra-ids sample-rate encoder-num-layers decoder-seq-length""",
    "texts are read from left to right here, without a middle to fill in: remove it": "fim-*",
    "nothing is distilled from another model's logits here: remove it": "logits-*",
    "the optimizer is AdamW here: remove it": "muon-* lion-* sgd-momentum use-precision-aware-optimizer",
    "the optimizer keeps float32 weights, gradients and moments on the device: remove it": """
        main-grads-dtype main-params-dtype exp-avg-dtype exp-avg-sq-dtype optimizer-* overlap-cpu-optimizer-d2h-h2d
        use-torch-optimizer-for-cpu-offload no-pin-cpu-grads no-pin-cpu-params""",
    "all layers are alike here, but for memories (--fwpkm-layer-numbers) and windows (--window-size): remove it": """
        heterogeneous-* spec""",
    "there are no CUDA graphs here: remove it": "cuda-graph-* enable-cuda-graph external-cuda-graph",
    "Transformer Engine is not used here: remove it": """
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
    "remove it: gradients go in Megatron-Core's own buckets": "ddp-*",
    "remove it: set NCCL's environment variables instead (NCCL_DEBUG=INFO shows what it does)": """
        nccl-communicator-config-path use-nccl-ub disable-symmetric-registration use-sharp sharp-enabled-group
        high-priority-stream-groups pipeline-model-parallel-comm-backend""",
    "remove it: set torch's variables instead (TORCH_FR_BUFFER_SIZE, TORCH_NCCL_DUMP_ON_TIMEOUT)": "flight-recorder-*",
    "remove it: ranks and their order follow from torchrun and the sizes of the layout": """
        local-rank lazy-mpu-init use-tp-pp-dp-mapping disable-gloo-process-groups fake-process-group""",
    "remove it: --distributed-timeout-minutes holds from start to end": "distributed-timeout-seconds-after-init",
    "context parallelism has one way here, --context-parallel-size: remove it": """
        cp-comm-type hierarchical-context-parallel-sizes hybrid-context-parallel max-seqlen-per-dp-cp-rank""",
    "every pipeline stage has the same number of layers here: remove it": """
        decoder-first-pipeline-num-layers decoder-last-pipeline-num-layers pipeline-model-parallel-layout
        account-for-embedding-in-pipeline-split account-for-loss-in-pipeline-split""",
    _CHECKPOINT: """
        auto-detect-ckpt-format ckpt-convert-* ckpt-fully-parallel-* ckpt-assume-constant-structure
        ckpt-pg-tensors-cache-* ckpt-load-validate-sharding-integrity ckpt-drop-redundant-extra-state dist-ckpt-*
        distrib-optim-fully-reshardable-mem-efficient async-strategy async-ckpt-* use-persistent-ckpt-worker
        load-main-params-from-ckpt""",
    "remove it: every checkpoint of --save is a whole one on disk, the --keep-last newest are kept": """
        non-persistent-* persistent-save-interval replication replication-jump replication-factor""",
    "remove it: an interrupted run is started again and goes on with --resume": """
        adlr-autoresume* inprocess-* enable-ft-package calc-ft-timeouts ft-num-warmup-iters""",
    "remove it: a loss or gradient that is not finite ends the run, and so does --divergence-factor": """
        check-for-nan-in-loss-and-grad check-for-large-grads check-for-spiky-loss rerun-mode
        result-rejected-tracker-filename iterations-to-skip""",
    "remove it: nothing breaks on purpose here": "error-injection-* fault-injector-*",
    _PROFILE: """
        profile profile-* use-pytorch-profiler pytorch-profiler-* record-memory-history memory-snapshot-path
        record-shapes nvtx-ranges run-workload-inspector-server gpu-sniff-test-interval""",
    _LOG: """
        log-params-norm log-progress log-throughput log-timers-to-tensorboard log-validation-ppl-to-tensorboard
        log-memory-to-tensorboard log-memory-interval log-device-memory-used log-num-zeros-in-grad
        log-max-attention-logit log-world-size-to-tensorboard log-energy log-straggler straggler-* timing-log-*
        barrier-with-level-1-timing tensorboard-log-interval tensorboard-queue-size logging-level config-logger-dir
        disable-straggler-on-startup dump-param-to-param-group-map save-params-interval save-activations-interval
        save-wgrads-interval save-dgrads-interval""",
    "figures go to metrics.jsonl, and to TensorBoard with --tensorboard-dir: remove it": """
        wandb-* one-logger* no-one-logger otel-* app-tag-run-name app-tag-run-version""",
    "remove it: of activations whole layers go to host memory, by --cpu-offloading-num-layers": """
        cpu-offloading-retain-pinned-cpu-buffers fine-grained-* offload-modules min-offloaded-tensor-size
        delay-offload-until-cuda-graph delta-offload-bytes-across-pp-ranks activation-offload-fraction""",
    "remove it: files are read from the file system (mounted object storage, too)": """
        enable-msc disable-msc object-storage-cache-path""",
    "remove it: positions are rotary here (--rotary-percent, --rotary-base)": """
        position-embedding-type position-embedding no-position-embedding relative-attention-* yarn-* no-rope-freq
        rotary-interleaved rotary-seq-len-interpolation-factor rope-type""",
    "remove it: a model's widths are scaled by hand, in --init-method-std and --lr": "use-mup mup-*",
    "remove it: MLPs are SwiGLU here": """
        openai-gelu squared-relu quick-geglu glu-linear-offset activation-func-clamp-value mlp-chunks-for-training
        use-fused-weighted-squared-relu""",
    "remove it: norms are RMSNorm before attention and MLP, and --qk-layernorm on queries and keys": """
        apply-layernorm-1p normalization fused-residual-rmsnorm apply-residual-connection-post-layernorm qk-l2-norm
        qk-clip qk-clip-* fp32-residual-connection persist-layer-norm""",
}
"""What to do, a sentence without its full stop -> names, `*` at the end for all that begin so."""
