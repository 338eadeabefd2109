"""The training loop, checkpoints and logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .field_metadata import MAY_CHANGE, NOT_COMPARED, SAME_RUN, Above, AtLeast, AtMost, Between


@dataclass(frozen=True)
class TrainingConfig:
    """Batch, length, precision and checks of a training run."""

    micro_batch_size: Annotated[int, AtLeast(1), AtMost(2**31 - 1), MAY_CHANGE] = 1
    """Sequences per forward pass and rank; they share one memory, as in the paper."""
    global_batch_size: Annotated[int | None, AtLeast(1), AtMost(2**31 - 1), MAY_CHANGE] = None
    """Sequences per step over all ranks; default micro-batch size times data-parallel size."""
    rampup_batch_size: Annotated[tuple[int, ...], SAME_RUN] = ()
    """START INCREMENT SAMPLES: begin with steps of START sequences and add INCREMENT at a time, spread evenly over
    SAMPLES sequences, up to --global-batch-size; iterations are counted as ever; default none."""
    train_iters: Annotated[int, AtLeast(1), MAY_CHANGE] = 1000
    """Optimizer steps of the whole run."""
    skip_train: Annotated[bool, NOT_COMPARED] = False
    """Evaluate the validation and test data once, with the model of --load or --resume, and end; nothing is saved."""
    exit_interval: Annotated[int | None, AtLeast(1), NOT_COMPARED] = None
    """Save and stop when the iteration is a multiple of this."""
    exit_duration_in_mins: Annotated[float | None, Above(0), NOT_COMPARED] = None
    """Save and stop after this many minutes."""
    eval_interval: Annotated[int, AtLeast(1), NOT_COMPARED] = 1000
    """Iterations between two evaluations on the validation split."""
    eval_iters: Annotated[int, AtLeast(0), NOT_COMPARED] = 100
    """Batches of one evaluation; 0 turns evaluation off."""
    seed: Annotated[int, AtLeast(0), Between(0, 2**32 - 1), SAME_RUN] = 1234
    """Seed of initialisation, data order and memory."""
    bf16: Annotated[bool, SAME_RUN] = False
    """Compute in bfloat16 with float32 master weights; the memory's tables follow --fwpkm-table-dtype."""
    calculate_per_token_loss: Annotated[bool, MAY_CHANGE] = False
    """Weigh every token of a step the same; by default every micro-batch weighs the same, however many of its tokens
    --eod-mask-loss leaves out."""
    recompute_granularity: Annotated[Literal["full", "selective"] | None, MAY_CHANGE] = None
    """Compute whole layers, or parts of them, again in the backward pass instead of keeping their activations; memories
    are never recomputed."""
    recompute_method: Annotated[Literal["uniform", "block"] | None, MAY_CHANGE] = None
    """With --recompute-granularity full: units of layers along the whole stage, or only its first layers."""
    recompute_num_layers: Annotated[int | None, AtLeast(1), MAY_CHANGE] = None
    """With --recompute-granularity full: layers of a unit (uniform), or number of recomputed layers (block)."""
    recompute_modules: Annotated[tuple[Literal["core_attn", "mlp"], ...], MAY_CHANGE] = ("core_attn",)
    """With --recompute-granularity selective: the parts of a layer that are recomputed."""
    cpu_offloading_num_layers: Annotated[int, AtLeast(0), MAY_CHANGE] = 0
    """Layers of every model chunk, from its first, whose activations wait in host memory for the backward pass; what a
    memory keeps stays on the device."""
    check_weight_hash_across_dp_replicas_interval: Annotated[int | None, AtLeast(1), NOT_COMPARED] = None
    """Iterations between two checks that all data-parallel replicas have equal slow weights; default none."""
    manual_gc: Annotated[bool, NOT_COMPARED] = False
    """Switch Python's own garbage collection off, and collect at the start, before and after evaluations, and at
    --manual-gc-interval, on all ranks at once."""
    manual_gc_interval: Annotated[int, AtLeast(0), NOT_COMPARED] = 0
    """With --manual-gc: iterations between two collections; 0 makes none between iterations."""
    manual_gc_eval: Annotated[bool, NOT_COMPARED] = True
    """With --manual-gc: collect before and after every evaluation."""
    num_threads: Annotated[int | None, AtLeast(1), AtMost(2**16), NOT_COMPARED] = None
    """CPU threads per process; default all cores divided by the local processes."""
    deterministic: Annotated[bool, MAY_CHANGE] = True
    """Refuse nondeterministic kernels where torch offers the choice."""
    divergence_factor: Annotated[float, Above(1), MAY_CHANGE] = 10.0
    """Stop when the memorization loss exceeds this times its early median, or when loss or gradients are not finite."""
    dry_run: Annotated[bool, NOT_COMPARED] = False
    """Print the resolved configuration, the layer plan, parameters and memory per rank, and stop."""
    dry_run_all: Annotated[bool, NOT_COMPARED] = False
    """With --dry-run: print the options that have their default, too."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Saving and resuming."""

    save: Annotated[str | None, NOT_COMPARED] = None
    """Folder of this run's checkpoints."""
    save_interval: Annotated[int | None, AtLeast(1), NOT_COMPARED] = None
    """Iterations between two checkpoints; the last iteration is always saved."""
    async_save: Annotated[bool, NOT_COMPARED] = False
    """Write checkpoints in a forked process while training goes on; each is finished before the next one begins."""
    keep_last: Annotated[int, AtLeast(0), NOT_COMPARED] = 3
    """Checkpoints kept in --save; 0 keeps all."""
    save_retain_interval: Annotated[int | None, AtLeast(1), NOT_COMPARED] = None
    """Checkpoints whose iteration is a multiple of this are kept beside the --keep-last newest; default none are."""
    resume: Annotated[bool, NOT_COMPARED] = False
    """Continue from the latest checkpoint in --save; start anew, and say so, where there is none."""
    load: Annotated[str | None, NOT_COMPARED] = None
    """Folder of another run to start from (its latest checkpoint)."""
    finetune: Annotated[bool, NOT_COMPARED] = False
    """With --load: take the weights and fast weights only, and start iteration, optimizer and data anew."""
    ckpt_step: Annotated[int | None, AtLeast(0), NOT_COMPARED] = None
    """Iteration of the checkpoint to start from: of --load's run or, without it, of --resume's; default the latest."""
    exit_on_missing_checkpoint: Annotated[bool, NOT_COMPARED] = False
    """End with an error, instead of starting anew, where --resume finds nothing to continue."""
    use_checkpoint_args: Annotated[bool, NOT_COMPARED] = False
    """Take the model's shape from the checkpoint that --resume or --load names; of the command line and files stay
    sizes and tokenizer where they are given."""
    override_opt_param_scheduler: Annotated[bool | None, NOT_COMPARED] = None
    """Where a resumed run is given another schedule than its checkpoint has, take what is given; with the --no- form
    end with an error; default take what is given."""
    use_checkpoint_opt_param_scheduler: Annotated[bool, NOT_COMPARED] = False
    """Take the schedule (learning rates, weight decay, warm-up, decay) from the checkpoint, whatever is given."""


@dataclass(frozen=True)
class LoggingConfig:
    """What a run writes while it trains."""

    log_interval: Annotated[int, AtLeast(1), NOT_COMPARED] = 10
    """Iterations between two progress lines."""
    log_dir: Annotated[str | None, NOT_COMPARED] = None
    """Folder of metrics.jsonl and the resolved configuration; default --save, else runs/<date>."""
    tensorboard_dir: Annotated[str | None, NOT_COMPARED] = None
    """Folder of TensorBoard events; default none are written."""
