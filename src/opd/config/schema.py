"""What a run.yaml may say: sections, keys, defaults with their reasons, and what must agree.

Every default carries its reason. Paper = arXiv 2604.13016, defaults of section 4.2 and table 2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from opd.config.guards import COLD_START_ALARMS, Alarms, Horizon
from opd.config.models import Launch, Server, Student, Teacher, TeacherName
from opd.config.prompts import Grader, Prompts
from opd.config.recipes import Check, Coldstart, Select
from opd.config.rollout_rules import require_ahead_possible
from opd.config.section import Section
from opd.config.teacher_rules import require_possible, require_teacher_possible
from opd.types import Divergence, Estimator, Mode, Stop, Support


class RolloutConfig(Server):
    """How the student samples completions."""

    url: str | None = None
    """vLLM or SGLang server that samples the rollouts, such as http://127.0.0.1:8001/v1. null:
    this process."""
    launch: Launch | None = None
    """A vLLM server that the command starts for the student, instead of an address."""
    model: str | None = None
    """The name that rollout.url gives the student's base model."""
    api_key_env: str | None = None
    """As teacher.api_key_env, for that server."""
    sync_dir: str | None = None
    """Where weights are put for the server to read; null: in the run folder. Must be a path the
    server sees too."""
    path: str | None = None
    """Recorded rollouts to train on instead of sampling: a parquet file, or a folder of them."""
    python: str | None = None
    """A sampler of your own, as pkg.mod:make or an entry point of opd.samplers; the contract is
    `opd.types.SamplerFactory`. Of a run folder's config.json it is imported only if given again."""
    n: int = Field(4, ge=1)
    """Responses per prompt. Paper: 4."""
    max_new_tokens: int = Field(1024, ge=1)
    """Paper: 7168 for long reasoning; 3K-7K was best there. Start short: it is the cost driver."""
    temperature: float = Field(1.0, gt=0)
    """Paper: 1.0, so that samples come from the distribution that is trained."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling; 1: off, so that samples come from the distribution that is trained."""
    ahead: Literal[0, 1] = 0
    """1: the next step's rollouts are sampled by the weights before this step's update, while it is
    made, and weighted for it. Saves time with a rollout server; 0: nothing is ever older."""
    stop: Stop | None = None
    """Whose end tokens stop a rollout; null demands that both models agree."""

    @property
    def engine(self) -> Literal["hf", "vllm", "replay", "python"]:
        """Who samples: the model in this process, a vLLM server, an earlier run, or user code."""
        if self.python is not None:
            return "python"
        if self.url is not None or self.launch is not None:
            return "vllm"
        return "hf" if self.path is None else "replay"

    @model_validator(mode="after")
    def _coherent(self) -> RolloutConfig:
        others = [k for k in ("url", "launch", "path") if getattr(self, k) is not None]
        if self.python is not None and others:
            raise ValueError(
                f"rollout.python samples with code of your own, and rollout.{others[0]} otherwise: "
                "set one of them"
            )
        if self.url is not None and self.path is not None:
            raise ValueError("rollout.url samples and rollout.path replays: set one of them")
        if (self.url is None) != (self.model is None):
            raise ValueError("rollout.url and rollout.model go together: set both")
        if self.launch is not None and (self.url is not None or self.path is not None):
            raise ValueError(
                "rollout.launch starts a server: set it without rollout.url and rollout.path"
            )
        if self.url is not None and self.temperature != 1.0:
            raise ValueError(
                f"rollout.temperature={self.temperature} with rollout.url: the log-probs of a vLLM "
                "server are those of temperature 1, so drift could not be measured. Set it to 1, "
                "or let opd start the server (rollout.launch)"
            )
        if self.launch is not None and self.temperature != 1.0 and self.top_p != 1.0:
            raise ValueError(
                f"rollout.temperature={self.temperature} with rollout.top_p={self.top_p}: the "
                "log-probs of a vLLM server are then those of the truncated distribution, so drift "
                "could not be measured. Set one of the two to 1"
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
    """Weight of the cross-entropy on the completions of sft_path."""
    sft_path: str | None = None
    """JSONL of prompt + completion, mixed into every update."""
    outcome_weight: float = Field(0.0, ge=0)
    """Weight of the group-normalised verifiable outcome reward added to each token's advantage."""
    mask_special_tokens: bool = False
    """Give special tokens (except the stop token) no loss."""


class Loss(Section):
    """What the student minimises at each completion position.

    `opd.core.objective.Objective` refuses combinations that make no sense.
    """

    divergence: Divergence = "reverse_kl"
    """Paper: reverse KL, KL(student || teacher). docs/math.md has every formula."""
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

    lr: float = Field(1.0e-6, gt=0, le=1)
    """Paper: 1e-6 for 1.5B-7B models; tiny models want 1e-3, LoRA about 1e-4."""
    weight_decay: float = Field(0.01, ge=0)
    """On matrices alone, not on biases and norms."""
    grad_clip: float = Field(1.0, gt=0)
    """Maximum norm of the gradient of all parameters together."""
    warmup: int = Field(0, ge=0)
    """Steps of linear warm-up."""
    offload: Literal["none", "cpu"] = "none"
    """cpu: master weights (pinned) and moments in host memory, stepped there (12 bytes per
    parameter less on the GPU). Full training in bf16_mixed only."""
    moments: Literal["float32", "int8"] = "float32"
    """int8: moments quantised in blocks, 2 bytes a weight instead of 8; updates differ by a few
    percent. Not with student.shard: fsdp2."""


class Train(Section):
    """Length and size of the run."""

    steps: int = Field(200, ge=1)
    """Updates. May be changed when a run is resumed."""
    prompts_per_step: int = Field(64, ge=1)
    """Paper: 64 prompts x 4 responses, one optimizer step per batch of rollouts."""
    tokens_per_microbatch: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Padded tokens per forward-backward; changes the update by rounding only. auto: as many
    as fit, up to 16384, into a GPU's memory, up to 8192 into half of a CPU's."""
    seed: int = Field(0, ge=0)
    """Decides every random number of the run; equal seeds give equal runs."""
    deterministic: bool = False
    """Use deterministic kernels in the update, so that it gives the same bits twice on a GPU (on a
    CPU it does anyway). Slower; kernels that have no such form are named once."""


class EvalSet(Section):
    """One held-out set of prompts with verifiable answers."""

    path: str
    """As prompts.path; rows need an answer."""
    name: str | None = None
    """null: the file's name."""
    template: str | None = None
    """As prompts.template."""
    chat: dict[str, Any] | None = {}
    """As prompts.chat."""
    n: int = Field(4, ge=1)
    """Responses per prompt; accuracy is their mean, pass@k is estimated from them."""
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
    """As prompts.grader."""
    teacher: str | None = None
    """Of several teachers, whose prompts these are: it answers them too, and accuracy is shown by
    teacher. A row's own column `teacher` comes first."""

    @property
    def label(self) -> str:
        """Name in metrics and files."""
        return self.name or Path(self.path).stem


Tracker = Literal["tensorboard", "wandb", "trackio"] | Annotated[str, Field(pattern="^python:.+")]


class Output(Section):
    """The run folder."""

    dir: str
    """Folder of the run; one that exists is resumed (--resume) or replaced (--overwrite)."""
    save_every: int = Field(20, ge=1)
    """Steps between checkpoints."""
    keep: int = Field(2, ge=1)
    """Checkpoints kept; the last good one is never deleted."""
    rollout_sample: int = Field(8, ge=0)
    """Rollouts of a step that stay in the run folder after the next checkpoint; to be replayed
    (rollout.path), all: train.prompts_per_step x rollout.n."""
    trackers: list[Tracker] = []
    """Loggers that get every metric, beside metrics.jsonl. python:pkg.mod:make, or python: and an
    entry point of opd.trackers, is one of your own: `opd.run.trackers.Sink`."""
    price_per_hour: float | None = Field(None, ge=0)
    """USD an hour of everything the run occupies; the report then shows the cost. null: no cost."""


class Run(Section):
    """A whole run, as written in run.yaml."""

    student: Student
    teacher: Teacher | None
    """null: no teacher; the outcome reward alone trains (loss.terms.outcome_weight)."""
    teachers: dict[TeacherName, Teacher] = {}
    """Several teachers by name, in place of teacher; prompts.files and the rows say who scores
    what."""
    prompts: Prompts
    rollout: RolloutConfig = RolloutConfig()
    loss: Loss = Loss()
    diagnostics: Diagnostics = Diagnostics()
    optim: Optim = Optim()
    train: Train = Train()
    eval: list[EvalSet] = []
    """Held-out sets; the first is the one the report is about."""
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

    @model_validator(mode="before")
    @classmethod
    def _teachers_alone(cls, value: Any) -> Any:
        """With `teachers` there is no `teacher` to ask for."""
        if isinstance(value, dict) and value.get("teachers") and "teacher" not in value:
            return value | {"teacher": None}
        return value

    def of_teacher(self, name: str) -> Run:
        """The same run with one of its teachers alone."""
        return self.model_copy(update={"teacher": self.teachers[name], "teachers": {}})

    @property
    def compares_text(self) -> bool:
        """Whether a teacher has a tokenizer of its own."""
        specs = [self.teacher, *self.teachers.values()]
        return any(getattr(spec, "tokenizer", None) is not None for spec in specs)

    @property
    def has_teacher(self) -> bool:
        """Whether anybody scores rollouts."""
        return self.teacher is not None or bool(self.teachers)

    @model_validator(mode="after")
    def _coherent(self) -> Run:
        if self.teachers:
            require_possible(self)
        elif any(file.teacher is not None for file in self.prompts.files):
            raise ValueError(
                "prompts.files.N.teacher names one of `teachers`, which are not set. Write "
                "teachers: {NAME: {model: ...}} in place of teacher"
            )
        elif any(task.teacher is not None for task in self.eval):
            raise ValueError(
                "eval.N.teacher names one of `teachers`, which are not set. Leave it out"
            )
        if not self.has_teacher and self.loss.terms.outcome_weight == 0:
            raise ValueError(
                "teacher is null and loss.terms.outcome_weight is 0: nothing trains the student. "
                "Give a teacher, or set loss.terms.outcome_weight=1"
            )
        if not self.has_teacher and self.loss.support == "full":
            raise ValueError(
                "loss.support=full compares whole distributions, but teacher is null. Use "
                "loss.support=student_topk for a run on the outcome reward alone"
            )
        if self.optim.moments == "int8" and self.student.shard == "fsdp2":
            raise ValueError(
                "optim.moments=int8 quantises whole weights, and student.shard=fsdp2 gives each "
                "process a part of them. Set optim.moments=float32, or student.shard=none"
            )
        if self.horizon is not None:
            self._horizon(self.horizon)
        if self.rollout.ahead:
            require_ahead_possible(self)
        if self.teacher is not None:
            require_teacher_possible(self, self.teacher, "teacher")
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
                f"coldstart.when=alarm waits for one of {', '.join(COLD_START_ALARMS)}, and none "
                "of them acts. Set alarms.action=act"
            )
        if self.rollout.engine == "replay":
            raise ValueError(
                "coldstart measures the student on rollouts of its own; rollout.path has those of "
                "an earlier run. Remove it"
            )

    def _acts(self) -> bool:
        """Whether an alarm that can begin a cold start acts."""
        for name in COLD_START_ALARMS:
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
        if horizon.prune is not None and not self.has_teacher:
            raise ValueError("horizon.prune measures overlap with a teacher, but teacher is null")
