"""What a run.yaml may say: sections, keys, defaults with their reasons, and what must agree.

Every default carries its reason. Paper = arXiv 2604.13016, defaults of section 4.2 and table 2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from opd.config.guards import Alarms, Horizon
from opd.config.recipes import Check, Coldstart, Select
from opd.config.section import Section
from opd.types import Divergence, Dtype, Estimator, GraderKind, Mode, Precision, Stop, Support

Grader = GraderKind | Literal["auto"]


class Lora(Section):
    """Low-rank adapters on the student (peft)."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    target_modules: str | list[str] = "all-linear"


class Student(Section):
    """The model that is trained: writes every rollout."""

    model: str
    """Folder of a causal language model, or its hub name (owner/name, owner/name@revision)."""
    precision: Precision = "auto"
    """bf16_mixed: bf16 weights and arithmetic, float32 master weights and moments in the optimizer;
    float32, float64: those throughout. bfloat16: no masters, refused at rates that bf16 rounds
    away. auto: bf16_mixed on a GPU that has bf16, else float32."""
    lora: Lora | None = None
    gradient_checkpointing: bool = False
    shard: Literal["none", "fsdp2"] = "none"
    """fsdp2: weights, gradients and moments are shared out among the processes of torchrun or
    accelerate launch; none: every process holds them all. No effect in a single process."""


class Cache(Section):
    """Scores on disk: what was asked once is not asked again."""

    dir: str
    """Folder of the cache; several runs and processes may share it."""
    max_gb: float = Field(4.0, gt=0)
    """Beyond this size the entries longest unused are removed."""
    offline: bool = False
    """Train from the cache alone; a rollout that is not in it is an error."""


class LocalTeacher(Section):
    """A frozen model in this process: exact, and the only kind that gives full distributions."""

    model: str
    """As student.model. For a server (teacher.url): the name that it gives the model."""
    dtype: Dtype = "auto"
    """auto: as stored in the checkpoint."""
    device: str | None = None
    """null: where the student is."""
    cache: Cache | None = None
    """Scores made ahead of time by `opd serve-teacher --score`; the model is then not loaded."""

    @model_validator(mode="after")
    def _coherent(self) -> LocalTeacher:
        if self.cache is not None and not self.cache.offline:
            raise ValueError(
                "teacher.cache with a teacher in this process needs teacher.cache.offline=true: "
                "such a teacher is cheaper to ask than to cache, and gives full distributions"
            )
        return self


class ServerTeacher(Section):
    """A frozen model behind HTTP: `opd serve-teacher`, or a vLLM server."""

    url: str
    """Such as http://127.0.0.1:8000/v1."""
    model: str
    """The name the server gives it."""
    api_key_env: str | None = None
    """Environment variable that holds the key; the key itself never stands in a file."""
    patience: float = Field(600.0, ge=0)
    """Seconds to wait for a teacher that has gone away, before the run saves and stops."""
    cache: Cache | None = None

    @model_validator(mode="after")
    def _coherent(self) -> ServerTeacher:
        name = self.api_key_env
        if name is not None and not (name.isidentifier() and name.upper() == name):
            raise ValueError(
                "teacher.api_key_env must be the NAME of an environment variable in capitals, such "
                "as TEACHER_KEY, not the key itself"
            )
        return self


def _teacher_kind(value: Any) -> str:
    """A teacher with a url is a server."""
    if isinstance(value, dict):
        return "server" if "url" in value else "local"
    return "server" if isinstance(value, ServerTeacher) else "local"


Teacher = Annotated[
    Annotated[LocalTeacher, Tag("local")] | Annotated[ServerTeacher, Tag("server")],
    Discriminator(_teacher_kind),
]


class Prompts(Section):
    """Where training prompts come from and how they are rendered."""

    path: str
    """JSONL, JSON, parquet or CSV file, or a hub dataset as hub:owner/name[:split]."""
    template: str | None = None
    """User message with {problem} in it; null keeps the row's own text."""
    chat: dict[str, Any] | None = {}
    """Keywords for the chat template (enable_thinking ...); null sends plain text (base models)."""
    max_tokens: int = Field(1024, ge=1)
    """Longer prompts are dropped and counted. Paper: 1024."""
    shuffle: bool = True
    """A permutation a pass, from train.seed. The reference code keeps file order."""
    grader: Grader = "auto"
    """Grades training rollouts when every prompt has an answer."""


class RolloutConfig(Section):
    """How the student writes."""

    url: str | None = None
    """vLLM server that samples the rollouts, such as http://127.0.0.1:8001/v1. null: this
    process."""
    model: str | None = None
    """The name that server gives the student's base model."""
    api_key_env: str | None = None
    sync_dir: str | None = None
    """Where weights are put for the server to read; null: in the run folder. Must be a path the
    server sees too."""
    path: str | None = None
    """Recorded rollouts to train on instead of sampling: a parquet file, or a folder of them."""
    n: int = Field(4, ge=1)
    """Responses a prompt. Paper: 4."""
    max_new_tokens: int = Field(1024, ge=1)
    """Paper: 7168 for long reasoning; 3K-7K was best there. Start short: it is the cost driver."""
    temperature: float = Field(1.0, gt=0)
    """Paper: 1.0, so that samples come from the distribution that is trained."""
    top_p: float = Field(1.0, gt=0, le=1)
    stop: Stop | None = None
    """Whose end tokens stop a rollout; null demands that both models agree."""

    @property
    def engine(self) -> Literal["hf", "vllm", "replay"]:
        """Who samples: the model in this process, a vLLM server, or an earlier run."""
        if self.url is not None:
            return "vllm"
        return "hf" if self.path is None else "replay"

    @model_validator(mode="after")
    def _coherent(self) -> RolloutConfig:
        if self.url is not None and self.path is not None:
            raise ValueError("rollout.url samples and rollout.path replays: set one of them")
        if (self.url is None) != (self.model is None):
            raise ValueError("rollout.url and rollout.model go together: set both")
        if self.url is not None and self.temperature != 1.0:
            raise ValueError(
                f"rollout.temperature={self.temperature} with rollout.url: the log-probs of a vLLM "
                "server are those of temperature 1, so drift could not be measured. Set it to 1, "
                "or remove rollout.url"
            )
        return self


class Terms(Section):
    """Additions to the distillation loss, each off by default; papers in docs/math.md."""

    reward_scale: float = Field(1.0, gt=0)
    """lambda of G-OPD / ExOPD; other than 1 needs terms.reference."""
    reference: str | None = None
    """Model that lambda extrapolates away from (G-OPD's pi_ref)."""
    entropy_forward_kl: float | None = Field(None, gt=0)
    """Add teacher-top-k forward KL where teacher entropy exceeds this many nats (EOPD: 0.8)."""
    position_decay: float | None = Field(None, gt=0, le=1)
    """Weight decay**t on completion position t."""
    sft_weight: float = Field(0.0, ge=0)
    sft_path: str | None = None
    """JSONL of prompt + completion mixed in by cross-entropy with weight sft_weight."""
    outcome_weight: float = Field(0.0, ge=0)
    """Weight of the group-normalised verifiable outcome reward added to each token's advantage."""
    mask_special_tokens: bool = False
    """Give special tokens (except the stop token) no loss."""


class Loss(Section):
    """What the student minimises at each completion position.

    Which combinations make sense is told by `opd.core.objective.Objective`, once for everybody.
    """

    divergence: Divergence = "reverse_kl"
    support: Support | Literal["auto"] = "student_topk"
    """Paper: the student's own top k. auto: the same, but with a teacher server that cannot score
    the student's tokens teacher_topk with a tail bucket instead of an error."""
    k: int = Field(16, ge=1)
    """Paper: 16; k = 1 is unstable, more than 16 brings nothing."""
    mode: Mode = "paper"
    """paper: Eq. 5, both sides renormalised on the support; reference: the published code; tail:
    one extra bucket for everything outside the support."""
    estimator: Estimator = "k1"
    """For support: sampled. k1: score function, unbiased for reverse KL."""
    beta: float = Field(0.5, gt=0, lt=1)
    """Mixture weight of jsd and skew_kl."""
    student_temperature: float = Field(1.0, gt=0)
    """Divides the student's logits inside the loss; not the sampling temperature."""
    teacher_temperature: float = Field(1.0, gt=0)
    """Divides the teacher's logits inside the loss."""
    terms: Terms = Terms()

    @model_validator(mode="after")
    def _coherent(self) -> Loss:
        if self.terms.reward_scale != 1.0 and self.terms.reference is None:
            raise ValueError(
                f"loss.terms.reward_scale={self.terms.reward_scale} needs loss.terms.reference, "
                "the model it extrapolates from (the teacher before its post-training)"
            )
        if self.terms.reference is not None and self.terms.reward_scale == 1.0:
            raise ValueError(
                "loss.terms.reference changes nothing at loss.terms.reward_scale=1 and would be "
                "loaded for nothing. Set loss.terms.reward_scale (1.25 in ExOPD), or leave it out"
            )
        if (self.terms.sft_weight > 0) != (self.terms.sft_path is not None):
            raise ValueError("loss.terms.sft_weight and loss.terms.sft_path go together: set both")
        return self


class Diagnostics(Section):
    """What is measured every step, beside the loss."""

    positions: int = Field(4096, ge=0)
    """Completion positions a step given the full-vocabulary treatment (all if fewer; 0: none)."""


class Optim(Section):
    """AdamW. Paper: constant rate, no warm-up."""

    lr: float = Field(1.0e-6, gt=0)
    """Paper: 1e-6 for 1.5B-7B models; tiny models want 1e-3, LoRA about 1e-4."""
    weight_decay: float = Field(0.01, ge=0)
    grad_clip: float = Field(1.0, gt=0)
    warmup: int = Field(0, ge=0)
    """Steps of linear warm-up."""
    offload: Literal["none", "cpu"] = "none"
    """cpu: master weights and moments in pinned host memory, stepped there (12 bytes per parameter
    less on the GPU). Full training in bf16_mixed only."""


class Train(Section):
    """Length and size of the run."""

    steps: int = Field(200, ge=1)
    prompts_per_step: int = Field(64, ge=1)
    """Paper: 64 prompts x 4 responses, one optimizer step per batch of rollouts."""
    tokens_per_microbatch: int | Literal["auto"] = "auto"
    """Padded tokens per forward-backward; changes the update by rounding only. auto: 8192."""
    seed: int = Field(0, ge=0)
    deterministic: bool = False
    """Use deterministic kernels in the update, so that it gives the same bits twice on a GPU (on a
    CPU it does anyway). Slower; kernels that have no such form are named once."""


class EvalSet(Section):
    """One held-out set of prompts with verifiable answers."""

    path: str
    name: str | None = None
    """null: the file's name."""
    template: str | None = None
    chat: dict[str, Any] | None = {}
    n: int = Field(4, ge=1)
    temperature: float = Field(0.7, ge=0)
    """Paper: 0.7; 0 is greedy."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Paper: 0.95."""
    max_new_tokens: int | None = Field(None, ge=1)
    """null: as in training."""
    every: int = Field(20, ge=0)
    """Steps between evaluations; 0: only before and after."""
    limit: int | None = Field(None, ge=1)
    """Use only the first so many prompts."""
    grader: Grader = "auto"

    @property
    def label(self) -> str:
        """Name in metrics and files."""
        return self.name or Path(self.path).stem


class Output(Section):
    """The run folder."""

    dir: str
    save_every: int = Field(20, ge=1)
    keep: int = Field(2, ge=1)
    """Checkpoints kept; the last good one is never deleted."""
    rollout_sample: int = Field(8, ge=0)
    """Rollouts of a step that stay in the run folder after the next checkpoint."""
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = []
    price_per_hour: float | None = Field(None, ge=0)
    """USD an hour of everything the run occupies; the report then tells money. null: no money."""


class Run(Section):
    """A whole run, as written in run.yaml."""

    student: Student
    teacher: Teacher | None
    """null: no teacher; the outcome reward alone trains (loss.terms.outcome_weight)."""
    prompts: Prompts
    rollout: RolloutConfig = RolloutConfig()
    loss: Loss = Loss()
    diagnostics: Diagnostics = Diagnostics()
    optim: Optim = Optim()
    train: Train = Train()
    eval: list[EvalSet] = []
    coldstart: Coldstart | None = None
    """null: on-policy from the first step. {}: with every default."""
    horizon: Horizon | None = None
    """null: rollout.max_new_tokens alone."""
    alarms: Alarms = Alarms()
    select: Select | None = None
    """What `opd select` does (and recipe: auto); no other command looks at it."""
    check: Check = Check()
    recipe: Literal["auto"] | None = None
    """auto: `opd train` first checks the pair, selects prompts if there is a `select` section,
    begins with a cold start if the check advises one, and trains with alarms that act."""
    output: Output

    @model_validator(mode="after")
    def _coherent(self) -> Run:
        if self.teacher is None and self.loss.terms.outcome_weight == 0:
            raise ValueError(
                "teacher is null and loss.terms.outcome_weight is 0: nothing trains the student. "
                "Give a teacher, or set loss.terms.outcome_weight=1"
            )
        if self.teacher is None and self.loss.support == "full":
            raise ValueError(
                "loss.support=full compares whole distributions, but teacher is null. Use "
                "loss.support=student_topk for a run on the outcome reward alone"
            )
        if self.horizon is not None:
            self._horizon(self.horizon)
        labels = [e.label for e in self.eval]
        if any(label.startswith(("teacher-", "coldstart-")) for label in labels):
            raise ValueError(
                f"eval sets {labels}: names that start with teacher- or coldstart- are kept for "
                "results of the teacher and of the cold start; give the set another eval.N.name"
            )
        if self.coldstart is not None:
            self._can_start_cold()
        if len(set(labels)) < len(labels):
            raise ValueError(f"eval sets share a name: {labels}; give each its own eval.N.name")
        return self

    def _can_start_cold(self) -> None:
        if self.teacher is None:
            raise ValueError("coldstart needs a teacher; teacher is null")
        if self.teacher.cache is not None and self.teacher.cache.offline:
            raise ValueError(
                "coldstart measures the teacher on fresh rollouts, which are in no cache. Set "
                "teacher.cache.offline=false"
            )
        if self.coldstart is not None and self.coldstart.when == "alarm" and not self._acts():
            raise ValueError(
                "coldstart.when=alarm waits for overlap-stagnating, overlap-mass-falling or "
                "entropy-gap-open, and none of them acts. Set alarms.action=act"
            )
        if self.rollout.engine == "replay":
            raise ValueError(
                "coldstart measures the student on rollouts of its own; rollout.path has those of "
                "an earlier run. Remove it"
            )

    def _acts(self) -> bool:
        """Whether an alarm that can begin a cold start acts."""
        for name in ("overlap-stagnating", "overlap-mass-falling", "entropy-gap-open"):
            own = self.alarms.rules.get(name)
            if ((own and own.action) or self.alarms.action) == "act":
                return True
        return False

    def _horizon(self, horizon: Horizon) -> None:
        longest = self.rollout.max_new_tokens
        starts = {"cap": horizon.cap}
        starts["grow.start"] = None if horizon.grow is None else horizon.grow.start
        for key, value in starts.items():
            if value is not None and value > longest:
                raise ValueError(
                    f"horizon.{key}={value} is beyond rollout.max_new_tokens={longest}; lower it"
                )
        if horizon.prune is not None and self.teacher is None:
            raise ValueError("horizon.prune measures overlap with a teacher, but teacher is null")
