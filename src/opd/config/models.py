"""The two models of a run: the student that is trained and the teacher that scores it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    StringConstraints,
    Tag,
    model_validator,
)

from opd.config.section import Section
from opd.types import Dtype, Precision, Scheme


class Lora(Section):
    """Low-rank adapters on the student (peft)."""

    rank: int = Field(16, ge=1)
    """Rank of each adapter."""
    alpha: float = Field(32.0, gt=0)
    """Adapters are scaled by alpha / rank; twice the rank is the common choice."""
    target_modules: str | list[str] = "all-linear"
    """Names of the layers that get one, or a regular expression. all-linear: all but the head."""
    weights: Literal["full"] | Scheme = "full"
    """Precision of the frozen layers beneath. int8, nf4: 8 or 4 bits a weight (QLoRA), head and
    embedding as they are; slower, since a layer's weights are made anew whenever it is applied."""


class Student(Section):
    """The model that is trained; it samples every rollout."""

    model: str
    """Folder of a causal language model, or its hub name (owner/name, owner/name@revision)."""
    precision: Precision = "auto"
    """bf16_mixed: bf16 weights and arithmetic, float32 master weights and moments in the optimizer;
    float32, float64: those throughout. bfloat16: no masters, refused at rates that bf16 rounds
    away. auto: bf16_mixed on a GPU that has bf16, else float32."""
    lora: Lora | None = None
    """null: every weight is trained. {}: adapters with every default."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, slower."""
    shard: Literal["none", "fsdp2"] = "none"
    """fsdp2: weights, gradients and moments are sharded across the processes of torchrun or
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
    dtype: Dtype | Scheme = "auto"
    """auto: as stored in the checkpoint. int8, nf4: linear layers in 8 or 4 bits, the rest as
    stored; what that changes is measured and shown."""
    device: str | None = None
    """null: where the student is."""
    offload: Literal["none", "cpu", "disk"] = "none"
    """Where its weights, all but the head, are while it does not score. cpu: in host memory (with a
    GPU); disk: nowhere, they are read again for every step."""
    cache: Cache | None = None
    """Scores on disk. Of a server: what was asked once is not asked again. Of a model in this
    process (offline: true): made ahead by `opd serve-teacher --score`; the model is not loaded."""
    tokenizer: str | None = None
    """Folder or hub name of the teacher's own tokenizer, where it is not the student's: completions
    are then compared as text, chunk by chunk. null: it is the student's, which is checked."""
    prompt: str | None = Field(None, min_length=1)
    """User message that the teacher sees instead of the student's: {prompt} is that message,
    {answer} the row's answer, any other name a column of the row. null: it sees the same."""

    @model_validator(mode="after")
    def _coherent(self) -> LocalTeacher:
        if self.cache is not None and not self.cache.offline:
            raise ValueError(
                "teacher.cache with a teacher in this process needs teacher.cache.offline=true: "
                "such a teacher is cheaper to ask than to cache, and gives full distributions"
            )
        if self.cache is not None and self.offload != "none":
            raise ValueError(
                "teacher.offload moves weights, and with teacher.cache none are loaded. Set "
                "teacher.offload=none"
            )
        return self


class Launch(Section):
    """A vLLM server that `opd` starts on this machine, and that ends with the command."""

    python: str
    """Interpreter of the environment that has vLLM, such as .venv-vllm/bin/python: one of its own,
    since vLLM and opd want other versions of torch and transformers."""
    gpus: list[int] = []
    """Numbers of the GPUs it may use; empty: all that this process sees."""
    args: dict[str, str | int | float | bool] = {}
    """Further options of `vllm serve`, such as {gpu-memory-utilization: 0.5}; true: the option
    alone."""


class Server(Section):
    """What a model behind HTTP is reached by: an address, or a server that `opd` has started."""

    _launched: Any = PrivateAttr(default=None)

    @property
    def launched(self) -> Any:
        """The `opd.http.launched.LaunchedServer` of its `launch`, once it was started."""
        return self._launched

    def set_launched(self, server: Any) -> None:
        """Note the server that was started for `launch`."""
        self._launched = server

    @property
    def address(self) -> str | None:
        """Where it is reached."""
        if self._launched is not None:
            return str(self._launched.url)
        return getattr(self, "url", None)


class ServerTeacher(Server):
    """A frozen model behind HTTP: `opd serve-teacher`, or a vLLM or SGLang server."""

    url: str | None = None
    """Such as http://127.0.0.1:8000/v1."""
    launch: Launch | None = None
    """A vLLM server that the command starts for the teacher, instead of an address."""
    model: str
    """The name the server gives it; with teacher.launch the model's folder or hub name."""
    api_key_env: str | None = None
    """Environment variable that holds the key; the key itself never stands in a file."""
    patience: float = Field(600.0, ge=0)
    """Seconds to wait for a teacher that has gone away, before the run saves and stops."""
    cache: Cache | None = None
    tokenizer: str | None = None
    prompt: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _coherent(self) -> ServerTeacher:
        if (self.url is None) == (self.launch is None):
            raise ValueError("teacher.url names a server and teacher.launch starts one: set one")
        name = self.api_key_env
        if name is not None and not (name.isidentifier() and name.upper() == name):
            raise ValueError(
                "teacher.api_key_env must be the NAME of an environment variable in capitals, such "
                "as TEACHER_KEY, not the key itself"
            )
        return self


class SelfTeacher(Section):
    """The student itself, usually with a prompt that says more than the student's own."""

    model_config = ConfigDict(serialize_by_alias=True)

    source: Literal["student"] = Field(alias="from")
    """student: the teacher is the student itself, seeing more (teacher.prompt)."""
    weights: Literal["frozen", "live", "ema"] = "frozen"
    """frozen: those the run began with (with LoRA the adapters switched off, no second copy); live:
    those of the moment; ema: a moving average of them, kept in every checkpoint."""
    decay: float = Field(0.99, gt=0, lt=1)
    """Of the average (weights: ema), per step."""
    prompt: str | None = Field(None, min_length=1)

    @property
    def cache(self) -> None:
        """Never: asking costs no more than looking up."""
        return None

    @property
    def model(self) -> str:
        """For messages and pages."""
        return f"the student itself ({self.weights})"

    @model_validator(mode="after")
    def _coherent(self) -> SelfTeacher:
        if self.weights == "live" and self.prompt is None:
            raise ValueError(
                "teacher.weights=live without teacher.prompt is the student itself: the loss is 0. "
                "Set teacher.prompt, such as '{prompt}\n\nReference: {answer}'"
            )
        return self


class PythonTeacher(Section):
    """An object of your own with `name`, `kinds` and `score`: the contract `opd.types.Teacher`."""

    python: str
    """A teacher of your own: pkg.mod:make (called without arguments), pkg.mod:object, or the name
    of an entry point of opd.teachers. Of a run folder's config.json it is imported only if given
    again."""
    prompt: str | None = Field(None, min_length=1)

    @property
    def cache(self) -> None:
        """None: what is computed here is the object's own affair."""
        return None

    @property
    def model(self) -> str:
        """For messages and pages."""
        return self.python


def _teacher_kind(value: Any) -> str:
    """Local; with a url or launch a server, with `from` the student, with `python` an object."""
    if isinstance(value, dict) and "python" in value:
        return "python"
    if isinstance(value, PythonTeacher):
        return "python"
    if isinstance(value, dict):
        served = {"url", "launch"} & value.keys()
        return "self" if "from" in value else "server" if served else "local"
    if isinstance(value, SelfTeacher):
        return "self"
    return "server" if isinstance(value, ServerTeacher) else "local"


TeacherName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")]

Teacher = Annotated[
    Annotated[LocalTeacher, Tag("local")]
    | Annotated[ServerTeacher, Tag("server")]
    | Annotated[SelfTeacher, Tag("self")]
    | Annotated[PythonTeacher, Tag("python")],
    Discriminator(_teacher_kind),
]
